"""What everybody's `python -m pytest` leaves out: `MAMLPP_SLOW=1` runs it too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import pytest

ALL = bool(os.environ.get("MAMLPP_SLOW"))


def slow(why: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not ALL, reason=f"{why}; set MAMLPP_SLOW=1")


def chosen(cases: Mapping[str, object] | Iterable, every_day: Iterable) -> list:
    """The cases of a test, by name or each its own name, of which only some run every day."""
    named = cases if isinstance(cases, Mapping) else {str(case): case for case in cases}
    names = {str(name) for name in every_day}
    assert names <= named.keys(), names - named.keys()
    rest = slow("like cases that run every day")
    return [
        pytest.param(case, id=name, marks=() if name in names else rest)
        for name, case in named.items()
    ]
