"""Downloads from a server of our own that is as unreliable as asked; the data command line."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import threading
from dataclasses import dataclass, field, replace

import pytest

from engine.data import __main__ as command
from engine.data import fetch
from engine.data.fetch import Remote
from engine.errors import UserError
from tests.samples import png_header, tree_files, write_files, write_pickles
from tests.tiny import call

CONTENT = bytes(range(256)) * 4000
HALF = len(CONTENT) // 2


@dataclass
class Behaviour:
    content: bytes = CONTENT
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes after which each answer breaks off
    codes: list[int] = field(default_factory=list)  # instead of answers
    length: bool = True
    requests: list[tuple[str | None, str | None]] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        behaviour: Behaviour = self.server.behaviour
        wanted = self.headers["Range"]
        behaviour.requests.append((wanted, self.headers["User-Agent"]))
        if behaviour.codes:
            self.send_error(behaviour.codes.pop(0))
            return
        first = int(wanted[6:-1]) if wanted and behaviour.ranges else 0
        total = len(behaviour.content)
        if first >= total:
            self.send_error(416)
            return
        self.send_response(206 if wanted and behaviour.ranges else 200)
        if wanted and behaviour.ranges:
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if behaviour.length:
            self.send_header("Content-Length", str(total - first))
        self.end_headers()
        part = behaviour.content[first:]
        self.wfile.write(part[: behaviour.cuts.pop(0)] if behaviour.cuts else part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.behaviour = Behaviour()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def remote(server):
    url = f"http://127.0.0.1:{server.server_port}/data.zip"
    return Remote("data.zip", url, len(CONTENT), hashlib.md5(CONTENT).hexdigest())


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def ranges(server):
    return [wanted for wanted, _ in server.behaviour.requests]


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_is_downloaded_once(server, remote, tmp_path, known, length, capsys):
    server.behaviour.length = length
    remote = replace(remote, size=remote.size if known else None)
    for _ in range(2):
        fetch.fetch((remote,), tmp_path / "new")
    assert (tmp_path / "new/data.zip").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["data.zip"]
    assert server.behaviour.requests == [(None, "mamlpp")]
    captured = capsys.readouterr()
    assert "already here" in captured.out
    assert "data.zip: 100%" in captured.err or not (known or length)


def test_a_partial_file_is_continued(server, remote, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(CONTENT[:HALF])
    fetch.fetch((remote,), tmp_path)
    assert ranges(server) == [f"bytes={HALF}-"]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT
    assert names(tmp_path) == ["data.zip"]


def test_a_broken_connection_is_taken_up_again(server, remote, tmp_path):
    server.behaviour.cuts = [HALF, 1000]
    fetch.fetch((remote,), tmp_path)
    assert ranges(server) == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


def test_what_arrived_is_kept_when_the_connection_stays_broken(server, remote, tmp_path):
    server.behaviour.cuts = [1000] * fetch.ATTEMPTS
    with pytest.raises(UserError, match="4 times; check the connection and run this again"):
        fetch.fetch((remote,), tmp_path)
    assert names(tmp_path) == ["data.zip.part"]
    assert (tmp_path / "data.zip.part").read_bytes() == CONTENT[: 1000 * fetch.ATTEMPTS]


def test_a_server_without_ranges_sends_everything_again(server, remote, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(b"x" * HALF)
    server.behaviour.ranges = False
    fetch.fetch((remote,), tmp_path)
    assert (tmp_path / "data.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_a_complete_partial_file_is_only_checked(server, remote, tmp_path, known):
    (tmp_path / "data.zip.part").write_bytes(CONTENT)
    fetch.fetch((replace(remote, size=remote.size if known else None),), tmp_path)
    assert ranges(server) == ([] if known else [f"bytes={len(CONTENT)}-"])
    assert names(tmp_path) == ["data.zip"]


@pytest.mark.parametrize(
    "wrong", [CONTENT[:-1] + b"x", CONTENT[:-1], CONTENT + b"x", b"<html>", b"x" * HALF]
)
@pytest.mark.parametrize("known", [True, False])
def test_wrong_content_never_gets_the_name(server, remote, tmp_path, wrong, known):
    server.behaviour.content = wrong
    remote = replace(remote, size=remote.size if known else None)
    with pytest.raises(UserError, match="run this again"):
        fetch.fetch((remote,), tmp_path)
    assert "data.zip" not in names(tmp_path)


def test_a_partial_file_of_other_content_is_removed(server, remote, tmp_path):
    (tmp_path / "data.zip.part").write_bytes(b"x" * HALF)
    with pytest.raises(UserError, match="were removed; run this again"):
        fetch.fetch((remote,), tmp_path)
    assert names(tmp_path) == []
    fetch.fetch((remote,), tmp_path)
    assert names(tmp_path) == ["data.zip"]


def test_another_file_of_that_name_is_left_alone(server, remote, tmp_path):
    (tmp_path / "data.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match="move it away"):
        fetch.fetch((remote,), tmp_path)
    assert (tmp_path / "data.zip").read_bytes() == b"mine"
    assert server.behaviour.requests == []


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(server, remote, tmp_path):
    server.behaviour.codes = [503, 429]
    fetch.fetch((remote,), tmp_path / "a")
    server.behaviour.codes = [403]
    with pytest.raises(UserError, match="the server answers 403 Forbidden"):
        fetch.fetch((remote,), tmp_path / "b")
    assert names(tmp_path / "b") == []


def test_no_server_is_one_clear_line(remote, server, tmp_path):
    closed = replace(remote, url="http://127.0.0.1:1/data.zip")
    with pytest.raises(UserError, match="refused, 4 times"):
        fetch.fetch((closed,), tmp_path)


def test_a_file_where_the_folder_would_be_is_told(remote, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="in .*/file: it is a file, no folder; give another --to"):
        fetch.fetch((remote,), tmp_path / "file")


def test_a_full_disk_is_noticed_before_and_while_writing(server, remote, tmp_path, monkeypatch):
    usage = fetch.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"has no room for the 1,024,000 bytes .* --to"):
        fetch.fetch((remote,), tmp_path)
    monkeypatch.undo()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        fetch.fetch((remote,), tmp_path)
    assert names(tmp_path) == ["data.zip.part"]


def test_the_table_names_the_published_files():
    assert [r.name for r in fetch.FILES["omniglot"]] == [
        "images_background.zip",
        "images_evaluation.zip",
    ]
    assert sum(r.size for r in fetch.FILES["mini"]) == 1_791_769_987
    for remotes in fetch.FILES.values():
        for r in remotes:
            assert r.url.startswith("https://") and r.url.endswith("/" + r.name)
            assert len(bytes.fromhex(r.md5)) == 16


def test_the_fetch_command(server, remote, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fetch.FILES, "omniglot", (remote,))
    monkeypatch.chdir(tmp_path)
    assert command.main(["fetch", "omniglot"]) == 0
    assert "MIT" in capsys.readouterr().out
    assert names(tmp_path / "datasets/omniglot") == ["data.zip"]
    server.behaviour.codes = [404]
    assert command.main(["fetch", "omniglot", "--to", "else"]) == 2
    assert capsys.readouterr().err.startswith("error: http://127.0.0.1")


def test_the_info_command(tmp_path):
    write_files(tmp_path / "tree", tree_files())
    code, out, err = call("engine.data", "info", tmp_path / "tree")
    assert (code, err) == (0, "")
    assert "images 12x12" in out
    assert "train         2 classes,      6 images, 3 a class" in out
    assert f"--dataset folder --data {tmp_path / 'tree'}" in out


def test_info_tells_kinds_apart(tmp_path, data_dir, capsys):
    (tmp_path / "mini").mkdir()
    assert command.main(["info", str(write_pickles(tmp_path / "mini"))]) == 0
    out = capsys.readouterr().out
    assert "pickles; images in arrays" in out and "--dataset folder" in out
    assert command.main(["info", str(data_dir / "omniglot" / "images_background.zip")]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 sets" in out and "964 classes, 19,280 images, 20 a class" in out


@pytest.mark.parametrize(
    ("path", "message"),
    [("none", "none does not exist"), ("empty", "nothing recognised"), ("x.txt", "neither")],
)
def test_info_says_when_it_knows_nothing(path, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("x")
    assert command.main(["info", str(tmp_path / path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole image (an empty file)"),
        (png_header(12, 12)[:20], "is not a whole image"),
        (png_header(9000, 9000), "is 9000x9000: too large"),
        (png_header(10_000, 10_000), "is too large"),
        (png_header(60_000, 60_000), "is too large"),
    ],
    ids=["empty", "cut", "large", "larger", "bomb"],
)
def test_info_names_a_broken_image(content, message, tmp_path, capsys):
    path = write_files(tmp_path / "tree", tree_files() | {"train/train0/0.png": content})
    assert command.main(["info", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path / 'train/train0/0.png'} ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["required: command"]),
        (["find"], ["'find'", "fetch", "info"]),
        (["fetch"], ["required: dataset"]),
        (["fetch", "cifar"], ["'cifar'", "mini"]),
        (["fetch", "mini", "--to"], ["--to", "expected one argument"]),
        (["fetch", "mini", "--to", ""], ["--to", "is empty"]),
        (["info", ""], ["path", "is empty"]),
        (["info", "~nobody-at-all"], ["~nobody-at-all", "there is no user nobody-at-all"]),
        (["info", "x", "--unknown"], ["--unknown"]),
    ],
)
def test_a_wrong_data_command_is_one_line(argv, words, capsys):
    assert command.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "--help" in err
    assert all(word in err for word in words), err


def test_an_interrupted_download_says_how_to_continue(monkeypatch, capsys):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command, "fetch", interrupted)
    assert command.main(["fetch", "mini"]) == 130
    assert "Ctrl-C: stopped; the same command continues\n" in capsys.readouterr().err
