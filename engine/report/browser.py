"""A Chromium that is installed here, and what it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine.errors import UserError, explained
from engine.files import replace_file

NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "chromium-headless-shell", "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)  # fmt: skip
_PATIENCE = 120.0  # seconds


def find() -> str | None:
    """The first of the names that there is."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def required() -> str:
    """Raises UserError when there is none."""
    if (found := find()) is None:
        raise UserError(
            "--pdf needs Chromium or Chrome, and there is none on PATH: install one, or leave "
            "--pdf out and print the page from any browser"
        )
    return found


def flags(profile: str) -> list[str]:
    """Without a window, and with nothing of its user's."""
    of_root = ["--no-sandbox"] if getattr(os, "geteuid", int)() == 0 else []
    return ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}", *of_root]


def print_pdf(page: Path, output: Path) -> None:
    """Raises UserError when there is no Chromium, or it fails."""
    program = required()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "page.pdf"
        command = [program, *flags(folder), "--no-pdf-header-footer", f"--print-to-pdf={made}"]
        try:
            done = subprocess.run(
                [*command, page.resolve().as_uri()], capture_output=True, timeout=_PATIENCE
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{program} did not print {page}: {error}; leave --pdf out") from error
        if done.returncode or not made.exists():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            why = " ".join([f"exit code {done.returncode}", *last])
            raise UserError(
                f"{program} did not print {page} ({why:.200}); leave --pdf out, and print the page "
                "from any browser"
            )
        content = made.read_bytes()
    with explained(f"cannot write {output}", "make room there, or name another file"):
        replace_file(output, content)
