"""FewShotClassifier: it answers as the evaluation does, each picture as if it were alone."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from engine import FewShotClassifier, classifier, meta, train, unroll
from engine.config import Config
from engine.data.pictures import prepared
from engine.data.preparation import Preparation
from engine.episodes import Episode, EpisodeSampler
from engine.errors import UserError
from engine.models.backbone import Backbone
from engine.models.interface import Moments
from engine.runs import checkpoint
from engine.runs.adapted import Adapted
from engine.runs.adapting import logits, one_by_one
from engine.runs.learned import learned_from
from engine.runs.packed import pack
from engine.runs.problem import load_dataset
from kernels import native
from kernels import reference as reference_ops
from tests.tiny import environment, flags, same

STEPS = 4


@pytest.fixture(scope="module")
def run(images):
    """Three outputs, two best epochs, trained to tell the tiny classes apart better than chance."""
    folder = images.parent / "run"
    assert train.main(flags(images, folder, "--iterations", 12, "--seed", 3)) == 0
    return folder


@pytest.fixture(scope="module")
def files(images):
    """[3 classes][6 pictures]"""
    return [[images / "test" / f"test{c}" / f"{n}.png" for n in range(6)] for c in range(3)]


@pytest.fixture(scope="module")
def support(files):
    """Pictures and labels of two a class, and eighteen pictures to be labelled."""
    pictures = [file for names in files for file in names[:2]]
    return pictures, np.repeat(["a", "b", "c"], 2), [f for names in files for f in names]


def reference(source, x, y, asked, ways, **options) -> torch.Tensor:
    """The logits of unroll.adapt_and_predict, one task of all that is asked."""
    learned = learned_from(source, ensemble=False)
    ((params, running),) = learned.members
    x, asked = (learned.preparation.seen(prepared(p, learned.preparation)) for p in (x, asked))
    labels = torch.as_tensor(y)[None]
    episode = Episode(x[None], labels, asked[None], torch.zeros(1, len(asked), dtype=torch.int64))
    model = dataclasses.replace(Backbone.of(learned.cfg), ways=ways, precision="fp32")
    settings = {"steps": learned.cfg.steps, "protocol": "inductive"} | options
    return unroll.adapt_and_predict(model, params, running, episode, **settings)[0]


def softmax(logits: torch.Tensor) -> np.ndarray:
    return logits.double().softmax(1).numpy()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({"steps": STEPS}, {"steps": STEPS}),
        ({"norm_statistics": "running"}, {"norm_statistics": "running"}),
        ({"transductive": True}, {"protocol": "transductive"}),
    ],
)
def test_it_answers_as_the_evaluation_does(run, support, given, options):
    x, y, asked = support
    fitted = FewShotClassifier(run, precision="fp32", **given).fit(x, y)
    expected = softmax(reference(run, x, np.repeat([0, 1, 2], 2), asked, ways=3, **options))
    np.testing.assert_allclose(fitted.predict_proba(asked), expected, rtol=0, atol=1e-5)
    assert fitted.predict(asked).tolist() == [["a", "b", "c"][c] for c in expected.argmax(1)]


def test_the_ensemble_is_the_mean_of_the_logits(run, support):
    x, y, asked = support
    both = FewShotClassifier(run, ensemble=True).fit(x, y)
    epochs = [epoch for epoch, _ in checkpoint.load(run / "latest.pt").best]
    each = [FewShotClassifier(checkpoint.epoch_file(run, e)).fit(x, y) for e in epochs]
    logs = np.mean([np.log(one.predict_proba(asked)) for one in each], axis=0)
    odds = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    assert len(epochs) == 2
    np.testing.assert_allclose(both.predict_proba(asked), odds, rtol=0, atol=1e-5)


def test_fewer_classes_leave_the_other_outputs_out_of_the_loss_too(run, files):
    """As by autograd with a softmax in which the third output has no share at all."""
    x, y = [files[c][n] for c in (0, 1) for n in range(3)], torch.tensor([[0, 0, 0, 1, 1, 1]])
    learned = learned_from(run, ensemble=False)
    model, ((params, _),) = Backbone.of(learned.cfg), learned.members
    images = learned.preparation.seen(prepared(x, learned.preparation))[None]
    theta, masked = params.theta[None], torch.zeros(1, sum(model.sizes))
    masked[0, -1] = -1e4
    for k in range(learned.cfg.steps):
        theta = theta.detach().requires_grad_()
        loss, _, _ = model.loss(theta + masked, params.norm[k], images, y, ops=reference_ops)
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        parts = zip(params.rates[k], model.sizes, strict=True)
        theta = theta - torch.cat([rate.expand(size) for rate, size in parts]) * gradient
    *body, weight, bias = theta[0].detach().split(model.sizes)
    assert bias[2] == params.theta[-1]  # left as it was
    expected = torch.cat([*body, weight.view(3, -1)[:2].flatten(), bias[:2]])
    fitted = FewShotClassifier(run, precision="fp32").fit(x, y[0])
    adapted = fitted._fitted[1][0]
    torch.testing.assert_close(adapted.theta, expected, rtol=1e-4, atol=1e-5)
    assert fitted.predict_proba(x).shape == (6, 2)


@pytest.mark.parametrize("name", ["auto", "plain"])
def test_an_answer_is_the_same_to_the_bit_alone_and_among_others(run, support, name, monkeypatch):
    x, y, asked = support
    fitted = FewShotClassifier(run, backend=name).fit(x, y)
    together = fitted.predict_proba(asked)
    alone = np.concatenate([fitted.predict_proba([one]) for one in asked])
    backwards = fitted.predict_proba(asked[::-1])[::-1]
    monkeypatch.setattr("engine.runs.adapting._TOGETHER", 5)
    divided = fitted.predict_proba(asked)
    assert all(np.array_equal(together, other) for other in (alone, backwards, divided))
    if torch.get_num_threads() > 1:
        assert np.array_equal(fitted.set_params(threads=1).predict_proba(asked), together)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")
def test_so_it_is_by_every_instruction_set_and_at_the_size_of_mini_imagenet(isa, downsample):
    model = Backbone(3, 84, 48, 4, 5, downsample)
    generator = torch.Generator().manual_seed(0)
    theta, norm, _ = model.init(1, 1, 0.1, generator)
    statistics = Moments(torch.zeros(model.stat_width), torch.ones(model.stat_width))
    adapted = Adapted(theta, norm[0], statistics)
    x = torch.randn(7, 84, 84, 3, generator=generator).permute(0, 3, 1, 2)
    with torch.inference_mode():
        together = one_by_one(model, logits, adapted, x)
        alone = torch.cat([one_by_one(model, logits, adapted, one[None]) for one in x])
    assert torch.equal(together, alone) and together.isfinite().all()


def test_asked_transductively_an_answer_does_depend_on_the_others(run, support):
    x, y, asked = support
    fitted = FewShotClassifier(run, transductive=True).fit(x, y)
    assert not np.array_equal(fitted.predict_proba(asked[:4])[:1], fitted.predict_proba(asked)[:1])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["dog", "cat", "cow"], ["cat", "cow", "dog"]),
        ([30, -1, 7], [-1, 7, 30]),
        ([2.5, 0.5, 1.0], [0.5, 1.0, 2.5]),
        ([True, False, False], [False, True]),
        (np.array([3, 1, 2], np.uint8), [1, 2, 3]),
        (torch.tensor([3, 1, 2]), [1, 2, 3]),
        (np.array(["b", "a", "c"], object), ["a", "b", "c"]),
    ],
)
def test_labels_of_any_kind_in_sorted_order(run, files, labels, classes, tmp_path):
    x, asked = [files[c][n] for n in range(2) for c in range(3)], files[0] + files[2]
    y = [*labels, *labels] if isinstance(labels, list) else np.tile(np.asarray(labels), 2)
    fitted = FewShotClassifier(run).fit(x, y)
    assert fitted.classes_.tolist() == classes
    found = fitted.predict(asked)
    assert {*found.tolist()} <= {*classes}
    assert fitted.score(x, y) == np.mean(fitted.predict(x) == np.asarray(y))
    for wrong in (np.asarray(y)[:, None], y[:1]):
        with pytest.raises(UserError, match="one for each picture"):
            fitted.score(x, wrong)
    fitted.save(tmp_path / "own.pt")
    back = FewShotClassifier.load(tmp_path / "own.pt")
    assert back.classes_.tolist() == classes and back.predict(asked).tolist() == found.tolist()


def test_pictures_reach_a_method_class_by_class_in_whatever_order(run, support, monkeypatch):
    seen, (x, y, _) = [], support
    adapt = classifier.adapt
    monkeypatch.setattr(classifier, "adapt", lambda *a: seen.append(a[3:]) or adapt(*a))
    FewShotClassifier(run).fit(x, y)
    order = np.random.default_rng(0).permutation(len(y))
    FewShotClassifier(run).fit([x[i] for i in order], [y[i] for i in order])
    for images, labels in seen:
        assert (labels.diff() >= 0).all()
        assert torch.equal(images.sort(1)[0], seen[0][0].sort(1)[0])


def test_uneven_numbers_of_pictures_count_by_the_picture(run, files):
    x, y = [*files[0][:4], files[1][0], *files[2][:2]], [0, 0, 0, 0, 1, 2, 2]
    expected = softmax(reference(run, x, y, files[1], ways=3))
    fitted = FewShotClassifier(run, precision="fp32").fit(x, y)
    np.testing.assert_allclose(fitted.predict_proba(files[1]), expected, rtol=0, atol=1e-5)


def test_mistakes_are_one_line(run, support, tmp_path):
    x, y, _ = support
    made = FewShotClassifier(run)
    for labels, words in [
        (["a"] * 6, r"the class a alone: give pictures of two classes"),
        (list("abcdef"), r"6 classes, the network 3 outputs: .*--ways 6"),
        (["a", "b"], r"6 pictures and y 2 labels"),
        ([1], "6 pictures and y 1 labels: give as many"),
        ([*range(7)], "6 pictures and y 7 labels"),
        ([["a"], ["b"]] * 3, r"shape \[6, 1\]: give one label a picture"),
        (["a", 1] * 3, "mixes texts and other labels"),
        (np.array([(), "a"] * 3, object), "cannot be sorted"),
        ([], "no label"),
    ]:
        with pytest.raises(UserError, match=words):
            made.fit(x, labels)
    for source, words in [
        (None, "source is None: name a run folder"),
        (tmp_path / "none", "no checkpoint at"),
        (tmp_path, "is no run folder"),
    ]:
        with pytest.raises(UserError, match=words):
            FewShotClassifier(source).fit(x, y)
    with pytest.raises(UserError, match="knows no classes yet: call fit"):
        made.predict(x)
    with pytest.raises(UserError, match="knows no classes yet: call fit"):
        made.save(tmp_path / "x.pt")
    for name, value in [("steps", 0.5), ("norm_statistics", "x"), ("device", "x"), ("ensemble", 2)]:
        with pytest.raises(UserError, match=f"^{name} is {value!r}"):
            FewShotClassifier(run, **{name: value}).fit(x, y)
    for name, value, words in [
        ("steps", -1, "^steps is -1: give a number"),
        ("backend", "triton", "^backend is triton: triton runs on a GPU"),
    ]:
        with pytest.raises(UserError, match=words):
            FewShotClassifier(run, device="cpu", **{name: value}).fit(x, y)
    fitted = FewShotClassifier(run).fit(x, y).set_params(threads=-1)
    with pytest.raises(UserError, match="^threads is -1: give a number"):
        fitted.predict(x)
    with pytest.raises(UserError, match="no colour: it has source, ensemble"):
        made.set_params(colour=1)


def test_an_adaptation_that_diverges_is_an_error(run, support, tmp_path):
    x, y, _ = support
    content = torch.load(run / "latest.pt", weights_only=True)
    content["state"]["params"]["rates"].fill_(1e30)
    torch.save(content, tmp_path / "wild.pt")
    with pytest.raises(UserError, match="not finite after 2 inner steps .*fewer steps"):
        FewShotClassifier(tmp_path / "wild.pt").fit(x, y)


def test_answers_that_are_not_finite_are_none(run, support):
    x, y, asked = support
    fitted = FewShotClassifier(run, steps=STEPS).fit(x, y)
    learned, (found,) = fitted._fitted
    fitted._fitted = learned, [found._replace(theta=found.theta * 1e30)]
    with pytest.raises(UserError, match="the network's answers are not finite"):
        fitted.predict(asked)


def test_what_is_saved_answers_the_same_elsewhere_and_adapts_anew(run, support, tmp_path):
    x, y, asked = support
    fitted = FewShotClassifier(run, steps=STEPS, ensemble=True).fit(x, y)
    fitted.save(tmp_path / "own.pt")
    back = FewShotClassifier.load(tmp_path / "own.pt")
    assert np.array_equal(back.predict_proba(asked), fitted.predict_proba(asked))
    back.fit(asked[::2], np.repeat(["x", "y", "z"], 3))
    again = FewShotClassifier(run, steps=STEPS, ensemble=True)
    again.fit(asked[::2], np.repeat(["x", "y", "z"], 3))
    assert np.array_equal(back.predict_proba(asked), again.predict_proba(asked))
    content = torch.load(tmp_path / "own.pt", weights_only=True)
    raw = (tmp_path / "own.pt").read_bytes()
    assert str(run.parent).encode() not in raw and content["config"]["eval_steps"] == STEPS


def test_settings_of_the_machine_change_later_those_of_the_loop_with_the_next_fit(run, support):
    x, y, asked = support
    fitted = FewShotClassifier(run).fit(x, y)
    before = fitted.predict_proba(asked)
    fitted.set_params(steps=STEPS, norm_statistics="running", source="elsewhere")
    assert np.array_equal(fitted.predict_proba(asked), before)
    fitted.set_params(source=run).fit(x, y)
    assert not np.array_equal(fitted.predict_proba(asked), before)


def test_it_is_copied_and_pickled(run, support):
    x, y, asked = support
    fitted = FewShotClassifier(run).fit(x, y)
    for other in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(other.predict_proba(asked), fitted.predict_proba(asked))
        assert other.get_params() == fitted.get_params()


def test_what_a_program_has_set_changes_nothing_and_stays(run, support):
    x, y, asked = support
    expected = FewShotClassifier(run).fit(x, y).predict_proba(asked)
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found = FewShotClassifier(run, threads=1).fit(x, y).predict_proba(asked)
        assert torch.get_default_dtype() == torch.float64 and torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert np.array_equal(found, expected) and torch.get_num_threads() == threads


def test_pictures_are_seen_as_in_training_to_the_bit(run, images):
    learned = learned_from(run, ensemble=False)
    cfg = dataclasses.replace(learned.cfg, data=str(images), cache=str(images.parent / "cache"))
    dataset = load_dataset(cfg)
    tasks = EpisodeSampler.of(cfg, dataset, "test", seed=0)
    rows = tasks.draw(0, 1).rows[0, :, 0]
    names = sorted(p for p in (images / "test").glob("*/*.png"))
    seen = learned.preparation.seen(prepared([names[r] for r in rows], learned.preparation))
    episode = tasks.episode(0, 1)
    assert torch.equal(seen, episode.support_x[0, :: cfg.shots])


def test_the_preparation_travels_and_older_files_have_that_of_their_data(run, tmp_path):
    content = torch.load(run / "latest.pt", weights_only=True)
    ours = Preparation.of("folder", 16, 3)
    assert content["preparation"] == ours.to_dict()
    content["preparation"] |= {"scale": 0.5, "mean": [0.1, 0.2, 0.3]}
    torch.save(content, tmp_path / "other.pt")
    other = learned_from(tmp_path / "other.pt", ensemble=False).preparation
    assert (other.scale, other.mean, other.std) == (0.5, (0.1, 0.2, 0.3), ours.std)
    content["preparation"]["mean"] = [0.1]
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="normalises 1 and 3 channels, its network takes 3"):
        learned_from(tmp_path / "odd.pt", ensemble=False)
    del content["preparation"]
    torch.save(content | {"format": 2}, tmp_path / "older.pt")
    assert learned_from(tmp_path / "older.pt", ensemble=False).preparation == ours
    assert Preparation.of("omniglot", 28, 1) == Preparation(28, 1, True, 1.0, (0.0,), (1.0,))
    assert Preparation.of("mini", 84, 1).mean == (0.449,)
    assert Config.from_dict(content["config"]).ways == 3


def test_a_network_of_omniglot_takes_photos_of_ink_on_paper(tmp_path):
    """It adapts to drawings of one bit, and is asked photos of the same characters."""
    cfg = Config.of(dataset="omniglot", ways=5, filters=16, steps=5, inner_rate=0.4)
    state, rng = pack(meta.init_state(cfg)), torch.get_rng_state()
    content = checkpoint.Checkpoint(cfg.to_dict(), "omniglot", "", state, 1, [], {}, rng)
    checkpoint.save(tmp_path / "ink.pt", content)
    strokes = [(0.5, 0.2, 0.5, 0.8), (0.2, 0.5, 0.8, 0.5), (0.2, 0.2, 0.8, 0.8)]

    def character(c: int, side: int, ink: int, paper: int) -> Image.Image:
        image = Image.new("L", (side, side), paper)
        line = [side * place for place in strokes[c]]
        ImageDraw.Draw(image).line(line, fill=ink, width=side // 25)
        return image

    drawings = [character(c, 105, 0, 255).convert("1") for c in range(3)]
    photos = [character(c, 900, 60, 200).convert("RGB") for c in range(3)]
    fitted = FewShotClassifier(tmp_path / "ink.pt").fit(drawings, ["down", "along", "across"])
    assert fitted.predict(photos).tolist() == ["down", "along", "across"]
    assert fitted.fitted.preparation.binary


def test_it_is_an_estimator_of_scikit_learn(run, support):
    pytest.importorskip("sklearn")
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    _, _, asked = support
    y = np.repeat(["a", "b", "c"], 6)
    made = FewShotClassifier(run, steps=1)
    twin = clone(made)
    assert is_classifier(made) and twin.get_params() == made.get_params() and twin is not made
    scores = cross_val_score(made, asked, y, cv=3)
    parts = [[*range(i, 18, 6), *range(i + 1, 18, 6)] for i in (0, 2, 4)]  # stratified, in order
    expected = []
    for part in parts:
        rest = [i for i in range(18) if i not in part]
        one = FewShotClassifier(run, steps=1).fit([asked[i] for i in rest], y[rest])
        expected.append(one.score([asked[i] for i in part], y[part]))
    assert scores.tolist() == expected
    pixels = np.stack([np.asarray(Image.open(file)) for file in asked])
    dark = FunctionTransformer(lambda x: x // 2)
    pipeline = make_pipeline(dark, made).fit(pixels, y)
    alone = FewShotClassifier(run, steps=1).fit(pixels // 2, y)
    assert np.array_equal(pipeline.predict_proba(pixels), alone.predict_proba(pixels // 2))
    assert pipeline.classes_.tolist() == ["a", "b", "c"]
    search = GridSearchCV(made, {"steps": [1, 2]}, cv=2).fit(pixels, y)
    assert search.best_params_["steps"] in (1, 2) and search.best_score_ <= 1
    assert repr(clone(made)) == f"FewShotClassifier(source={run!r}, steps=1)"


def test_the_package_names_it_without_importing_torch():
    program = (
        "import sys, engine; assert 'torch' not in sys.modules; "
        "assert 'FewShotClassifier' in dir(engine) and 'torch' not in sys.modules; "
        "from engine import FewShotClassifier; assert 'sklearn' not in sys.modules; "
        "assert FewShotClassifier.__module__ == 'engine.classifier'\n"
        "try: engine.nothing\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "module 'engine' has no attribute 'nothing'\n", done.stderr


def test_members_are_the_best_epochs_of_the_run(run):
    best = checkpoint.load(run / "latest.pt").best
    many, one = (learned_from(run, ensemble=e) for e in (True, False))
    states = [checkpoint.load(checkpoint.epoch_file(run, e)).state for e, _ in best]
    assert same([m.params for m in many.members], [s["params"] for s in states])
    assert same(one.members[0].params, many.members[0].params) and len(one.members) == 1
