"""The command lines for pictures of one's own, from folders to a table, CSV, JSON and a page."""

import base64
import csv
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from engine import FewShotClassifier, adapt, predict
from engine.errors import UserError
from tests.samples import write_zip
from tests.tiny import call, here, one_line


@pytest.fixture(scope="module")
def pets(images):
    """Two classes of three pictures."""
    folder = images.parent / "pets"
    for label, name in (("cat", "test0"), ("dog", "test1")):
        for n in range(3):
            (folder / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(images / "test" / name / f"{n}.png", folder / label)
    return folder


@pytest.fixture(scope="module")
def saved(finished, pets):
    file = pets.parent / "pets.pt"
    assert adapt.main([str(finished), str(pets), "-o", str(file)]) == 0
    return file


@pytest.fixture
def asked(images, tmp_path):
    """A folder of two pictures, one below it, and a file that is none."""
    folder = tmp_path / "asked"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(images / "test" / "test0" / "4.png", folder / "<b>&.png")
    shutil.copy(images / "test" / "test1" / "5.png", folder / "deep" / "two.png")
    (folder / "notes.txt").write_text("nothing")
    return folder


def test_adapted_and_asked_it_answers_as_the_class_does(
    finished, pets, saved, asked, capsys, tmp_path
):
    code, out, _ = here(adapt, [finished, pets, "-o", tmp_path / "pets.pt"], capsys)
    assert code == 0 and out.splitlines() == [
        f"adapted to 2 classes of {pets}: cat (3), dog (3)",
        f"saved in {tmp_path / 'pets.pt'}",
    ]
    paths = [asked / "<b>&.png", asked / "deep" / "two.png"]
    fitted = FewShotClassifier(finished).fit_folder(pets)
    assert fitted.notes_ == []
    found = fitted.predict_proba(paths)
    for argv in (
        [saved, asked],
        [finished, "--support", pets, asked],
        [saved, "--support", pets, asked],
    ):
        code, out, err = here(predict, argv, capsys)
        assert code == 0 and err == ""
        note, *rows = [line for line in out.splitlines() if not line.startswith("adapted to")]
        assert note.startswith(f"{asked}: left out: 1 files that are no images by their names")
        for row, path, p in zip(rows, paths, found, strict=True):
            cells = re.fullmatch(r"(.+?) +(cat|dog) ([\d.]+) %", row).groups()
            assert cells == (str(path), ["cat", "dog"][p.argmax()], f"{100 * p.max():.1f}")


def test_the_files_hold_every_digit_and_the_top(saved, asked, capsys, tmp_path):
    outputs = [f"--{form}={tmp_path / 'out'}.{form}" for form in ("csv", "json", "html")]
    code, out, _ = here(predict, [saved, asked, "--top", 5, *outputs], capsys)
    assert code == 0 and out.splitlines()[-1].endswith(
        "out.csv, " + ", ".join(str(tmp_path / f"out.{form}") for form in ("json", "html"))
    )
    paths = [str(asked / "<b>&.png"), str(asked / "deep" / "two.png")]
    found = FewShotClassifier.load(saved).predict_proba(paths)
    top = [sorted(zip(p.tolist(), ["cat", "dog"], strict=True), reverse=True) for p in found]
    with open(tmp_path / "out.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["path", "label", "probability", "label_2", "probability_2"]
    assert rows == [
        [path, first, str(p), second, str(q)]
        for path, ((p, first), (q, second)) in zip(paths, top, strict=True)
    ]
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["classes"] == ["cat", "dog"] and content["unreadable"] == []
    for entry, path, ((p, label), (q, other)) in zip(content["pictures"], paths, top, strict=True):
        assert (entry["path"], entry["label"], entry["probability"]) == (path, label, p)
        assert entry["top"] == [
            {"label": label, "probability": p},
            {"label": other, "probability": q},
        ]


def test_the_page_shows_the_pictures_and_needs_nothing_else(saved, asked, capsys, tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (200, 400, 4), np.uint8)
    Image.fromarray(big).save(asked / "wide.png")
    page = tmp_path / "page.html"
    assert here(predict, [saved, asked, "--html", page], capsys)[0] == 0
    text = page.read_text(encoding="utf-8")
    shown = [base64.b64decode(part) for part in re.findall(r"base64,([^\"]+)\"", text)]
    sizes = [Image.open(io.BytesIO(content)).size for content in shown]
    assert sizes == [(16, 16), (16, 16), (160, 80)]
    assert "&lt;b&gt;&amp;.png" in text and "<b>&.png" not in text
    assert "http" not in text and 'src="data:image/jpeg' in text
    assert len(re.findall(r"<b>(cat|dog)</b> \d+\.\d %", text)) == 3


def test_a_single_label_without_top_and_zip_archives(saved, asked, capsys, tmp_path):
    files = {f"in/{f.name}": f.read_bytes() for f in asked.rglob("*.png")}
    archive = write_zip(tmp_path / "asked.zip", files)
    table = tmp_path / "t.csv"
    code, _, _ = here(predict, [saved, archive, "--csv", table], capsys)
    head, *rows = table.read_bytes().decode().split("\r\n")
    assert code == 0 and head == "path,label,probability" and len(rows) == 3
    assert rows[0].startswith(f"{archive}:in/<b>&.png,")


def test_the_support_pictures_may_be_an_archive(finished, pets, saved, asked, capsys, tmp_path):
    files = {f"pets/{f.parent.name}/{f.name}": f.read_bytes() for f in pets.rglob("*.png")}
    archive = write_zip(tmp_path / "pets.zip", files)
    by_zip = here(predict, [finished, "--support", archive, asked / "deep"], capsys)
    assert by_zip[1].splitlines()[-1] == here(predict, [saved, asked / "deep"], capsys)[1].strip()


def test_pictures_that_cannot_be_read_are_all_named(saved, asked, capsys, tmp_path):
    (asked / "bad.png").write_bytes(b"no picture")
    argv = [saved, asked, asked / "none.png", "--json", tmp_path / "x.json"]
    code, _, err = here(predict, argv, capsys)
    assert code == 2
    one_line(err, "2 pictures cannot be read", "bad.png", "none.png", "--skip-unreadable")
    assert not (tmp_path / "x.json").exists()
    code, out, err = here(predict, [*argv, "--skip-unreadable"], capsys)
    content = json.loads((tmp_path / "x.json").read_text())
    assert (code, err, len(content["pictures"])) == (0, "", 2)
    assert "left out: 2 pictures that cannot be read" in out
    assert [("bad" in fault, "none" in fault) for fault in content["unreadable"]] == [
        *((True, False), (False, True))
    ]
    code, _, err = here(predict, [saved, asked / "bad.png", "--skip-unreadable"], capsys)
    assert code == 2
    one_line(err, "no picture to label")


def test_settings_of_the_loop_and_of_the_answer(finished, pets, asked, capsys):
    paths = [asked / "<b>&.png", asked / "deep" / "two.png"]
    for argv, options in [
        (["--eval-steps", 4], {"steps": 4}),
        (["--ensemble"], {"ensemble": True}),
        (["--norm-statistics", "running"], {"norm_statistics": "running"}),
        (["--protocol", "transductive"], {"transductive": True}),
        (["--backend", "plain", "--threads", 1], {"backend": "plain", "threads": 1}),
    ]:
        code, out, _ = here(predict, [finished, *argv, "--support", pets, *paths], capsys)
        p = FewShotClassifier(finished, **options).fit_folder(pets).predict_proba(paths)
        assert code == 0
        assert [float(n) for n in re.findall(r"([\d.]+) %", out)] == [
            float(f"{100 * row.max():.1f}") for row in p
        ]


def test_mistakes_are_one_line(finished, pets, saved, asked, capsys, tmp_path):
    picture, running = asked / "deep" / "two.png", ["--norm-statistics", "running"]
    (tmp_path / "folder.csv").mkdir()
    for module, argv, *words in [
        (
            predict,
            [finished, picture],
            "knows no classes of yours yet",
            "--support",
            "engine.adapt",
        ),
        (predict, [saved], "IMAGES"),
        (predict, [saved, picture, "--top", 0], "--top is 0", ">= 1"),
        (predict, [saved, picture, "--protocol", "inductiv"], "--protocol is 'inductiv': did you"),
        (predict, [saved, picture, "--eval-steps", 3], "--eval-steps is of the adaptation"),
        (predict, [saved, picture, "--ensemble"], "--ensemble is of the adaptation"),
        (
            predict,
            [finished, picture, "--support", pets, *running, "--protocol", "transductive"],
            "--protocol is transductive with --norm-statistics running",
        ),
        (predict, [saved, picture, "--csv", picture], "--csv is", "a picture's name"),
        (predict, [saved, picture, "--html", "none/x.html"], "cannot write none/x.html"),
        (predict, [saved, picture, "--csv", tmp_path / "folder.csv"], "is no regular file"),
        (predict, [saved, picture, "--csv", saved], "a name of a file of a run"),
        (predict, [saved, picture, "--csv", "x.y", "--json", "x.y"], "give each its own"),
        (predict, [saved, tmp_path / "folder.csv"], "holds no picture"),
        (predict, [tmp_path / "none", picture], "no checkpoint at"),
        (predict, [saved, picture, "--suport", 3], "no flag --suport: did you mean --support?"),
        (predict, [saved, picture, "--support", picture], "two.png is neither a folder"),
        (adapt, [finished, pets], "-o"),
        (adapt, [finished, pets, "-o", picture], "-o is", "ends in .pt"),
        (adapt, [finished, pets / "cat", "-o", tmp_path / "x.pt"], "no two folders of pictures"),
        (adapt, [finished, tmp_path / "none", "-o", tmp_path / "x.pt"], "cannot read", "none"),
        (adapt, [finished, pets, "-o", tmp_path / "x.pt", "--device", "tpu"], "--device", "cpu"),
    ]:
        code, _, err = here(module, argv, capsys)
        assert code == 2
        one_line(err, *words)
    assert not (tmp_path / "x.pt").exists()


def test_more_classes_than_outputs_say_what_to_do(finished, pets, capsys, tmp_path):
    many = shutil.copytree(pets, tmp_path / "many")
    for label in ("cow", "sow"):
        shutil.copytree(pets / "cat", many / label)
    words = f"error: {many} has 4 classes, the network 3 outputs", "--ways 4", "--init"
    for module, argv in [
        (adapt, [finished, many, "-o", tmp_path / "x.pt"]),
        (predict, [finished, "--support", many, pets]),
    ]:
        code, _, err = here(module, argv, capsys)
        assert code == 2
        one_line(err, *words)
    with pytest.raises(UserError, match="many has 4 classes"):
        FewShotClassifier(finished).fit_folder(many)


def test_names_keep_their_bytes(saved, asked, capsys, tmp_path):
    odd = os.fsdecode(bytes(asked / "deep") + b"/\xff\n.png")
    shutil.copy(asked / "deep" / "two.png", odd)
    outputs = [f"--{form}={tmp_path / 'out'}.{form}" for form in ("csv", "json", "html")]
    code, out, _ = here(predict, [saved, odd, *outputs], capsys)
    assert code == 0 and "/\\udcff\\n.png" in out
    assert b"/\xff\n.png" in (tmp_path / "out.csv").read_bytes()
    assert json.loads((tmp_path / "out.json").read_text())["pictures"][0]["path"] == odd
    assert "/\\udcff\\n.png" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_as_a_process_of_its_own(saved, asked):
    code, out, err = call("engine.predict", saved, asked / "deep" / "two.png")
    assert (code, err) == (0, "") and re.search(r"two\.png  (cat|dog) [\d.]+ %$", out.strip())
    code, out, err = call("engine.predict", saved, asked / "none.png")
    assert code == 2
    one_line(err, "1 picture cannot be read", "none.png")
