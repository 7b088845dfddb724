"""The compiled module's report, and `kernels.native` with and without it."""

import platform
from pathlib import Path

import pytest

from kernels import native

FLAGS = {  # our name -> Linux's name in /proc/cpuinfo, which lists what the kernel enabled
    "neon": "asimd",
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
    assert features.pop("neon") == (platform.machine() in ("aarch64", "arm64"))
    if platform.machine() not in ("x86_64", "AMD64"):
        assert not any(features.values())


@built
def test_instruction_sets_are_limited_to_those_of_the_processor():
    """Each asked for gives itself or the next lesser one that there is."""
    sets, features = native.module.Isa.__members__, native.module.cpu_features()
    needs = {"neon": ["neon"], "avx2": ["avx2", "fma"], "avx512": ["avx512bw", "avx512vl"]}
    best = "portable"
    try:
        for name, flags in needs.items():
            best = name if all(features[flag] for flag in flags) else best
            assert native.module.limit_isa(sets[name]).name == best == native.module.isa().name
    finally:
        native.module.limit_isa(sets["amx"])


@built
@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="compares with /proc/cpuinfo of Linux on x86-64 or AArch64",
)
def test_features_agree_with_the_kernel():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    for name, granted in native.module.cpu_features().items():
        if name.startswith("amx"):  # the kernel may have it and still refuse this process
            assert granted <= (FLAGS[name] in flags), name
        else:
            assert granted == (FLAGS[name] in flags), name
