"""What a benchmark tells of its processor, on machines as Linux describes them."""

from pathlib import Path

import pytest

from bench import processor

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1

processor\t: 1
cpu family\t: 26
"""


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor, "DEVICES", tmp_path / "cpu0")
    return tmp_path


def described(machine: Path, siblings: str) -> None:
    (machine / "cpuinfo").write_text(CPUINFO)
    for index, cache in enumerate(["1 Data 32K", "1 Instruction 32K", "2 Unified 512K"]):
        folder = machine / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for part, value in zip(("level", "type", "size"), cache.split(), strict=True):
            (folder / part).write_text(f"{value}\n")
    (machine / "cpu0" / "topology").mkdir()
    (machine / "cpu0" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")


@pytest.mark.parametrize(
    ("siblings", "threads"), [("0", 1), ("0-1", 2), ("0,64", 2), ("0-1,8-9", 4)]
)
def test_family_caches_and_threads_of_a_core(siblings: str, threads: int, machine) -> None:
    described(machine, siblings)
    assert processor.name() == "AMD EPYC"
    assert processor.details() == {
        "family": 25,
        "model": 1,
        "stepping": 1,
        "caches": {"L1d": "32K", "L1i": "32K", "L2": "512K"},
        "threads_a_core": threads,
    }
    run = {"processor": "AMD EPYC", "processor_details": processor.details()}
    shared = f", {threads} threads a core" if threads > 1 else ""
    expected = f"AMD EPYC (family 25, model 1, L1d 32K, L2 512K{shared})"
    assert processor.told(run) == expected


def test_a_system_that_does_not_tell_has_a_name_alone(machine) -> None:
    assert processor.details() == {} and processor.name()
    assert processor.told({"processor": "a processor"}) == "a processor"
