"""The file of an adapted network: whatever it holds, a clear line or a classifier that is right."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import FewShotClassifier, evaluate
from engine.errors import UserError
from engine.runs import adapted, checkpoint
from tests.test_checkpoint_fields import GONE, MORE, ODD, like, places, spoilt
from tests.tiny import small_disk


@pytest.fixture(scope="module")
def files(images):
    return [images / "test" / f"test{c}" / f"{n}.png" for c in range(2) for n in range(3)]


@pytest.fixture(scope="module")
def fitted(finished, files):
    return FewShotClassifier(finished, ensemble=True).fit(files, list("aaabbb"))


@pytest.fixture(scope="module")
def saved(fitted, images):
    file = images.parent / "own.pt"
    fitted.save(file)
    return file


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_in_any_field_is_a_line_or_harmless(saved, files, data):
    content = torch.load(saved, weights_only=True)
    where = data.draw(st.sampled_from(places(content)))
    old = content
    for key in where:
        old = old[key]
    values = [*ODD, *like(old)] if isinstance(old, torch.Tensor) else ODD
    inside_dict = isinstance(where[-1], str)
    value = data.draw(st.sampled_from([*values, GONE, *[MORE] * inside_dict]))
    spoilt_file = saved.with_name("spoilt.pt")
    torch.save(spoilt(content, where, value), spoilt_file)
    try:
        found = FewShotClassifier.load(spoilt_file).predict_proba(files)
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 600
        return
    np.testing.assert_allclose(found.sum(1), 1)
    assert where[0] not in ("members", "adapted"), "wrong parameters were taken"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"classifier": 99}, "has format 99, this version reads up to 1: a newer one made it"),
        ({"classifier": "x"}, "no checkpoint of this program"),
        ({"colour": 1}, r"it lacks \[\] and has \[colour\] beside"),
        ({"classes": ["b", "a"]}, "its classes is .* and not labels of one type, sorted"),
        ({"classes": list("abcd")}, "it has 4 classes of 3, and 2 adapted networks of 2"),
        ({"adapted": []}, "its adapted is .* not a list of dicts"),
        ({"preparation": None}, "its preparation is None and not binary or not"),
    ],
)
def test_what_is_wrong_is_named(saved, tmp_path, changed, words):
    torch.save(torch.load(saved, weights_only=True) | changed, tmp_path / "x.pt")
    with pytest.raises(UserError, match=words):
        FewShotClassifier.load(tmp_path / "x.pt")


def test_it_is_no_checkpoint_and_says_so(saved, capsys):
    with pytest.raises(UserError, match="own.pt is a network that engine.adapt adapted"):
        checkpoint.load(saved)
    assert evaluate.main([str(saved)]) == 2
    assert "give it to engine.predict, or name the run" in capsys.readouterr().err


def test_paths_of_another_machine_are_not_taken(saved, tmp_path):
    content = torch.load(saved, weights_only=True)
    content["config"] |= {"data": "/a", "cache": "/b", "run": "/c", "init": "/d"}
    torch.save(content, tmp_path / "given.pt")
    cfg = FewShotClassifier.load(tmp_path / "given.pt").fitted.cfg
    assert (cfg.data, cfg.cache, cfg.run, cfg.init) == (None,) * 4


def test_nothing_but_an_adapted_network_is_written_over(finished, fitted, saved, tmp_path):
    shutil.copy(finished / "latest.pt", tmp_path / "latest.pt")
    (tmp_path / "cat.pt").write_bytes(b"a picture")
    for name in ("latest.pt", "cat.pt"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"{name} is there and no adapted network"):
            fitted.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    shutil.copy(saved, tmp_path / "own.pt")
    fitted.save(tmp_path / "own.pt")
    assert adapted.is_classifier(tmp_path / "own.pt")


def test_labels_that_no_file_can_hold_are_refused(finished, files, tmp_path):
    fitted = FewShotClassifier(finished).fit(
        files, np.array([(1,)] * 3 + [(2,)] * 3 + [0], object)[:6]
    )
    with pytest.raises(UserError, match="labels of type tuple cannot be saved"):
        fitted.save(tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_a_full_disk_leaves_the_old_file_whole(fitted, tmp_path):
    with small_disk(tmp_path / "disk") as place:
        fitted.save(place / "own.pt")
        before = (place / "own.pt").read_bytes()
        (place / "filler").write_bytes(bytes(shutil.disk_usage(place).free))
        with pytest.raises(UserError, match="cannot write .*own.pt: No space left"):
            fitted.save(place / "own.pt")
        assert (place / "own.pt").read_bytes() == before
        assert sorted(file.name for file in place.iterdir()) == ["filler", "own.pt"]
