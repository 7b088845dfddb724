"""The model of more ranks, what a rank sends, and the machines made of namespaces."""

import subprocess

import pytest

from bench import namespaces, scaling
from bench.cases import TARGETS
from bench.namespaces import Link, Unavailable

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
    row["row_bytes"], of_two = 2048, row | {"ranks": 2, "row_bytes": 2048}
    text = scaling.text(run | {"rows": [row]})
    row = "| a case             |     1 | loopback | 0.400 |    0.0010 | 0.2 % |          2 KiB |"
    assert row in text and "alone" not in text
    assert "a case, 0.100 s a task" in text and all(link in text for link in scaling.LINKS)
    run |= {"rows": [of_two | {"link": "1 GbE"}], "loopback_alone": "no tc"}
    text = scaling.text(run)
    assert "|     2 | 1 GbE | 0.400 |" in text and "Over loopback alone: no tc\n" in text


def test_resnet12_sends_its_twelve_million_gradients():
    (case,) = (case for case in scaling.CASES if case.network == "resnet12")
    blocks = (3, 64), (64, 160), (160, 320), (320, 640)
    convolutions = sum(9 * (c * w + 2 * w * w) + c * w for c, w in blocks)
    assert convolutions == 12_414_848
    theta, channels = convolutions + 5 * 640 + 5, 4 * (64 + 160 + 320 + 640)
    assert scaling._row_bytes(case.config) == 4 * (
        theta + 5 * (2 * channels + 18) + 2 * 10 * channels + 3
    )


def test_machines_are_made_by_these_lines():
    lines = [" ".join(c) for c in namespaces.commands(["a", "b"], "hub", Link(112.5e6, 50e-6))]
    assert lines[:3] == [
        "ip netns add hub",
        "ip -n hub link add switch type bridge",
        "ip -n hub link set switch up",
    ]
    assert lines[10:] == [
        "ip netns add b",
        "ip -n hub link add port1 type veth peer name eth0 netns b",
        "ip -n hub link set port1 master switch up",
        "ip -n b addr add 10.77.0.2/24 dev eth0",
        "ip -n b link set eth0 up",
        "ip -n b link set lo up",
        "tc -n b qdisc add dev eth0 root netem delay 50us rate 900000000bit limit 100000",
    ]
    (one,) = scaling.commands(1, 2)
    assert one[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _, second = scaling.commands(1, 2, ["a", "b"])
    assert (
        second[:4] == ["ip", "netns", "exec", "b"]
        and second[5:]
        == (
            "-m torch.distributed.run --nnodes 2 --master-addr 10.77.0.1 --node-rank 1 "
            "-m -- bench.scaling --worker 1"
        ).split()
    )


def test_where_no_machines_can_be_made_it_is_said(monkeypatch):
    def run(command, **options):
        refused = command[0] == "tc"
        return subprocess.CompletedProcess(command, 2 * refused, "", "Error: no netem.\n" * refused)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(Unavailable, match=r"^tc -n mamlpp-.* limit 100000: Error: no netem\.$"):
        with namespaces.machines(2, Link(1e9, 1e-3)):
            pass
    links, reason = scaling._emulated()
    assert links == () and reason.endswith("Error: no netem.")
