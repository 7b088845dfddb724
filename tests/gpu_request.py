"""A request to the GPU benchmark, for a dry run."""

import time
from pathlib import Path

import torch

from bench.gpu.progress import Progress, Request
from engine.runs.interrupt import Interrupt

CPU = torch.device("cpu")


def request_in(folder: Path) -> Request:
    saved = Progress(folder / "made.json", {"name": "made", "device": "cpu", "quick": True})
    later = time.monotonic() + 600
    return Request("made", CPU, True, 1.0, None, Interrupt(), saved, later, lambda: "a table")
