"""The compiled module's report, and `kernels.native` with and without it."""

import platform
from pathlib import Path

import pytest

from kernels import native

FLAGS = {  # our name -> Linux's name in /proc/cpuinfo, which lists what the kernel enabled
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512bf16": "avx512_bf16",
    "amx_tile": "amx_tile",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
}
NEEDS = {
    "avx512bw": "avx512f",
    "avx512vl": "avx512f",
    "avx512bf16": "avx512f",
    "amx_bf16": "amx_tile",
    "amx_int8": "amx_tile",
}

built = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")


def test_there_is_a_module_or_a_reason():
    assert (native.module is None) != (native.reason is None)
    if native.reason is not None:
        assert native.reason.strip() and "\n" not in native.reason


@built
def test_version_is_that_of_the_source():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{native.module.version()}"\n' in project


@built
def test_features_are_named_and_consistent():
    features = native.module.cpu_features()
    assert set(features) == set(FLAGS)
    assert all(type(value) is bool for value in features.values())
    assert all(features[base] for name, base in NEEDS.items() if features[name])
    if platform.machine() not in ("x86_64", "AMD64"):
        assert not any(features.values())


@built
@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64",
    reason="compares with /proc/cpuinfo of Linux on x86-64",
)
def test_features_agree_with_the_kernel():
    line = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags"))
    flags = set(line.split())
    for name, granted in native.module.cpu_features().items():
        if name.startswith("amx"):  # the kernel may have it and still refuse this process
            assert granted <= (FLAGS[name] in flags), name
        else:
            assert granted == (FLAGS[name] in flags), name
