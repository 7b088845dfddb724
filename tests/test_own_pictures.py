"""Four of the tasks of which ``python -m tests.own_pictures`` asks two hundred."""

from tests.own_pictures import Asked


def test_the_command_lines_have_right_what_the_evaluation_has(data_dir, tmp_path):
    both = Asked(tmp_path, data_dir / "caltech101_84.zip", ("--iterations", "8"))
    asked = both.asked(4)
    assert asked == both.evaluated(4) and 0 < asked < both.targets(4)
