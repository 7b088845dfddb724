"""Pictures of one's own through the command lines: in each task the accuracy of the evaluation.

Of two hundred it takes minutes: MAMLPP_SLOW=1 python -m pytest tests/test_own_pictures.py
"""

from __future__ import annotations

import pytest

from tests.own_pictures import Asked
from tests.slow import slow

MANY = pytest.param(200, (), marks=slow("adapts and predicts two hundred times"))


@pytest.mark.parametrize(("tasks", "more"), [(4, ("--iterations", "8")), MANY])
def test_the_command_lines_have_right_what_the_evaluation_has(data_dir, tmp_path, tasks, more):
    both = Asked(tmp_path, data_dir / "caltech101_84.zip", more)
    asked = both.asked(tasks)
    assert asked == both.evaluated(tasks) and len(asked) == tasks
    assert 0.2 < sum(asked) / (tasks * both.targets) < 1  # better than chance
