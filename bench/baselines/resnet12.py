"""ResNet-12 as the papers draw it, of torch's own modules."""

import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.resnet12 import ResNet12


class Block(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        inputs = channels, width, width
        self.convs = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in inputs)
        self.shortcut = nn.Conv2d(channels, width, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        u = x
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            u = norm(conv(u))
            u = F.leaky_relu(u, 0.1) if k < 2 else u
        return F.max_pool2d(F.leaky_relu(u + self.shortcut_norm(self.shortcut(x)), 0.1), 2)


class TorchResNet12(nn.Module):
    def __init__(self, model: ResNet12):
        super().__init__()
        widths = model.in_channels, *model.widths
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in pairs))
        self.linear = nn.Linear(widths[-1], model.ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(x).mean((2, 3)))

    def adapted(self) -> list[str]:
        """Names in the order of the engine's buffers."""
        count = range(len(self.blocks))
        units = [*(f"convs.{k}" for k in range(3)), "shortcut"]
        names = [f"blocks.{b}.{unit}.weight" for b in count for unit in units]
        return [*names, "linear.weight", "linear.bias"]

    def norms(self) -> list[str]:
        units = [*(f"norms.{k}" for k in range(3)), "shortcut_norm"]
        names = [f"blocks.{b}.{u}" for b in range(len(self.blocks)) for u in units]
        return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]
