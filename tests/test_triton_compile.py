"""The Triton kernels compile ahead of time, within a GPU's limits, on a machine without one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slow import chosen

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def environment() -> dict[str, str]:
    """Of a process that compiles: Triton decides when it is imported whether it interprets."""
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


@pytest.mark.parametrize("arch", chosen(["80", "90"], ["90"]))
def test_kernels_compile_within_the_limits_of_either_gpu(arch, environment):
    """A launch of each, in every precision; `python -m tests.triton_aot` compiles all of them."""
    triton = pytest.importorskip("triton", reason="compiling kernels needs triton")
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    if not (tools / "cuobjdump").exists():
        pytest.skip(f"reading machine code needs cuobjdump, which is not in {tools}")
    command = [sys.executable, "-m", "tests.triton_aot", "--part", "--arch", arch]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (
        "\n".join(line for line in (done.stdout + done.stderr).splitlines() if "!!" in line)
        or done.stderr
    )
    sources = (ROOT / "kernels/triton").glob("*.py")
    kernels = {k for s in sources for k in re.findall(r"def (\w+_kernel)\(", s.read_text())}
    assert set(re.findall(rf"^sm_{arch} (\w+)", done.stdout, re.MULTILINE)) == kernels
    products = re.findall(r"^sm_\d+ (conv_\w+) .*PRECISION=(\w+)", done.stdout, re.MULTILINE)
    assert len(set(products)) == 3 * 4  # kernels, precisions
