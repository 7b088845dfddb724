"""Four of the kills that ``python -m tests.kills 100`` makes a hundred of, one at each moment."""

from tests.kills import MOMENTS, Killed


def test_nothing_is_lost_and_nothing_is_left_over(tmp_path):
    killed = Killed(tmp_path, seed=1)
    killed.run(len(MOMENTS))
    assert killed.finished >= 1 and sum(killed.kills.values()) >= len(MOMENTS)
