"""The Triton backend without a GPU: its kernels in Triton's interpreter, and its absence."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import kernels
from tests.tiny import ROOT

ABSENT = """
import sys
sys.modules["triton"] = None
import torch, kernels
x, w = torch.ones(1, 1, 1, 3, 3), torch.ones(1, 1, 1, 3, 3)
kernels.task_conv2d(x, w)
try:
    with kernels.use("triton"):
        kernels.task_conv2d(x, w)
except kernels.BackendError as error:
    print(error)
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_in_the_interpreter() -> None:
    # Triton looks at the variable once, when it is imported: hence the process. Others of torch's
    # threads only wait for so small tensors.
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted", **environment)
    assert run.returncode == 0, run.stdout


def test_without_triton_kernels_work_and_a_request_for_it_says_so() -> None:
    run = python("-c", ABSENT)
    assert run.returncode == 0, run.stdout
    assert run.stdout.startswith("triton: Triton does not load: ")
    assert run.stdout.endswith("; ask for 'auto' to let dispatch choose\n")
    assert run.stdout.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_a_cpu_is_refused_unless_interpreted(monkeypatch) -> None:
    refused = {
        False: (torch.device("cpu"), torch.device("cuda"), "a GPU, not on cpu"),
        True: (torch.device("cuda"), torch.device("cpu"), "a CPU, as TRITON_INTERPRET=1 is set, "),
    }
    with kernels.use("triton"):
        for interpreted, (elsewhere, here, reason) in refused.items():
            monkeypatch.setattr("kernels.triton.interpreted", interpreted)
            assert f"triton runs on {reason}" in kernels.refusal("tf32", elsewhere)
            assert kernels.refusal("tf32", here) is None
