"""A run of November 2026 loads, evaluates and goes on, whatever is added to the engine since.

``tests/data/run-2026-11`` was made by the code of commit 86dba19, in a folder where ``tiny`` was
``steady_images``: ``python -m engine.train`` with ``FLAGS`` of ``tests.tiny``, ``--data tiny``,
``--cache cache`` and ``--run run``, stopped by Ctrl-C after iteration 9 of 12.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine import evaluate, meta, train
from engine.config import Config
from engine.episodes import Episode
from engine.models.backbone import Backbone
from engine.runs import checkpoint
from engine.runs.packed import unpack
from engine.unroll import adapt_and_predict
from tests.tiny import flags

OLD = Path(__file__).parent / "data" / "run-2026-11"


def steady_images(folder: Path) -> Path:
    """``<split>/<class>/<n>.png``, the same to the bit with any version of anything."""
    for split in ("train", "val", "test"):
        for c in range(6):
            place = folder / split / f"{split}{c}"
            place.mkdir(parents=True)
            for n in range(6):
                noise = hashlib.shake_256(f"{split} {c} {n}".encode()).digest(16 * 16 * 3)
                pixels = bytes(value // 2 + 20 * c for value in noise)
                Image.frombytes("RGB", (16, 16), pixels).save(place / f"{n}.png")
    return folder


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def patterns(count: int, factor: int) -> torch.Tensor:
    values = torch.arange(count * 3 * 16 * 16) * factor % 101
    return (values / 50 - 1).view(1, count, 3, 16, 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return steady_images(tmp_path_factory.mktemp("older") / "tiny")


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_everything_is_read():
    latest = checkpoint.load(OLD / "latest.pt")
    assert (latest.epoch, latest.best) == (2, [[1, 0.5833333333333333], [2, 0.5]])
    assert (latest.data_name, latest.precisions) == ("folder:tiny", {"cpu": "fp32"})
    assert latest.meters["whole"]["loss"] == 0.9837762117385864
    assert digest(latest.rng) == "1ccf17250133dec5"
    cfg = Config.from_dict(latest.config)
    assert (cfg.ways, cfg.lr, cfg.min_lr, cfg.rotations) == (3, 1e-3, 1e-5, "none")
    state = unpack(meta.layout(cfg), latest.state, "cpu")
    assert state.iteration == 9
    assert [digest(t) for group in state[:4] for t in group] == [
        *("7fd2d813bb42b7c3", "0d102d4b66eecc7e", "debc456d222f7ce2"),
        *("8d435ae7bf2221aa", "daaf0837d2ea4d31", "598d6cc5b9f35e23"),
        *("7e1c5229c914bb4d", "3cf5b84b485c7985", "05f9f939b19b022b"),
        *("73ff43412ef4049d", "a2947a920c2099eb"),
    ]


@pytest.mark.parametrize(
    ("protocol", "statistics", "expected"),
    [
        (
            *("transductive", "batch"),
            [[0.35646, -1.92370, 2.31533], [-1.33954, -2.27855, 2.42798],
             [-0.37562, -1.75960, 0.82158]],
        ),
        (
            *("inductive", "batch"),
            [[0.13841, -0.28991, 0.56192], [0.03953, -0.15638, 0.48168],
             [0.08284, -0.34997, 0.55916]],
        ),
        (
            *("transductive", "running"),
            [[-0.17795, 0.10224, 0.21909], [-0.20406, 0.08855, 0.22402],
             [-0.17897, 0.09882, 0.20846]],
        ),
    ],
)  # fmt: skip
def test_the_network_adapts_and_predicts_as_it_did(backend, protocol, statistics, expected):
    latest = checkpoint.load(OLD / "latest.pt")
    cfg = Config.from_dict(latest.config)
    state = unpack(meta.layout(cfg), latest.state, "cpu")
    episode = Episode(
        patterns(3, 37), torch.tensor([[0, 1, 2]]), patterns(3, 41), torch.tensor([[0, 1, 2]])
    )
    logits = adapt_and_predict(
        Backbone.of(cfg), state.params, state.running, episode,
        steps=cfg.steps, norm_statistics=statistics, protocol=protocol,
    )  # fmt: skip
    torch.testing.assert_close(logits[0], torch.tensor(expected), rtol=0, atol=1e-4)


def test_it_is_evaluated(run, tiny, capsys):
    assert evaluate.main([str(run), "--data", str(tiny)]) == 0
    out = capsys.readouterr().out
    assert "trained on folder:tiny, tested on folder:tiny\n" in out and "ensemble of 2" in out


def test_it_is_continued(run, tiny, capsys):
    before = (run / "log.jsonl").read_text()
    assert train.main(flags(tiny, run)) == 0
    assert "continuing after iteration 9" in capsys.readouterr().out
    log = (run / "log.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    assert log.startswith(before) and len(rows) == 15
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == list(range(1, 13))
    assert checkpoint.load(run / "latest.pt").epoch == 3 and (run / "result.json").exists()
