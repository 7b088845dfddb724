"""Outer iterations as a device runs them, on a CPU that stands in: the same states as on the host,
nothing that a capture forbids, nothing that moves or grows.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import kernels
from bench import graphs
from engine import scoring
from engine.config import Config
from engine.data import Dataset
from engine.meta import State, init_state
from engine.methods import METHODS
from engine.models import network
from engine.runtime import graph
from engine.runtime.loop import DeviceLoop, HostLoop, loop
from engine.runtime.resident import Feed
from engine.scoring import _on_device, _on_host, prediction
from tests.captured import Capturable, captures_stood_in, config, noise, sampler
from tests.lifetimes import waits

CPU = torch.device("cpu")
# Others have a network that autograd runs.
CAPTURED = [name for name, m in METHODS.items() if m.fixed.get("network") != "own"]


@pytest.fixture
def captures() -> Iterator[list]:
    with captures_stood_in() as made:
        yield made


def of_method(name: str) -> Config:
    small = dict(image_size=14, channels=1, filters=4, stages=2, ways=3, shots=1, targets=2)
    if name == "reptile":
        small["eval_steps"] = 8  # of 50
    return Config.of("maml", "mini", method=name, **small, epochs=3, iterations=3, tasks=2)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return noise()


def tensors(state: State) -> list[torch.Tensor]:
    return [tensor for group in state[:-1] for tensor in group]


def run(kind, cfg: Config, data: Dataset, count: int, state: State | None = None):
    """State and metrics after some iterations."""
    state = state or init_state(cfg)
    left = range(state.iteration, state.iteration + count)
    found = []
    with kind(cfg, sampler(cfg, data), left, *([CPU] if kind is DeviceLoop else [])) as steps:
        for _ in left:
            state = steps.step(state)
            found += steps.finished()
        found += steps.finished(wait=True)
    assert [f.iteration for f in found] == [t + 1 for t in left]
    return state, [f.metrics for f in found]


@pytest.mark.parametrize("rotations", ["none", "classes", "augment"])
def test_a_feed_gathers_what_the_host_does(data, rotations) -> None:
    cfg = config(rotations=rotations)
    tasks = sampler(cfg, data)
    feed = Feed(tasks, tasks.bank, 3)
    staging = feed.staging()
    for iteration in (0, 7):
        feed.load(tasks.draw(iteration, 3), staging)
        found, expected = feed.episode(), tasks.episode(iteration, 3)
        for ours, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        assert found.support_x[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rates": "fixed", "task_reduction": "mean", "clamp": 1e-3},
        {"norm_weights": "shared", "norm_stats": "shared", "rotations": "classes"},
        {"train_norm_statistics": "running"},
        {"unroll": "autograd"},
    ],
    ids=["paper", "mean", "shared", "running", "autograd"],
)
def test_a_device_goes_through_the_states_of_the_host(data, captures, changes, backend) -> None:
    cfg = config(**changes)
    with kernels.use(backend):
        expected, theirs = run(HostLoop, cfg, data, 8)
        found, ours = run(DeviceLoop, cfg, data, 8)
    assert all(map(torch.equal, tensors(found), tensors(expected))) and found.iteration == 8
    assert ours == theirs
    assert len(captures) == 3, "first order with every target pass, then last step, then second"


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("method", [name for name in CAPTURED if name != "maml++"])
def test_every_method_goes_through_the_same_states_there(data, captures, method, backend) -> None:
    cfg = of_method(method)
    with kernels.use(backend):
        expected, theirs = run(HostLoop, cfg, data, 4)
        found, ours = run(DeviceLoop, cfg, data, 4)
    assert all(map(torch.equal, tensors(found), tensors(expected))) and ours == theirs
    assert len(captures) == 1


@pytest.mark.parametrize("method", [name for name in METHODS if name not in CAPTURED])
def test_what_autograd_runs_is_not_captured(data, captures, method) -> None:
    small = dict(image_size=14, channels=1, filters=4, ways=3, targets=2, eval_targets=2)
    cfg = Config.of("maml", "mini", method=method, **small)
    tasks = sampler(cfg, data)
    with loop(cfg, tasks, range(3), torch.device("cuda")) as steps:
        assert isinstance(steps, HostLoop)
    fixed = scoring._Tasks(cfg, data, "val", CPU)
    fixed._bank = data.banks["val"].images
    state = init_state(cfg)
    answers = fixed.answers(lambda e: prediction(cfg, network(cfg))(state, e)[None], no_graph=False)
    assert answers(0, 2)[0].shape == (1, 2, 3 * cfg.targets, 3) and not captures


def test_launching_one_by_one_gives_the_same_bits(data, captures) -> None:
    captured, _ = run(DeviceLoop, config(), data, 8)
    eager, _ = run(DeviceLoop, config(no_graph=True), data, 8)
    assert all(map(torch.equal, tensors(captured), tensors(eager))) and len(captures) == 3


@pytest.mark.parametrize("iteration", [0, 3, 6])
def test_replays_can_be_captured_and_neither_move_nor_grow(
    data, captures, iteration, monkeypatch
) -> None:
    cfg = config(iterations=3, epochs=1000)
    state = init_state(cfg)._replace(iteration=iteration)
    with kernels.use("plain"), DeviceLoop(cfg, sampler(cfg, data), range(40), CPU) as steps:
        state = steps.step(state)
        state = state._replace(iteration=iteration)
        places = [tensor.data_ptr() for tensor in tensors(state)]
        with Capturable():
            captures[0]()
        for _ in range(2):
            state = steps.step(state)._replace(iteration=iteration)
        alive = count_tensors()
        for _ in range(20):
            state = steps.step(state)._replace(iteration=iteration)
        steps.finished(wait=True)
        assert count_tensors() <= alive
        assert [tensor.data_ptr() for tensor in tensors(state)] == places
    assert len(captures) == 1


READS = {
    "a number": lambda x, places: x[0].item(),
    "a whole number": lambda x, places: int(places.max()),
    "a condition": lambda x, places: bool(x.any()),
    "whether all are the same": lambda x, places: torch.equal(x, x),
    "how many are positive": lambda x, places: x[x > 0],
    "where to write": lambda x, places: x.index_put_((x > 0,), torch.zeros(())),
    "a mask's bytes": lambda x, places: x[(x > 0).byte()],
    "the positive ones": lambda x, places: x.masked_select(x > 0),
    "which are positive": lambda x, places: torch.nonzero(x > 0),
    "how often": lambda x, places: places.bincount(),
    "what is repeated": lambda x, places: x.repeat_interleave(places),
    "what the host made": lambda x, places: torch.tensor([1.0]) + x,
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_the_host_reads_or_makes_is_seen(read) -> None:
    x, places = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([2, 0, 1])
    with Capturable(), pytest.raises(AssertionError, match="waits for the device or copies"):
        read(x, places)


def test_what_stays_on_the_device_is_let_through() -> None:
    x, places = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([2, 0, 1])
    with Capturable():
        found = x[places] + x.gather(0, places) + x.index_select(0, places)
        found.index_put_((places[:1],), x[:1])
        torch.where(x > 0, x, 0.0).sort()
    assert found.tolist() == [6.0, 3.0, 1.0]


def count_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_time_between_iterations_is_not_theirs(data, captures) -> None:
    cfg = config()
    with DeviceLoop(cfg, sampler(cfg, data), range(3), CPU) as steps:
        state = steps.step(init_state(cfg))
        steps.finished(wait=True)
        time.sleep(0.5)
        steps.step(state)
        (found,) = steps.finished(wait=True)
    assert found.seconds < 0.5


def test_another_state_is_taken_up(data, captures) -> None:
    cfg = config()
    middle, _ = run(HostLoop, cfg, data, 4)
    expected, _ = run(HostLoop, cfg, data, 3, middle)
    with DeviceLoop(cfg, sampler(cfg, data), range(4, 7), CPU) as steps:
        state = steps.step(init_state(cfg)._replace(iteration=4))
        steps._draws.close()
        steps._draws = (sampler(cfg, data).draw(t, cfg.tasks) for t in range(4, 7))
        state = middle
        for _ in range(3):
            state = steps.step(state)
    assert all(map(torch.equal, tensors(state), tensors(expected)))


def test_what_a_branch_of_a_step_reads_is_held(data, monkeypatch) -> None:
    with waits(monkeypatch) as gone:
        run(DeviceLoop, config(no_graph=True), data, 1)
    assert gone[-3]  # with Adam's, also what measures and the running statistics
    assert not any(sum(gone, []))


def test_what_is_not_finite_is_told_with_its_iteration(data, captures) -> None:
    cfg = config()
    state = init_state(cfg)
    state.params.theta[0] = torch.nan
    with DeviceLoop(cfg, sampler(cfg, data), range(3), CPU) as steps:
        steps.step(state)
        (found,) = steps.finished(wait=True)
    assert found.iteration == 1 and found.metrics.nonfinite.startswith("loss, gradient of theta")


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("method", CAPTURED)
def test_evaluation_on_a_device_is_that_of_the_host(data, captures, method, every) -> None:
    cfg = config() if method == "maml++" else of_method(method)
    model, state, tasks = network(cfg), init_state(cfg), sampler(cfg, data)
    answer = prediction(cfg, model)

    def predict(episode):
        logits = answer(state, episode, every=every)
        return logits if every else logits.unsqueeze(0)

    with kernels.use("plain"), kernels.only_kernels():
        host, device = (
            _on_host(predict, model, tasks),
            _on_device(predict, tasks, tasks.bank, every),
        )
        for first, count in ((0, 4), (4, 4), (8, 2)):
            for ours, theirs in zip(device(first, count), host(first, count), strict=True):
                assert torch.equal(ours, theirs)
    assert len(captures) == (0 if every else 2), "a graph for each number of tasks"


def test_a_cpu_captures_nothing() -> None:
    def body() -> None:
        pass

    assert graph.capture(body, CPU) is body


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("not here\nat all"), "not here"), (RuntimeError(), "RuntimeError")],
)
def test_after_a_capture_that_failed_there_is_no_other(error, said, monkeypatch, capsys) -> None:
    def failing() -> None:
        raise error

    def begun(graph, stream=None, capture_error_mode="global") -> nullcontext:
        captures.append(graph)
        return nullcontext()

    captures: list = []
    cuda, current = torch.device("cuda"), SimpleNamespace()
    monkeypatch.setattr(graph, "failed", [])
    monkeypatch.setattr(graph, "warm_up", lambda body, device, times: None)
    monkeypatch.setattr(graph, "_chain", lambda device: current)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=len))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph", begun)
    assert graph.capture(lambda: None, cuda) is len and not graph.failed
    assert graph.capture(failing, cuda) is failing
    assert graph.failed == captures[1:], "torch's allocator may go on asking it"
    body = lambda: None  # noqa: E731
    assert graph.capture(body, cuda) is body and len(captures) == 2
    assert capsys.readouterr().out.splitlines() == [
        f"no CUDA graph, kernels are launched one by one: {said}",
        "no CUDA graph after one that failed, kernels are launched one by one",
    ]
    with pytest.raises(RuntimeError, match="captures nothing more"):
        graphs.captured(body)
