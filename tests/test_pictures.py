"""Pictures of one's own: the forms that a program and a command line may give them in."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from engine.data import omniglot
from engine.data.images import Unreadable
from engine.data.pictures import asked, labelled, prepared
from engine.data.preparation import Preparation
from engine.errors import UserError
from tests.samples import decode, encoded, write_files, write_zip

RGB, GREY = Preparation.of("folder", 12, 3), Preparation.of("folder", 12, 1)
INK = Preparation.of("omniglot", 28, 1)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


@pytest.fixture
def colours() -> np.ndarray:
    return noise(5, 12, 12, 3)


def test_every_form_of_the_same_pictures_is_the_same(colours, tmp_path):
    names = [f"{n}.png" for n in range(5)]
    write_files(tmp_path, {n: encoded(c) for n, c in zip(names, colours, strict=True)})
    paths = [tmp_path / name for name in names]
    opened = [Image.open(path) for path in paths]
    tall = colours.transpose(0, 3, 1, 2)
    for x in (
        *(paths, tuple(map(str, paths)), np.array(list(map(str, paths))), iter(paths)),
        *(np.array(paths, object)[:, None], opened, [Image.fromarray(c) for c in colours]),
        *(colours, colours.astype(np.int64), colours / 255, (colours / 255).astype(np.float32)),
        *(tall, torch.from_numpy(tall), torch.from_numpy(tall).double() / 255, list(tall)),
        *(torch.from_numpy(colours), [paths[0], opened[1], colours[2], tall[3], colours[4] / 255]),
        np.concatenate([colours, np.full((5, 12, 12, 1), 255, np.uint8)], -1),
    ):
        assert np.array_equal(prepared(x, RGB), colours)
    for image in opened:
        image.close()


def test_grey_and_other_sizes_are_brought_to_the_network_s():
    grey = noise(5, 12, 12)
    assert np.array_equal(prepared(grey, GREY)[..., 0], grey)
    assert np.array_equal(prepared(grey, RGB), np.repeat(grey[..., None], 3, -1))
    assert np.array_equal(prepared(list(grey), GREY), prepared(grey[..., None], GREY))
    assert np.array_equal(prepared(grey > 99, GREY)[..., 0], np.where(grey > 99, 255, 0))
    large = noise(2, 30, 20, 3)
    expected = [decode(encoded(image), "x", 12, 3) for image in large]
    assert np.array_equal(prepared(large, RGB), np.stack(expected))


def test_what_a_resampling_added_is_cut_off_and_black_and_white_is_so_too():
    ramp = np.linspace(0, 1, 144, dtype=np.float32).reshape(1, 12, 12)
    for top in (1.0000001, 1.05):
        made = prepared((ramp * 1.1 - 0.04).clip(max=top), GREY)[0, ..., 0]
        assert np.array_equal(made, np.rint((ramp[0] * 1.1 - 0.04).clip(0, 1) * np.float32(255)))
    ink = (noise(2, 12, 12) > 99).astype(np.uint8)
    assert np.array_equal(prepared(ink, GREY), prepared(ink * 255, GREY))
    half = torch.from_numpy(noise(2, 12, 12) / 255).bfloat16()
    assert np.array_equal(prepared(half, GREY), prepared(half.float(), GREY))


def test_alpha_orientation_and_depth_as_files_in_training(tmp_path):
    clear = noise(12, 12, 4)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(12, 12, 3)).save(turned, "PNG", exif=exif)
    deep = io.BytesIO()
    Image.fromarray(noise(12, 12).astype(np.uint16) << 4).save(deep, "PNG")
    for content in (encoded(clear), turned.getvalue(), deep.getvalue()):
        image = Image.open(io.BytesIO(content))
        assert np.array_equal(prepared([image], RGB)[0], decode(content, "x", 12, 3))
    assert np.array_equal(prepared(clear[None], RGB)[0], decode(encoded(clear), "x", 12, 3))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ("one.png", r"one picture \(a path\): give a list"),
        (Image.new("RGB", (3, 3)), r"one picture \(of type Image\)"),
        (np.zeros((12, 12, 3), np.uint8), r"\[12, 12, 3\], which is one picture: give X\[None\]"),
        (np.zeros((12, 9, 1), np.uint8), r"\[12, 9, 1\], which is one picture: give X\[None\]"),
        (torch.zeros(2, 9, 9).to_sparse(), r"X is a sparse tensor: give X.to_dense\(\)"),
        (np.zeros((3, 12, 12), np.uint8), r"\[3, 12, 12\]: one picture or 3 grey ones\?"),
        (np.zeros((12, 12), np.uint8), "one picture"),
        (np.zeros((2, 3, 9, 3), np.uint8), r"\[N, H, W, C\] or \[N, C, H, W\]\?"),
        (np.zeros((2, 5, 9, 7), np.uint8), r"\[2, 5, 9, 7\]: give"),
        (np.zeros(7), r"an array \[7\]: give"),
        ([np.zeros((2, 2, 2, 2))], r"X\[0\] is an array \[2, 2, 2, 2\]: a picture is"),
        (np.full((1, 9, 9), 1.5), "from 1.5 to 1.5 of float64: .*before any normalisation"),
        (np.full((1, 9, 9), 34.0), "from 34 to 34 of float64: give whole numbers of an integer"),
        (np.full((1, 9, 9), -1), "from -1 to -1 of int64"),
        (np.full((1, 9, 9), 256), "from 256 to 256 of int64: give whole numbers 0 to 255, or"),
        (np.full((1, 9, 9), np.nan), "from nan to nan"),
        (np.zeros((1, 9, 9), complex), "complex128: give whole numbers"),
        (np.zeros((1, 0, 9), np.uint8), "it has no pixels"),
        ([], "holds no picture"),
        (7, "of type int: give a list of paths"),
        ([b"x"], r"X\[0\] is of type bytes: give a path"),
        ([[1, 2]], r"X\[0\] is of type list"),
        (np.array([["a", "b"]]), r"an array \[1, 2\] of paths"),
    ],
)
def test_what_is_no_list_of_pictures_is_one_line(x, words):
    with pytest.raises(UserError, match=words):
        prepared(x, RGB)


def test_files_that_are_no_pictures_are_named_all_at_once(tmp_path):
    write_files(tmp_path, {"a.png": encoded(noise(9, 9, 3)), "b.png": b"not", "c.png": b""})
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "none.png", "", "a\0b")]
    with pytest.raises(Unreadable) as caught:
        prepared(paths, RGB)
    words = ("b.png is not a whole", "c.png is not a whole image (an empty", "none.png (No such")
    assert len(caught.value.faults) == 5
    assert all(word in str(caught.value) for word in (*words, "is a folder", "null"))


def drawn(side: int, width: int, ink: int = 0, paper: int = 255) -> Image.Image:
    """A character of strokes, the same at any size."""
    image = Image.new("L", (side, side), paper)
    line = [(0.25, 0.2), (0.7, 0.25), (0.35, 0.75), (0.75, 0.7)]
    ImageDraw.Draw(image).line([(x * side, y * side) for x, y in line], fill=ink, width=width)
    return image


def test_a_drawing_of_omniglot_is_what_it_is_in_training(data_dir):
    with zipfile.ZipFile(data_dir / "omniglot" / "images_evaluation.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")][::401]
        contents = [archive.read(name) for name in names]
    assert len(contents) > 30
    for content in contents:
        expected = omniglot._decode(content, "x", INK)[..., 0]
        assert np.array_equal(INK.decode(content, "x")[..., 0], expected)
        assert np.array_equal(prepared(expected[None], INK)[0, ..., 0], expected)
        assert np.array_equal(prepared(expected[None] / 1.0, INK)[0, ..., 0], expected)


def test_ink_on_paper_is_told_apart_whatever_the_photo():
    """Large, grey, noisy, white on black, and not square: nearly the pixels of the drawing."""
    expected = INK.array(drawn(105, 4))[..., 0]
    assert 20 < (expected == 0).sum() < 150 and {*np.unique(expected)} == {0, 1}
    photo = drawn(1000, 38, ink=70, paper=190).filter(ImageFilter.GaussianBlur(3))
    speckled = np.asarray(photo).astype(int) + np.random.default_rng(0).normal(0, 8, (1000, 1000))
    photo = Image.fromarray(speckled.clip(0, 255).astype(np.uint8))
    wide = Image.new("L", (1400, 1000), 190)
    wide.paste(photo.crop((200, 100, 800, 850)), (400, 100))
    square = Image.new("L", (1400, 1400), 190)
    square.paste(wide, (0, 200))
    board = drawn(1000, 38, ink=230, paper=20)
    for image in (photo, board, photo.convert("RGB"), drawn(210, 8)):
        found = INK.array(image)[..., 0]
        assert (found != expected).mean() < 0.02
    assert np.array_equal(INK.array(wide), INK.array(square))


def test_paper_without_ink_is_paper():
    for image in (Image.new("L", (300, 300), 140), Image.new("L", (50, 80), 0)):
        assert INK.array(image).min() == 1
    assert prepared(np.full((1, 28, 28), 0.6), INK).min() == 1


def own(classes: dict[str, int]) -> dict[str, bytes]:
    image = encoded(noise(9, 9, 3))
    return {f"{name}/{n}.png": image for name, count in classes.items() for n in range(count)}


def test_the_class_folders_of_a_folder_or_archive(tmp_path):
    files = own({"cat": 2, "dog/young": 3, "dog": 1}) | {"cat/notes.txt": b"", "x.png": b""}
    write_files(tmp_path / "pets", files)
    write_zip(tmp_path / "pets.zip", {f"mine/pets/{name}": c for name, c in files.items()})
    for place in ("pets", "pets.zip"):
        found = labelled(tmp_path / place)
        assert found.labels == ["cat"] * 2 + ["dog"] * 4
        assert [p.where.rpartition("pets/")[2] for p in found.pictures][:3] == [
            *("cat/0.png", "cat/1.png", "dog/0.png")
        ]
        assert prepared(found.pictures, RGB).shape == (6, 12, 12, 3)
        assert any("1 images in no class folder" in n and "x.png" in n for n in found.notes)
        assert any("no images by their names" in n and "notes.txt" in n for n in found.notes)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (own({"cat": 2}), "no two folders of pictures: give each class its own"),
        ({"a.txt": b""}, "no two folders"),
        (own({"cat": 1, "dog": 1}) | {"cow/a.txt": b""}, "1 classes without a picture: cow"),
        (own({"train/cat": 1, "test/dog": 1}), "holds the splits .*train.*: name a folder"),
    ],
)
def test_a_folder_that_holds_no_classes_says_what_to_do(files, words, tmp_path):
    with pytest.raises(UserError, match=words):
        labelled(write_files(tmp_path / "pets", files))


def test_files_folders_and_archives_are_asked_in_order(tmp_path):
    files = {"b.png": encoded(noise(9, 9, 3)), "deep/a.JPG": b"", "deep/z.txt": b"", ".x.png": b""}
    write_files(tmp_path / "there", files)
    write_zip(tmp_path / "more.ZIP", files)
    bare = tmp_path / "there" / "deep" / "z.txt"
    pictures, notes = asked([bare, tmp_path / "more.ZIP", tmp_path / "there", tmp_path / "no.png"])
    assert [picture.where.removeprefix(f"{tmp_path}/") for picture in pictures] == [
        *("there/deep/z.txt", "more.ZIP:b.png", "more.ZIP:deep/a.JPG"),
        *("there/b.png", "there/deep/a.JPG", "no.png"),
    ]
    assert len(notes) == 2 and all(
        "1 files that are no images" in n and "z.txt" in n for n in notes
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no picture, by the names of its 0 files"):
        asked([tmp_path / "empty"])
    with pytest.raises(UserError, match="cannot read .*none.zip"):
        asked([tmp_path / "none.zip"])


def test_one_dark_picture_among_arrays_is_not_brightened():
    dark, bright = np.zeros((12, 12, 3), np.uint8), noise(12, 12, 3)
    dark[::2] = 1
    for x in (np.stack([dark, bright]), [dark, bright]):
        assert np.array_equal(prepared(x, RGB), np.stack([dark, bright]))
    assert np.array_equal(prepared([dark], RGB)[0], dark * 255)  # of black and white alone


def test_a_zip_whose_names_are_utf_8_without_saying_so_has_the_labels_of_the_folder(tmp_path):
    files = {
        f"{name}/{i}.png": encoded(noise(12, 12, 3)) for name in ("Café", "Tee") for i in (0, 1)
    }
    write_files(tmp_path / "folder", files)
    write_zip(tmp_path / "as-mac.zip", files)
    content = (tmp_path / "as-mac.zip").read_bytes()
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # where a member's flags are
        parts = content.split(mark)
        flags = [p[: at - 4] + bytes([p[at - 4], p[at - 3] & ~8]) + p[at - 2 :] for p in parts[1:]]
        content = mark.join([parts[0], *flags])
    (tmp_path / "as-mac.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "as-mac.zip") as archive:
        assert not any(m.flag_bits & 0x800 for m in archive.infolist())
    assert labelled(tmp_path / "as-mac.zip").labels == labelled(tmp_path / "folder").labels


def test_labels_that_are_shown_alike_are_refused_and_have_one_form(tmp_path):
    for name in ("Café", "Cafe\u0301", "Tee"):
        write_files(tmp_path / name, {"1.png": encoded(noise(12, 12, 3))})
    with pytest.raises(UserError, match="differ in the form of letters alone; make them one"):
        labelled(tmp_path)
    (tmp_path / "Café" / "1.png").unlink()
    (tmp_path / "Café").rmdir()
    assert labelled(tmp_path).labels == ["Café", "Tee"]


def test_pictures_deeper_than_their_class_are_told_with_an_example(tmp_path):
    names = ["a/b/1.png", "a/c/1.png", "d/e/1.png"]
    write_files(tmp_path, {name: encoded(noise(12, 12, 3)) for name in names})
    note = "3 images lie in folders below their class, as a/b/1.png in a"
    assert labelled(tmp_path).notes[0] == note


def test_thumbnails_of_a_network_drive_are_no_pictures(tmp_path):
    names = ["a/1.png", "b/1.png", "a/@eaDir/1.png/THUMB.jpg", "$RECYCLE.BIN/x/1.png"]
    write_files(tmp_path, {name: encoded(noise(12, 12, 3)) for name in names})
    assert labelled(tmp_path).labels == ["a", "b"]
