"""Machines made of network namespaces of Linux, a switch between them, and links of a given delay
and bandwidth. Nothing of this machine's own network is touched. Takes root, `ip` and `tc`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

DEVICE = "eth0"  # of each machine


class Link(NamedTuple):
    bandwidth: float  # bytes a second that a machine sends
    latency: float  # seconds of a message's way


class Unavailable(Exception):
    """No namespaces here, and why, in a line."""


def address(machine: int) -> str:
    return f"10.77.0.{machine + 1}"


def commands(names: list[str], hub: str, link: Link) -> list[list[str]]:
    """What makes the machines and the switch, which are gone with their namespaces."""
    lines = [
        f"ip netns add {hub}",
        f"ip -n {hub} link add switch type bridge",
        f"ip -n {hub} link set switch up",
    ]
    delay, rate = round(link.latency * 1e6), round(link.bandwidth * 8)
    for i, name in enumerate(names):
        lines += [
            f"ip netns add {name}",
            f"ip -n {hub} link add port{i} type veth peer name {DEVICE} netns {name}",
            f"ip -n {hub} link set port{i} master switch up",
            f"ip -n {name} addr add {address(i)}/24 dev {DEVICE}",
            f"ip -n {name} link set {DEVICE} up",
            f"ip -n {name} link set lo up",
            f"tc -n {name} qdisc add dev {DEVICE} root netem delay {delay}us rate {rate}bit "
            "limit 100000",
        ]
    return [line.split() for line in lines]


@contextmanager
def machines(count: int, link: Link) -> Iterator[list[str]]:
    """The names of their namespaces, for `ip netns exec`. Raises Unavailable."""
    names = [f"mamlpp-{os.getpid()}-{i}" for i in range(count)]
    hub = f"mamlpp-{os.getpid()}-hub"
    try:
        for command in commands(names, hub, link):
            _run(command)
        yield names
    finally:
        for name in (*names, hub):
            _removed(name)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise Unavailable(f"{' '.join(command)}: {reason}")


def _removed(name: str) -> None:
    if os.path.exists(f"/run/netns/{name}"):
        subprocess.run(["ip", "netns", "del", name], check=True)
