"""Fixtures for the files that tests read but the repository does not hold."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
FOLDERS = {
    "GOLDEN_DIR": ("golden", "golden meta-gradients of the reference implementation"),
    "DATA_DIR": ("data", "Omniglot and Caltech archives"),
}


def shared_folder(variable: str) -> Path:
    """Folder that the environment variable names, or its default beside the checkout."""
    return Path(os.environ.get(variable) or SHARED / FOLDERS[variable][0])


def _existing(variable: str) -> Path:
    folder = shared_folder(variable)
    if not folder.is_dir():
        pytest.skip(f"no {FOLDERS[variable][1]} in {folder}; set {variable} to their folder")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return _existing("GOLDEN_DIR")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return _existing("DATA_DIR")
