"""Which processor this is: its name alone often hides the generation and the caches."""

import platform
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
DEVICES = Path("/sys/devices/system/cpu/cpu0")
_NUMBERS = {"cpu family": "family", "model": "model", "stepping": "stepping"}
_SUFFIXES = {"Data": "d", "Instruction": "i"}  # of a cache


def name() -> str:
    return _fields().get("model name") or platform.processor() or "unknown"


def details() -> dict[str, Any]:
    """Family, model, stepping, size of each cache and threads of a core, as Linux tells them."""
    fields = _fields()
    found: dict[str, Any] = {
        ours: int(fields[theirs])
        for theirs, ours in _NUMBERS.items()
        if fields.get(theirs, "").isdecimal()
    }
    caches = {}
    for cache in sorted((DEVICES / "cache").glob("index*")):
        level, kind, size = (_text(cache / part) for part in ("level", "type", "size"))
        if level and size:
            caches[f"L{level}{_SUFFIXES.get(kind, '')}"] = size
    if caches:
        found["caches"] = caches
    if siblings := _text(DEVICES / "topology" / "thread_siblings_list"):
        found["threads_a_core"] = _count(siblings)
    return found


def _fields() -> dict[str, str]:
    """Of the first core."""
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _count(ranges: str) -> int:
    """How many numbers a list such as 0-3,8 has."""
    total = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def told(run: dict) -> str:
    """The processor of a run's JSON, in words."""
    found = run.get("processor_details", {})
    parts = [f"{key} {found[key]}" for key in ("family", "model") if key in found]
    parts += [
        f"{level} {size}" for level, size in found.get("caches", {}).items() if level != "L1i"
    ]
    if found.get("threads_a_core", 1) > 1:
        parts.append(f"{found['threads_a_core']} threads a core")
    return run["processor"] + (f" ({', '.join(parts)})" if parts else "")
