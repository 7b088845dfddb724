"""Whatever a checkpoint holds in whatever field: a clear line, or a state that is right."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import meta, train
from engine.config import Config
from engine.errors import UserError
from engine.runs import checkpoint
from engine.runs.problem import Pictures, load_dataset
from engine.runs.run import Run
from engine.runs.saved import load_best, restore
from tests.tiny import flags

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(images) -> Path:
    folder = images.parent / "finished"
    assert train.main(flags(images, folder, "--precision", "fp32", "--ensemble", 1)) == 0
    return folder


@pytest.fixture(scope="module")
def place(finished, images):
    """A copy to be spoilt: its folder, configuration and data."""
    folder = Path(shutil.copytree(finished, images.parent / "spoilt"))
    cfg = Config.resolve(flags(images, folder, "--precision", "fp32", "--ensemble", 1))
    return folder, cfg, load_dataset(cfg)


def places(value, above=()) -> list[tuple]:
    """The keys that lead to each entry of nested dicts and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in entries:
        found.append((*above, key))
        if isinstance(entry, (dict, list)):
            found += places(entry, (*above, key))
    return found


def nested(depth: int) -> list:
    value = []
    for _ in range(depth):
        value = [value]
    return value


ODD = [
    *(None, True, False, -1, 0, 1, 3, 70_000, 10**30, 10**5000, -0.5, 1.5, 1e300),
    *(float("nan"), float("inf"), "", "x", "\x1b[2J\n", "a\0b", "~nobody/x", "bf16x3", b"x"),
    *([], [[]], [1], [[1, 2]], [[1, "x"]], [[True, 0.5]], [[10**30, 0.5]], [None], nested(400)),
    *({}, {"x": 1}, {1: 2}, {"count": "x"}, {"x": [1]}, {"cpu": "fp32"}, {"cpu": "fp99"}, (1, 2)),
    *(torch.zeros(()), torch.zeros(0), torch.zeros(3, 4), torch.zeros(5056, dtype=torch.uint8)),
    *(torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64), torch.float32),
]
GONE, MORE = object(), object()  # takes the entry out, puts another beside


def like(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of the same shape that are wrong all the same."""
    spoilt = tensor.clone()
    spoilt.view(-1)[-1] = float("nan") if tensor.is_floating_point() else 0
    return [spoilt, tensor.to(torch.float64), tensor.to(torch.int64), tensor.unsqueeze(0)]


def spoilt(content: dict, where: tuple, value) -> dict:
    content = copied(content)
    *above, last = where
    holder = content
    for key in above:
        holder = holder[key]
    if value is GONE:
        del holder[last]
    elif value is MORE:
        holder[f"{last} too"] = 1
    else:
        holder[last] = value
    return content


def copied(value):
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if isinstance(value, list) else value


def use(folder: Path, cfg: Config, dataset) -> list[str]:
    """Resumes and evaluates; the lines that refused it."""
    refused = []
    for work in (
        lambda: Run.open(cfg, folder, Pictures(dataset), CPU),
        lambda: restore(
            meta.layout(Config.from_dict(load_best(folder)[0].config)), load_best(folder), CPU
        ),
    ):
        try:
            work()
        except UserError as error:
            assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 600
            refused.append(str(error))
    return refused


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_value_in_any_field_is_a_line_or_harmless(finished, place, data):
    content = torch.load(finished / "latest.pt", weights_only=True)
    where = data.draw(st.sampled_from(places(content)))
    old = content
    for key in where:
        old = old[key]
    values = [*ODD, *like(old)] if isinstance(old, torch.Tensor) else ODD
    inside_dict = isinstance(where[-1], str)
    value = data.draw(st.sampled_from([*values, GONE, *[MORE] * inside_dict]))
    check(where, value, finished, place)


def check(where, value, finished, place):
    folder, cfg, dataset = place
    for name in ("result.json", "config.json"):
        shutil.copy(finished / name, folder / name)
    for path in finished.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        torch.save(spoilt(content, where, value), folder / path.name)
    refused = use(folder, cfg, dataset)
    if where[0] == "state" and where != ("state", "iteration"):
        assert len(refused) == 2, "wrong parameters were taken"


@pytest.mark.parametrize("name", ["params", "second", "running"])
def test_numbers_that_are_not_finite_are_named(finished, place, name):
    folder, cfg, dataset = place
    for path in finished.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        part = next(iter(content["state"][name]))
        content["state"][name][part].view(-1)[:2] = torch.tensor([float("inf"), float("nan")])
        torch.save(content, folder / path.name)
    words = f"state.{name}.{part} of the checkpoint has 2 values that are NaN or infinite"
    refused = use(folder, cfg, dataset)
    assert len(refused) == 2 and all(words in line for line in refused)


def test_a_checkpoint_larger_than_its_file_takes_no_memory(finished, place):
    content = torch.load(finished / "latest.pt", weights_only=True)
    for name in ("filters", "ways", "steps"):
        content["config"][name] = 60_000
    torch.save(content, place[0] / "large.pt")
    saved = load_best(place[0] / "large.pt")
    with pytest.raises(UserError, match="params.theta of the checkpoint is .*needs torch.float32"):
        restore(meta.layout(Config.from_dict(saved[0].config)), saved, CPU)


def test_paths_of_another_machine_are_not_taken(finished, place):
    content = torch.load(finished / "latest.pt", weights_only=True)
    content["config"] |= {"data": "/a", "cache": "/b", "run": "/c"}
    torch.save(content, place[0] / "given.pt")
    config = checkpoint.load(place[0] / "given.pt").config
    assert [config[name] for name in ("data", "cache", "run")] == [None] * 3
