"""The reference implementation's files: one outer iteration each, under this project's names."""

import ast
import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.models.backbone import Backbone
from engine.models.interface import Params

SHARED = Path(__file__).resolve().parents[2] / "shared"
FOLDERS = {"GOLDEN_DIR": "golden", "DATA_DIR": "data"}
_STATISTIC = {"running_mean": "mean", "running_var": "var"}


def shared_folder(variable: str) -> Path:
    """Folder that the environment variable names, or its default beside the checkout."""
    return Path(os.environ.get(variable) or SHARED / FOLDERS[variable])


def files() -> list[Path]:
    return sorted(shared_folder("GOLDEN_DIR").glob("*.npz"))


class Golden:
    """What a file holds, in float64 but for the labels.

    `config`: its settings. `sets`: support images [T, N, C, H, W] and labels [T, N], then the
    targets'. `groups`: "init", "grad" and "stats_after", each by kind ("network", "norm", "rates",
    "stats") and name, as "conv0.weight" or "norm0.mean".
    """

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))
        self.config = ast.literal_eval(str(self.arrays["config"]))
        images = {s: self.tensor(f"{s}_x").flatten(1, 2).double() for s in ("support", "target")}
        labels = {s: self.tensor(f"{s}_y").flatten(1) for s in images}
        self.sets = tuple(part[s] for s in images for part in (images, labels))
        self.groups: dict[str, dict[str, dict[str, Tensor]]] = {}
        for key in self.arrays:
            group, _, name = key.partition("/")
            if name:
                kind, ours = _our_name(name)
                self.groups.setdefault(group, {}).setdefault(kind, {})[ours] = self.tensor(key)

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    @property
    def multi_step(self) -> bool:
        return self.config["epoch"] < self.config["msl_epochs"]

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """As the reference used them: it rounds its weights to float32."""
        if self.multi_step:
            return tuple(self.arrays["loss_weights"].tolist())
        return (0.0,) * (self.config["steps"] - 1) + (1.0,)


def _our_name(name: str) -> tuple[str, str]:
    """Kind and name of one of the reference's parameters."""
    rate = re.fullmatch(r"inner_loop.*\.layer_dict-(\w+?)(?:-conv)?-(\w+)", name)
    if rate:
        return "rates", f"{rate[1]}.{rate[2].replace('weights', 'weight')}"
    layer, rest = name.removeprefix("classifier.layer_dict.").split(".", 1)
    if rest.startswith("norm_layer."):
        tensor = rest.removeprefix("norm_layer.")
        kind = "stats" if tensor in _STATISTIC else "norm"
        return kind, f"{layer.replace('conv', 'norm')}.{_STATISTIC.get(tensor, tensor)}"
    return "network", f"{layer}.{rest.removeprefix('conv.').replace('weights', 'weight')}"


def model_of(golden: Golden) -> Backbone:
    c = golden.config
    return Backbone(
        c["in_channels"],
        c["image"],
        c["filters"],
        4,
        c["ways"],
        "pool" if c["max_pool"] else "stride",
        c["negative_slope"],
        c["bn_eps"],
    )


def params_of(golden: Golden, group: str) -> Params:
    """Parameters, or their gradients, in the engine's flat layout; conv biases have none here."""
    kinds, c = golden.groups[group], golden.config
    names = list(model_of(golden).shapes)
    norm = [kinds["norm"][f"norm{s}.{n}"] for s in range(4) for n in ("weight", "bias")]
    return Params(
        Backbone.flat([kinds["network"][name].unsqueeze(0) for name in names])[0],
        torch.cat([rows.reshape(-1, c["filters"]) for rows in norm], 1),
        torch.stack([kinds["rates"][name][: c["steps"]] for name in names], 1),
    )


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Within 1e-9 of the largest entry."""
    scale = expected.abs().max().item()
    error = (actual.detach() - expected).abs().max().item()
    assert error <= 1e-9 * scale, f"{what}: off by {error:.2e}, largest entry {scale:.2e}"
