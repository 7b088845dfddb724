"""The child of a fork takes along one thread and whatever the others had in hand: it must neither
wait for them nor go on with what they left half done.
"""

import os
import signal
import threading
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import kernels
from engine import meta
from engine.runtime.prefetch import prefetch
from kernels import native
from tests.passes import native_pass, problem
from tests.test_meta import config, random_episode
from tests.test_native_calls import MODEL, same
from tests.tiny import call

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
needs_native = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")


def in_child(work: Callable[[], bool], seconds: int = 60) -> None:
    """Fails unless `work` is true in a forked child, in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(seconds)  # a child that waits for its parent's threads is killed
            code = 0 if work() else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def equal(a: meta.State, b: meta.State) -> bool:
    return all(all(map(torch.equal, *groups)) for groups in zip(a[:-1], b[:-1], strict=True))


@pytest.mark.parametrize("unroll", ["adjoint", "autograd"])
@pytest.mark.parametrize("tasks", [2, 3], ids=["all-at-once", "one-left-over"])
def test_the_engine_works_in_a_child(tasks: int, unroll: str, backend: str, threads) -> None:
    torch.set_num_threads(2)
    large = torch.randn(1000, 1000)  # torch's own threads, which a child would wait for
    assert torch.isfinite(large @ large).all()
    cfg = config(tasks=tasks, unroll=unroll, image_size=28, filters=32)
    state, episode = meta.init_state(cfg), random_episode(cfg)
    gradient, (after, _) = (
        meta.meta_gradient(state, episode, cfg),
        meta.meta_step(state, episode, cfg),
    )

    def works() -> bool:
        again = meta.meta_gradient(state, episode, cfg)
        step, _ = meta.meta_step(state, episode, cfg)
        return equal(step, after) and all(map(torch.equal, again.gradient, gradient.gradient))

    in_child(works)
    in_child(lambda: in_child(works) is None)  # a child's child
    assert works()


@needs_native
def test_a_fork_amid_the_calls_of_another_thread(threads) -> None:
    """It holds the pool nearly always, and the cache of blocks as often as it can."""
    torch.set_num_threads(2)
    made, stop = problem(MODEL, 40, 3), threading.Event()
    expected = native_pass(made)

    def busy() -> None:
        torch.set_num_threads(2)
        while not stop.is_set():
            native_pass(made)
            native.module.release_blocks()

    others = [threading.Thread(target=busy) for _ in range(3)]
    for other in others:
        other.start()
    try:
        for _ in range(30):
            in_child(lambda: same(native_pass(made), expected) and threads_are(2), 20)
    finally:
        stop.set()
        for other in others:
            other.join()
    assert same(native_pass(made), expected)


def threads_are(count: int) -> bool:
    """Where the system tells."""
    if not os.path.isdir("/proc/self/task"):
        return True
    return len(os.listdir("/proc/self/task")) == count


class Products(Dataset):
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(2, 5, 8, 16, 16, generator=g)
        self.w = torch.randn(2, 8, 8, 3, 3, generator=g)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return kernels.task_conv2d(self.x * (index + 1), self.w)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_the_workers_of_a_data_loader_use_the_ops(context: str, threads) -> None:
    torch.set_num_threads(2)
    data = Products()
    expected = [data[index] for index in range(len(data))]
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=60
    )
    assert all(map(torch.equal, loader, expected))


def test_a_prefetching_iterator_is_not_waited_for_in_a_child() -> None:
    episodes = prefetch(lambda t: t, range(100))
    assert next(episodes) == 0

    def refuses() -> bool:
        with pytest.raises(RuntimeError, match="of its fork .*; make the iterator in the process"):
            next(episodes)
        episodes.close()
        return list(prefetch(lambda t: t, range(9))) == [*range(9)]

    in_child(refuses)
    assert next(episodes) == 1
    episodes.close()


def test_a_child_that_ends_by_itself_ends() -> None:
    """With the handlers at exit, which join threads."""
    code, out, err = call("tests.test_fork")
    assert (code, out, err) == (0, "the child ended with 0\n", "")


def main() -> None:
    import multiprocessing

    torch.set_num_threads(2)
    cfg = config()
    state, episode = meta.init_state(cfg), random_episode(cfg)
    with kernels.use("plain"):
        meta.meta_step(state, episode, cfg)
    child = multiprocessing.get_context("fork").Process(
        target=meta.meta_step, args=(state, episode, cfg)
    )
    child.start()
    child.join(40)
    print(f"the child ended with {child.exitcode}")


if __name__ == "__main__":
    main()
