"""The images of episodes, as `kernels.plain.gather`, by one launch: to the same bits. Indices are
taken as they are: one outside of the bank or the turns reads what lies there.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.plain.layout import whole
from kernels.triton.launch import COUNTS
from kernels.triton.tensors import countable, expect

BLOCK = 1024  # values of an image that a program makes


@triton.jit(do_not_specialize=COUNTS)
def gather_kernel(
    bank, index, places, scale, shift,  # as of `fwd`
    support, target,  # [T, ways, samples, H, W, C] each
    shots, samples, area: tl.constexpr, line: tl.constexpr, channels: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of an image; `samples` of a class are both sets'."""
    of_class, sample = tl.program_id(0) // samples, tl.program_id(0) % samples
    row, size = index + of_class * (samples + 1), area * channels
    own, turned = bank + tl.load(row + sample) * channels, places + tl.load(row + samples) * area
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = i < size
    place = tl.load(turned + i // channels, mask=valid, other=0).to(tl.int32)
    byte = tl.load(own + place * channels + i % channels, mask=valid, other=0)
    scales = tl.load(scale + i % line, mask=valid, other=0.0)
    value = byte.to(tl.float32) * scales + tl.load(shift + i % line, mask=valid, other=0.0)
    if sample < shots:
        tl.store(support + (of_class * shots + sample) * size + i, value, mask=valid)
    else:
        to = of_class * (samples - shots) + sample - shots
        tl.store(target + to * size + i, value, mask=valid)


def fwd(
    bank: Tensor, index: Tensor, places: Tensor, scale: Tensor, shift: Tensor, shots: int
) -> tuple[Tensor, Tensor]:
    tasks, ways, samples = index.shape[0], index.shape[1], index.shape[2] - 1
    _, height, width, channels = bank.shape
    line = width * channels
    expect("gather", scale, scale=(scale, (line,)), shift=(shift, (line,)))
    checks.tensors("triton gather", bank=bank, index=index, places=places)
    support, target = (
        scale.new_empty(tasks, ways * count, height, width, channels)
        for count in (shots, samples - shots)
    )
    countable("gather", support.shape, target.shape)
    gather_kernel[(tasks * ways * samples, triton.cdiv(height * line, BLOCK))](
        *map(whole, (bank, index, places, scale, shift)), support, target,
        shots, samples, height * width, line, channels, BLOCK=BLOCK,
        enable_fp_fusion=False,  # a product, rounded, and then a sum, as on the host
    )  # fmt: skip
    return support.permute(0, 1, 4, 2, 3), target.permute(0, 1, 4, 2, 3)
