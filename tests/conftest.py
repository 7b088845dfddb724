"""Fixtures for the files that tests read but the repository does not hold."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
FOLDERS = {"GOLDEN_DIR": "golden", "DATA_DIR": "data"}


def shared_folder(variable: str) -> Path:
    """Folder that the environment variable names, or its default beside the checkout."""
    return Path(os.environ.get(variable) or SHARED / FOLDERS[variable])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = shared_folder("DATA_DIR")
    if not folder.is_dir():
        pytest.skip(f"no Omniglot and Caltech archives in {folder}; set DATA_DIR to their folder")
    return folder
