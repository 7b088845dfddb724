"""More threads than cores, and fewer than were asked for."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import kernels
from kernels import native
from kernels.threads import MOST_PER_CORE, cores
from tests.slow import chosen
from tests.tiny import ROOT, call, environment, flags

needs_native = pytest.mark.skipif(native.module is None, reason=f"native module: {native.reason}")
needs_limits = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="address space is limited on Linux alone"
)


def test_the_kernels_take_a_few_threads_a_core_at_most(threads) -> None:
    torch.set_num_threads(1)
    assert kernels.threads() == 1
    torch.set_num_threads(3)
    assert kernels.threads() == 3
    torch.set_num_threads(5000)
    assert kernels.threads() == MOST_PER_CORE * cores()
    with kernels.only_kernels():
        assert kernels.threads() == MOST_PER_CORE * cores() and torch.get_num_threads() == 1
    assert torch.get_num_threads() == 5000


def test_cores_are_those_that_the_process_may_use() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        assert cores() == len(os.sched_getaffinity(0))


def test_training_runs_one_thread_a_core_at_most(images) -> None:
    few = flags(images, images.parent / "few", "--epochs", 1)
    code, out, err = call("engine.train", *few)
    assert (code, err) == (0, "") and " cores" not in out
    many = flags(images, images.parent / "many", "--epochs", 1, "--threads", 1024)
    code, told, err = call("engine.train", *many)
    has = f"{cores()} core{'s' * (cores() > 1)}"
    assert (code, err) == (0, "")
    assert f"--threads is 1024, and this process {has}: it runs {cores()}\n" in told
    assert losses(told) == losses(out)


def losses(out: str) -> list[str]:
    return [line.split("accuracy")[0] for line in out.splitlines() if "  loss " in line]


def limited(script: str, mebibytes: int, *argv: str) -> tuple[int, str, str]:
    """Runs it with so much address space left, of which a thread's stack takes 8 MiB."""
    script = f"{LIMIT}\nLEFT = {mebibytes}\n{script}"
    command = ["bash", "-c", 'ulimit -s 8192; exec "$@"', "-", sys.executable, "-c", script, *argv]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment(), cwd=ROOT
    )
    return done.returncode, done.stdout, done.stderr


LIMIT = """
import os, resource, sys
import torch
from engine import meta
from kernels import native
from tests.passes import native_pass, problem
from tests.test_meta import config, random_episode
from tests.test_native_calls import MODEL, same

def limit(mebibytes):
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
"""

NATIVE = """
made = problem(MODEL, 6, 5)
torch.set_num_threads(1)
expected = native_pass(made)
torch.set_num_threads(4)
limit(LEFT)
for _ in range(3):
    assert same(native_pass(made), expected)
print("done")
"""


# What a limit leaves, by how many threads of the kernels begin.
LEFT = pytest.mark.parametrize("left", chosen({"none": 4, "one": 12, "two": 24}, ["none", "one"]))


@needs_native
@needs_limits
@LEFT
def test_the_native_kernels_do_with_the_threads_that_there_are(left: int) -> None:
    code, out, err = limited(NATIVE, left)
    assert (code, out) == (0, "done\n"), err
    assert err.count("\n") == 1, err
    assert err.startswith("mamlpp: asked for 4 threads, the system gives ") and "ulimit" in err


ENGINE = """
cfg = config(tasks=9)
state, episode = meta.init_state(cfg), random_episode(cfg)
torch.set_num_threads(1)
expected, _ = meta.meta_step(state, episode, cfg)
torch.set_num_threads(4)
limit(LEFT)
for _ in range(3):
    after, _ = meta.meta_step(state, episode, cfg)
    for groups in zip(after[:-1], expected[:-1]):
        assert all(map(torch.equal, *groups))
print("done")
"""


@needs_limits
@LEFT
def test_the_engine_does_with_the_threads_that_there_are(left: int) -> None:
    code, out, err = limited(f"os.environ['KERNELS_BACKEND'] = 'plain'\n{ENGINE}", left)
    assert (code, out) == (0, "done\n"), err
    assert err.startswith("mamlpp: the system gives no more threads (") and err.count("\n") == 1


TRAIN = """
import faulthandler, threading
from engine import train
from engine.runs import log
# Once all is imported, with as much memory as it needs but for the stacks of threads.
threading.stack_size(2**30)
limit(LEFT)
sys.exit(train.main(sys.argv[1:]))
"""


@needs_limits
def test_training_does_without_threads(images) -> None:
    """Without those that read images, draw tasks ahead and write for TensorBoard."""
    arguments = flags(images, images.parent / "alone", "--epochs", 1, "--log-every", 1)
    arguments[arguments.index("--cache") + 1] = str(images.parent / "fresh-cache")
    code, out, err = limited(TRAIN, 600, *arguments)
    assert code == 0, err
    told = [line for line in err.splitlines() if line.startswith("mamlpp: ")]
    assert len(told) == 1 and told[0].startswith("mamlpp: the system gives no more threads (")
    assert set(err.splitlines()) == {*told} or "TqdmMonitorWarning" in err  # tqdm had one, too
    straight = flags(images, images.parent / "straight", "--epochs", 1, "--log-every", 1)
    assert losses(out) == losses(call("engine.train", *straight)[1])


MEMORY = """
made = problem(Backbone(3, 84, 64, 2, 5), 400, 1).to(torch.float32)
torch.set_num_threads(1)
limit(LEFT)
images = native.passes.prepare(made.model.net, made.x)
for _ in range(2):
    try:
        native.passes.run(images, made.theta, made.row, made.labels, keep=True)
    except MemoryError as error:
        print(error)
small = problem(MODEL, 6, 5)
assert len(native_pass(small)) and native.module.release_blocks()
"""


@needs_native
@needs_limits
def test_a_native_call_without_memory_is_a_memory_error_that_says_how_much() -> None:
    code, out, err = limited(MEMORY.replace("Backbone", "type(MODEL)"), 100)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first == second and first.startswith("native kernels: no memory for a block of ")
    assert float(first.split("block of ")[1].split(" MiB")[0]) > 100


def test_blocks_that_overlap_in_threads_leave_torch_its_number():
    """Torch gives a new thread the number that another one set last."""
    before, found = torch.get_num_threads(), {}
    first, second = threading.Event(), threading.Event()

    def outer():
        with kernels.only_kernels():
            first.set()
            second.wait(60)

    def inner():
        first.wait(60)
        with kernels.only_kernels():
            found["inside"] = kernels.threads()
            second.set()
            threads[0].join()

    def later():
        found["later"] = torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        threads = [threading.Thread(target=target) for target in (outer, inner)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = threading.Thread(target=later)
        last.start()
        last.join()
    finally:
        torch.set_num_threads(before)
    assert found == {"inside": 3, "later": 3}
