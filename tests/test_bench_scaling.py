"""The model of more ranks, and what a rank sends."""

from bench import scaling
from bench.cases import TARGETS

ROW = 400_000  # bytes


def test_ranks_pay_as_long_as_computing_outweighs_sending():
    slow, fast = (scaling.Link(bandwidth, 1e-5) for bandwidth in (1e6, 1e12))
    assert scaling._most(1024, 0.1, ROW, fast) == 1024
    assert scaling._most(8, 0.1, ROW, fast) == 8  # no more ranks than tasks
    assert scaling._most(1024, 0.1, ROW, slow) == 1  # 0.1 s to compute, 0.4 s to send
    assert scaling._most(1024, 1e-6, 4, scaling.Link(1e12, 1.0)) == 1  # latency


def test_what_a_task_sends_is_counted_in_values():
    cfg = TARGETS[0].config()  # 5 steps, 48 filters, four stages, 5 classes, target passes all
    theta = 48 * 9 * (3 + 3 * 48) + 5 * 1200 + 5
    assert scaling._row_bytes(cfg) == 4 * (theta + 5 * (2 * 192 + 6) + 2 * 10 * 192 + 3)


def test_the_tables_name_cases_and_links():
    row = {"case": "a case", "ranks": 1, "seconds": [0.4], "gather": [0.001], "tasks": 4}
    run = {"processor": "p", "cores": 2, "threads": 2, "torch": "t", "kernels": "plain"}
    run |= {"commit": "0123456789", "date": "2026-01-01T", "changed": False, "command": "c"}
    text = scaling.text(run | {"rows": [row | {"row_bytes": 2048}]})
    assert "| a case             |     1 | 0.400 |    0.0010 | 0.2 % |          2 KiB |" in text
    assert "a case, 0.100 s a task" in text and all(link in text for link in scaling.LINKS)
