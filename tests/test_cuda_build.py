"""What nvcc makes of the CUDA kernels: no warnings, and no registers that spill into memory."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which(os.environ.get("CUDACXX", "nvcc"))
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TARGETS = {"sm_80": "compute_80", "sm_90a": "compute_90a"}
# Of a block of 256 threads, two of which then fit the 65,536 registers of a multiprocessor.
MOST_REGISTERS = 128

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc")


@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.stem)
def test_kernels_keep_to_their_registers(source: Path, tmp_path: Path) -> None:
    targets = [f"-gencode=arch={arch},code={code}" for code, arch in TARGETS.items()]
    run = subprocess.run(
        [NVCC, "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
        + [*targets, "-Xptxas=-v", "-c", str(source), "-o", str(tmp_path / "kernels.o")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    log = run.stdout + run.stderr
    compiled = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", log)
    assert {target for _, target in compiled} == set(TARGETS)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    registers = [int(used) for used in re.findall(r"Used (\d+) registers", log)]
    assert len(frames) == len(registers) == len(compiled)
    assert set(frames) == {("0", "0")}
    assert "cumulative stack size" not in log
    assert max(registers) <= MOST_REGISTERS
