"""Pictures of one's own through the command lines: in each task the accuracy of the evaluation.

Of two hundred it takes minutes: MAMLPP_SLOW=1 python -m pytest tests/test_own_pictures.py
"""

from __future__ import annotations

import os

import pytest

from tests.own_pictures import Asked


@pytest.mark.parametrize(("tasks", "more"), [(4, ("--iterations", "8")), (200, ())])
def test_the_command_lines_have_right_what_the_evaluation_has(data_dir, tmp_path, tasks, more):
    if tasks > 4 and not os.environ.get("MAMLPP_SLOW"):
        pytest.skip("adapts and predicts two hundred times; set MAMLPP_SLOW=1")
    both = Asked(tmp_path, data_dir / "caltech101_84.zip", more)
    asked = both.asked(tasks)
    assert asked == both.evaluated(tasks) and len(asked) == tasks
    assert 0.2 < sum(asked) / (tasks * both.targets) < 1  # better than chance
