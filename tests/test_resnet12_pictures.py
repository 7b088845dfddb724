"""Pictures of one's own by a run of ResNet-12: what it answers, saves and reads again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine import FewShotClassifier, adapt, predict, train, unroll
from engine.data.pictures import prepared
from engine.episodes import Episode
from engine.models.resnet12 import ResNet12
from engine.runs.learned import learned_from
from tests.tiny import flags


@pytest.fixture(scope="module")
def run(images):
    folder = images.parent / "resnet12"
    network = "--network", "resnet12", "--widths", "4,6,8,10", "--filters", 48, "--stages", 4
    argv = flags(images, folder, *network, "--epochs", 2, "--inner-rate", 0.1)
    assert train.main(argv) == 0
    return folder


@pytest.fixture(scope="module")
def support(images, tmp_path_factory):
    """Two pictures a class in a folder, and twelve others."""
    folder = tmp_path_factory.mktemp("support") / "pets"
    others = []
    for c, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for n in range(6):
            file = images / "test" / f"test{c}" / f"{n}.png"
            if n < 2:
                (folder / name / f"{n}.png").write_bytes(file.read_bytes())
            else:
                others.append(file)
    return folder, others


def test_it_answers_as_the_unroll_does_and_each_picture_as_if_alone(run, support):
    folder, asked = support
    classifier = FewShotClassifier.load(run).fit_folder(folder)
    assert classifier.classes_.tolist() == ["ant", "bee", "cat"]
    odds = classifier.predict_proba(asked)
    learned = learned_from(run, ensemble=False)
    assert learned.cfg.network == "resnet12"
    files = sorted(folder.glob("*/*.png"))
    x, new = (learned.preparation.seen(prepared(p, learned.preparation)) for p in (files, asked))
    y = torch.arange(3).repeat_interleave(2)
    episode = Episode(x[None], y[None], new[None], torch.zeros(1, len(asked), dtype=torch.int64))
    ((params, running),) = learned.members
    model = ResNet12.of(learned.cfg)
    options = {"steps": learned.cfg.steps, "protocol": "inductive"}
    logits = unroll.adapt_and_predict(model, params, running, episode, **options)[0]
    np.testing.assert_allclose(odds, logits.double().softmax(1), rtol=0, atol=1e-5)
    best = classifier.classes_[odds.argmax(1)]
    assert classifier.predict(asked).tolist() == best.tolist()
    assert len({*best.tolist()}) > 1

    for some in ([0], [7], [3, 0, 9], [*range(11, -1, -1)]):
        np.testing.assert_array_equal(
            classifier.predict_proba([asked[i] for i in some]), odds[some]
        )
    many = classifier.predict_proba([*asked * 3, asked[5]])  # over more than one call
    np.testing.assert_array_equal(many, odds[[*range(12)] * 3 + [5]])
    labels = [file.parent.name for file in files]
    np.testing.assert_array_equal(
        FewShotClassifier(run).fit(files, labels).predict_proba(asked), odds
    )


def test_what_is_saved_answers_the_same(run, support, tmp_path, capsys):
    folder, asked = support
    classifier = FewShotClassifier.load(run, ensemble=True).fit_folder(folder)
    classifier.save(tmp_path / "pets.pt")
    again = FewShotClassifier.load(tmp_path / "pets.pt")
    odds = classifier.predict_proba(asked)
    assert again.classes_.tolist() == ["ant", "bee", "cat"]
    np.testing.assert_array_equal(again.predict_proba(asked), odds)
    alone = FewShotClassifier.load(run).fit_folder(folder).predict_proba(asked)
    assert not np.array_equal(alone, odds)  # two epochs are in the file

    line = tmp_path / "line.pt"
    assert adapt.main([str(run), str(folder), "-o", str(line), "--ensemble"]) == 0
    np.testing.assert_array_equal(FewShotClassifier.load(line).predict_proba(asked), odds)
    csv = tmp_path / "answers.csv"
    assert predict.main([str(line), *map(str, asked), "--csv", str(csv)]) == 0
    rows = [row.split(",") for row in csv.read_text().splitlines()]
    assert rows[0] == ["path", "label", "probability"]
    assert [row[1] for row in rows[1:]] == classifier.predict(asked).tolist()


def test_two_classes_of_three_outputs(run, support, tmp_path):
    folder, asked = support
    files = [file for file in sorted(folder.glob("*/*.png")) if file.parent.name != "bee"]
    labels = [file.parent.name for file in files]
    classifier = FewShotClassifier(run).fit(files, labels)
    odds = classifier.predict_proba(asked)
    assert odds.shape == (12, 2) and classifier.classes_.tolist() == ["ant", "cat"]
    np.testing.assert_allclose(odds.sum(1), 1, atol=1e-12)
    classifier.save(tmp_path / "two.pt")
    again = FewShotClassifier.load(tmp_path / "two.pt")
    np.testing.assert_array_equal(again.predict_proba(asked), odds)
