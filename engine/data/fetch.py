"""Downloads that resume, are checked, and appear under their final name only when whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from engine.errors import UserError, explained, say
from engine.files import make_folder

_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_MINI = "https://zenodo.org/records/7978538/files/"


@dataclass(frozen=True)
class Remote:
    name: str
    url: str
    size: int | None  # bytes; None: what the server says
    md5: str


FILES = {
    "omniglot": (
        Remote(
            "images_background.zip",
            _OMNIGLOT + "images_background.zip",
            None,
            "68d2efa1b9178cc56df9314c21c6e718",
        ),
        Remote(
            "images_evaluation.zip",
            _OMNIGLOT + "images_evaluation.zip",
            None,
            "6b91aef0f799c5bb55b94e3f2daec811",
        ),
    ),
    "mini": (
        Remote(
            "mini-imagenet-cache-train.pkl",
            _MINI + "mini-imagenet-cache-train.pkl",
            1_145_461_190,
            "ee4e80dc7b716f3ceec891d199b5277a",
        ),
        Remote(
            "mini-imagenet-cache-validation.pkl",
            _MINI + "mini-imagenet-cache-validation.pkl",
            292_661_258,
            "c1145a80890b88d54a67d6e0022d53a5",
        ),
        Remote(
            "mini-imagenet-cache-test.pkl",
            _MINI + "mini-imagenet-cache-test.pkl",
            353_647_539,
            "389b6c59d348b2e1ae9610f00a5e6724",
        ),
    ),
}
LICENCES = {
    "omniglot": "Omniglot: MIT licence, copyright 2015 Brenden Lake; keep the notice with the data",
    "mini": "mini-ImageNet: for non-commercial research only; do not redistribute",
}
_AGENT = "mamlpp"  # Zenodo refuses what looks like a browser
_BLOCK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 4
PAUSE = 2.0  # seconds before the second attempt, doubled for each further one


class _Interrupted(Exception):
    """The connection failed; what arrived is kept and another attempt may continue."""


def fetch(files: tuple[Remote, ...], folder: Path) -> None:
    """Downloads into ``folder``; files that are there and right are left alone.

    A partial download is kept as ``<name>.part`` and continued by the next call. Raises UserError
    when the server refuses, sends the wrong content or cannot be reached, and when a file of that
    name but another content is already there.
    """
    make_folder(folder, "in", "--to")
    with explained(
        f"cannot write in {folder}",
        "make room or name another folder with --to, and run this again: it continues where it "
        "stopped",
    ):
        for remote in files:
            _fetch_one(remote, folder)


def _fetch_one(remote: Remote, folder: Path) -> None:
    final, part = folder / remote.name, folder / f"{remote.name}.part"
    if final.exists():
        if not _is_right(final, remote):
            raise UserError(
                f"{final} is there but is not the file that {remote.url} should be (md5 "
                f"{remote.md5}); move it away to download it"
            )
        say(f"{final}: already here")
        return
    _complete(remote, part)
    if not _is_right(part, remote):
        size = part.stat().st_size
        part.unlink()
        raise UserError(
            f"{remote.url} sent {size:,} bytes whose size or md5 is not the expected one (md5 "
            f"{remote.md5}), so they were removed; run this again, or get the file elsewhere"
        )
    os.replace(part, final)


def _complete(remote: Remote, part: Path) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return _continue(remote, part)
        except _Interrupted as interruption:
            reason = interruption
    raise UserError(
        f"{remote.url}: {reason}, {ATTEMPTS} times; check the connection and run this again: it "
        "continues where it stopped"
    )


def _continue(remote: Remote, part: Path) -> None:
    """One request for what is missing of ``part``."""
    have = part.stat().st_size if part.exists() else 0
    if remote.size is not None and have >= remote.size:
        return
    headers = {"User-Agent": _AGENT} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(remote.url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is missing, or the file there is another one
            return
        if error.code in (408, 429) or error.code >= 500:
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from None
        raise UserError(f"{remote.url}: the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(getattr(error, "reason", error))) from None
    with response:
        if have and not _continues(response, have):
            have = 0
        _receive(response, remote, part, have)


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    """Whether the server sends the missing end, and not everything again."""
    span = response.headers.get("Content-Range", "")
    return response.status == 206 and span.replace("=", " ").startswith(f"bytes {have}-")


def _receive(
    response: http.client.HTTPResponse,
    remote: Remote,
    part: Path,
    have: int,
) -> None:
    length = response.headers.get("Content-Length")
    total = remote.size or (have + int(length) if length else None)
    if total and shutil.disk_usage(part.parent).free < total - have:
        raise UserError(
            f"{part.parent} has no room for the {total - have:,} bytes missing of {remote.name}; "
            "make room or name another folder with --to"
        )
    bar = tqdm(desc=remote.name, total=total, initial=have, unit="B", unit_scale=True)
    with open(part, "ab" if have else "wb") as file, bar:
        while block := _block(response):
            file.write(block)
            bar.update(len(block))
            have += len(block)
            if total and have > total:
                break  # not the file that was asked for: the check will say so
        file.flush()
        os.fsync(file.fileno())
    if total and have < total:
        raise _Interrupted(f"the connection ended after {have:,} of {total:,} bytes")


def _block(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from None


def _is_right(file: Path, remote: Remote) -> bool:
    if remote.size is not None and file.stat().st_size != remote.size:
        return False
    digest = hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == remote.md5
