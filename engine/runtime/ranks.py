"""Ranks: the processes that `torchrun` starts, which share the tasks of an iteration.

Each makes its own tasks' rows: losses, gradients, moments. The rows of all are gathered and every
rank sums them in task order and takes the same step, so that parameters, logs and checkpoints are
the same bits whatever the number of ranks. The first one alone writes and speaks.

Nothing here is imported or done in a process that torchrun did not start.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from engine import errors
from engine.errors import Diverged, UserError
from engine.runs.interrupt import Interrupt, Stopped
from engine.runtime.parcel import Parcel

T = TypeVar("T")

MOST_PATIENCE = 1e6
PATIENCE = 600.0  # seconds that a rank may take longer than the others; MAMLPP_RANK_TIMEOUT
_ALIVE = 3.0  # seconds in which a rank says that it lives
_TURN = 0.05  # seconds between two looks at whether the turn has come
_LOOK = 5e-5  # seconds between two looks at whether a device is there
_GRACE = 10.0  # seconds that a device may take after a signal
_LATER = 60.0  # seconds after which NCCL's own time limit follows ours


class Alone:
    """One process: all tasks are its own."""

    rank, size, local, local_size = 0, 1, 0, 1
    alone = True
    signal = 0  # the number of the one that this rank has got, for the others; 0: none

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, tasks: int) -> tuple[int, int]:
        """The first of this rank's tasks, and how many it has."""
        return 0, tasks

    def gathered(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of a row a task, of all ranks in the order of the tasks."""
        return [*rows]

    def spread(self, items: Sequence[Any], make: Callable[[Any], T]) -> list[T]:
        """`make` of each item, by the ranks in turn; each has all results."""
        return [make(item) for item in items]

    def by_first(self, make: Callable[[], T], told: bool = True) -> T:
        """What the first rank makes; unless that is `told`, the others have None."""
        return make()

    def agree(self, facts: dict[str, str]) -> None:
        """Raises UserError when the ranks differ in one."""

    @contextmanager
    def node_by_node(self) -> Iterator[None]:
        """Of a machine, one rank goes first: it fills the cache that the others read."""
        yield

    def check(self, interrupt: Interrupt) -> None:
        """Raises Stopped if a signal has arrived, at the same iteration on all ranks."""
        interrupt.check()

    def hear(self, signal: int) -> None:
        """Of a signal that all ranks know of now; 0: of none."""

    def wait(self, event: torch.cuda.Event) -> None:
        """Until the device is there."""
        event.synchronize()


class Ranks(Alone):
    """Several; made by `joined`."""

    alone = False

    def __init__(self, interrupt: Interrupt | None, cuda: bool):
        import torch.distributed as dist

        self._dist, self._interrupt, self._turns = dist, interrupt, 0
        self.rank, self.size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self._node = os.environ.get("GROUP_RANK", "0")
        self._patience = _patience()
        self._stop = 0  # a signal that all know of
        self.broken = False  # a rank is lost
        with _ended_by_sigterm():
            self._host = self._meet(cuda)

    def _meet(self, cuda: bool) -> Any:
        """Finds the others; a group for what is on the host."""
        dist, patience = self._dist, timedelta(seconds=self._patience)
        store, *_ = next(dist.rendezvous("env://", timeout=patience))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"mamlpp-{attempt}-{next(_joined)}", store)
        self._store.set(f"who-{self.rank}", f"pid {os.getpid()} on {socket.gethostname()}")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore("group", self._store),
            rank=self.rank,
            world_size=self.size,
            # NCCL ends the process, and says nothing of use: `wait` is to be before it
            timeout=patience + cuda * timedelta(seconds=_LATER),
        )
        # None: the group of all
        return dist.new_group(backend="gloo", timeout=patience) if cuda else None

    def tells(self) -> bool:
        """Whether this rank is the first to say what went wrong."""
        try:
            claimed = self._store.compare_set("told", "", str(self.rank))
        except RuntimeError:  # who kept the store is gone too
            return True
        return claimed == str(self.rank).encode()

    def close(self, failed: bool) -> None:
        """Leaves the others. After a failure they may do something else: what a GPU waits for is
        given up, and nothing waits for a rank that hangs.
        """
        if failed and self._host is not None:
            self._dist.group.WORLD._get_backend(torch.device("cuda")).abort()
        if not self.broken:
            self._dist.destroy_process_group()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A collective that fails names the ranks that are gone or hang."""
        try:
            yield
        except RuntimeError as error:
            if errors.is_out_of_memory(error):
                raise
            self.broken = True
            names = [f"rank {r} ({self._store.get(f'who-{r}').decode()})" for r in self._lost()]
            found = errors.listed(names, 4) if names else f"a rank ({str(error).splitlines()[0]})"
            raise UserError(
                f"{found} is gone, or did not answer in time: the last checkpoint is whole; the "
                "same command continues"
            ) from error

    def _lost(self) -> list[int]:
        self._store.set(f"alive-{self.rank}", "")
        time.sleep(_ALIVE)
        return [r for r in range(self.size) if not self._store.check([f"alive-{r}"])]

    def share(self, tasks: int) -> tuple[int, int]:
        if tasks % self.size:
            raise UserError(
                f"--tasks is {tasks} with {self.size} ranks: give a multiple of {self.size}, or "
                "another number of ranks"
            )
        own = tasks // self.size
        return self.rank * own, own

    @property
    def signal(self) -> int:
        return self._interrupt.received if self._interrupt else 0

    def hear(self, signal: int) -> None:
        self._stop = self._stop or signal

    def gathered(self, rows: Sequence[Tensor]) -> list[Tensor]:
        parcel = Parcel(rows, self.size)
        parcel.pack(rows, rows[0].new_full((), self.signal))
        self.gather(parcel)
        signal, found = parcel.unpacked()
        if signal.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(signal.device))
            self.wait(event)
        self.hear(int(signal))
        return found

    def gather(self, parcel: Parcel) -> None:
        """Fills in the rows of all ranks. On a GPU this is a launch, and waits for nothing."""
        group = None if parcel.own.is_cuda else self._host
        with self._told():
            self._dist.all_gather([*parcel.every.chunk(self.size)], parcel.own, group=group)

    def wait(self, event: torch.cuda.Event) -> None:
        """Until the device is there, which may wait for a rank that is gone: raises UserError."""
        last, signalled = time.monotonic() + self._patience, False
        with self._told():
            while not event.query():
                if self.signal and not signalled:  # of torchrun, which kills 30 s later
                    last, signalled = min(last, time.monotonic() + _GRACE), True
                if time.monotonic() > last:
                    raise RuntimeError("the device waits for another")
                time.sleep(_LOOK)

    def spread(self, items: Sequence[Any], make: Callable[[Any], T]) -> list[T]:
        own = [make(item) for item in items[self.rank :: self.size]]
        every = self._everyone((own, self.signal))
        self.hear(max(signal for _, signal in every))
        return [every[i % self.size][0][i // self.size] for i in range(len(items))]

    def _everyone(self, mine: Any) -> list[Any]:
        every = [None] * self.size
        with self._told():
            self._dist.all_gather_object(every, mine, group=self._host)
        return every

    def by_first(self, make: Callable[[], T], told: bool = True) -> T:
        made, failed = None, None
        if self.first:
            try:
                made = make()
            except BaseException as error:
                failed = error
        found = [made if told else None, failed is not None]
        with self._told():
            self._dist.broadcast_object_list(found, 0, group=self._host)
        if failed is not None:
            raise failed
        if found[1]:
            raise Followed
        return made if self.first else found[0]

    def agree(self, facts: dict[str, str]) -> None:
        every = self._everyone(facts)
        for name, value in every[0].items():
            for rank, other in enumerate(every):
                if other[name] != value:
                    raise UserError(
                        f"the ranks differ in {name}: {value} on rank 0, {other[name]} on rank "
                        f"{rank}; give all the same"
                    )

    @contextmanager
    def node_by_node(self) -> Iterator[None]:
        self._turns += 1
        key = f"turn-{self._node}-{self._turns}"
        try:
            while self.local and not self._store.check([key]):  # answers signals, as no wait() does
                time.sleep(_TURN)
            yield
        finally:
            if not self.local:
                self._store.set(key, "")

    def check(self, interrupt: Interrupt) -> None:
        if self._stop:
            raise Stopped(self._stop)


class Followed(BaseException):
    """Ends a rank of which another one tells why."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Torch waits for a rank that may be gone, and no handler of Python's is called meanwhile."""
    before = signal.getsignal(signal.SIGTERM)  # None: of no Python, and could not be put back
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _patience() -> float:
    text = os.environ.get("MAMLPP_RANK_TIMEOUT", str(PATIENCE))
    with suppress(ValueError):
        if 0 < float(text) < MOST_PATIENCE:
            return float(text)
    raise UserError(
        f"MAMLPP_RANK_TIMEOUT is {text}: give the seconds that a rank may be late, more than 0 and "
        f"less than {MOST_PATIENCE:g}"
    )


_current: Alone = Alone()
_joined = count()  # a store keeps what was said before


def current() -> Alone:
    """The ranks of this process; alone unless inside `joined`."""
    return _current


def launched() -> bool:
    """Whether torchrun started this process, with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(interrupt: Interrupt | None = None) -> Iterator[Alone]:
    """Inside, `current` are the ranks that torchrun started. Nothing happens in another process, or
    if they are joined already.
    """
    global _current
    if not launched() or not _current.alone:
        yield _current
        return
    _current, failed = Ranks(interrupt, torch.cuda.is_available()), True
    try:
        with errors.silence(not _current.first):
            yield _current
        failed = False
    except Followed:
        sys.exit(UserError.exit_code)
    except (UserError, Diverged) as error:
        if not _current.tells():
            sys.exit(error.exit_code)
        error.claimed = True
        raise
    finally:
        team, _current = _current, Alone()
        team.close(failed)
