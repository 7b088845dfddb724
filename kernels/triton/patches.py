"""Moments of the patches of a task's images, for the first stage (`kernels.triton.stem`).

Sums over hundreds of thousands of patches in float32: a few thousand at most are added one by one,
and their sums with the rounding error of the sum so far carried along (Kahan 1965), in order.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import COUNTS, padded
from kernels.triton.operands import dot, pixels_of, rounded_to
from kernels.triton.stem import load_patches
from kernels.triton.tensors import countable

MOST = 256  # parts of a sum
ROWS, AT_ONCE = 4, 16  # of a matrix that one program merges, and parts that it loads at once


class Patches(NamedTuple):
    images: Tensor  # [T, N, H + 2, W + 2, C] with a border, less the mean `pivot`
    mean: Tensor  # [T, KP] of the patches of these
    cov: Tensor  # [T, KP, KP]
    pivot: Tensor  # [T, KP] at each value of a patch


@triton.jit
def add(value, total, lost):
    """total + value, and what rounding took from it."""
    value -= lost
    new = total + value
    return new, (new - total) - value


@triton.jit(do_not_specialize=COUNTS)
def image_sums_kernel(
    images, part, pixels, channels: tl.constexpr, per_split, BM: tl.constexpr, BC: tl.constexpr
):
    """Σ over a split of a task's pixels → part [T, splits, C]."""
    split, task, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    c = tl.arange(0, BC)
    total = tl.zeros((BM, BC), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, pixels), BM):
        m = start + tl.arange(0, BM)
        at = images + (task * pixels + m)[:, None] * channels + c[None, :]
        total += tl.load(at, mask=(m < pixels)[:, None] & (c < channels)[None, :], other=0.0)
    out = part + (task * splits + split) * channels + c
    tl.store(out, tl.sum(total, 0), mask=c < channels)


@triton.jit(do_not_specialize=COUNTS)
def border_kernel(
    images, part, out, pivot,  # [T, N, H, W, C], [T, splits, C], [T, N, H + 2, W + 2, C], [T, KP]
    count, side: tl.constexpr, splits, pixels, channels: tl.constexpr,
    PRECISION: tl.constexpr, KP: tl.constexpr, BLOCK: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """The images with a border of 0, less their mean, the pivot at each value of a patch; as the
    products of a precision take them.
    """
    task, s, tap = tl.program_id(1), tl.arange(0, BS), tl.arange(0, 16)
    i, size = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), (side + 2) * (side + 2) * channels
    n, y, x = pixels_of(i // channels, side + 2, side + 2)
    y, x, c = y - 1, x - 1, i % channels
    own_mean = tl.zeros((BLOCK,), tl.float32)
    for channel in tl.static_range(channels):
        at = part + (task * splits + s) * channels + channel
        mean = tl.sum(tl.load(at, mask=s < splits, other=0.0), 0) / pixels
        own_mean = tl.where(c == channel, mean, own_mean)
        if tl.program_id(0) == 0:
            to = pivot + task * KP + channel * 9 + tap
            tl.store(to, tl.zeros((16,), tl.float32) + mean, mask=tap < 9)
    there = i < count * size
    inside = there & (y >= 0) & (y < side) & (x >= 0) & (x < side)
    at = images + (((task * count + n) * side + y) * side + x) * channels + c
    value = rounded_to(tl.load(at, mask=inside, other=0.0) - own_mean, PRECISION)
    tl.store(out + task * count * size + i, value, mask=there)
    if tl.program_id(0) == 0:
        k = tl.arange(0, KP)
        tl.store(pivot + task * KP + k, tl.zeros((KP,), tl.float32), mask=k >= 9 * channels)


@triton.jit(do_not_specialize=COUNTS)
def patch_sums_kernel(
    images,
    part,  # [T, splits, KP + 1, KP] Σ patch·patchᵀ, then Σ patch
    count, side: tl.constexpr, channels: tl.constexpr, per_split,
    PRECISION: tl.constexpr, KP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    split, task, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    k = tl.arange(0, KP)
    pixels = count * side * side
    gram, total = tl.zeros((KP, KP), tl.float32), tl.zeros((KP,), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, pixels), BM):
        m = start + tl.arange(0, BM)
        n, y, x = pixels_of(m, side, side)
        n += task * count
        patches = load_patches(images, n, y, x, k, m < pixels, side, channels)
        gram = dot(tl.trans(patches), patches, gram, PRECISION)
        total += tl.sum(patches, 0)
    out = part + (task * splits + split) * (KP + 1) * KP
    tl.store(out + k[:, None] * KP + k[None, :], gram)
    tl.store(out + KP * KP + k, total)


@triton.jit(do_not_specialize=COUNTS)
def patch_moments_kernel(
    part, mean_out, cov,  # [T, splits, KP + 1, KP], [T, KP], [T, KP, KP]
    splits, pixels, KP: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """A few rows of the covariance."""
    row, task, k = tl.program_id(0) * BK + tl.arange(0, BK), tl.program_id(1), tl.arange(0, KP)
    gram, gram_lost = tl.zeros((BK, KP), tl.float32), tl.zeros((BK, KP), tl.float32)
    total, total_lost = tl.zeros((KP,), tl.float32), tl.zeros((KP,), tl.float32)
    rows, rows_lost = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    for start in range(0, splits, BS):
        s = start + tl.arange(0, BS)
        at = part + (task * splits + s) * (KP + 1) * KP
        there = s < splits
        each = at[:, None, None] + row[None, :, None] * KP + k[None, None, :]
        matrices = tl.load(each, mask=there[:, None, None], other=0.0)
        gram, gram_lost = add(tl.sum(matrices, 0), gram, gram_lost)
        sums = tl.load(at[:, None] + KP * KP + k[None, :], mask=there[:, None], other=0.0)
        total, total_lost = add(tl.sum(sums, 0), total, total_lost)
        sums = tl.load(at[:, None] + KP * KP + row[None, :], mask=there[:, None], other=0.0)
        rows, rows_lost = add(tl.sum(sums, 0), rows, rows_lost)
    mean, mean_of_rows = total / pixels, rows / pixels
    if tl.program_id(0) == 0:
        tl.store(mean_out + task * KP + k, mean)
    out = cov + (task * KP + row[:, None]) * KP + k[None, :]
    tl.store(out, gram / pixels - mean_of_rows[:, None] * mean[None, :])


def patches(x: Tensor, precision: str) -> Patches:  # [T, N, H, W, C]
    """The images as the first stage reads them, and the moments of their 3×3 patches with padding
    1: of rounded ones in TF32, whose products are exact. Little is left of the mean, so that the
    covariance does not cancel in float32.
    """
    t, n, side, _, c = x.shape
    kp, bm, bc, pixels = padded(9 * c), 32, triton.next_power_of_2(c), n * side**2
    per_part = triton.cdiv(triton.cdiv(pixels, min(triton.cdiv(pixels, 8 * bm), MOST)), bm) * bm
    parts = triton.cdiv(pixels, per_part)
    countable("patches", (t, parts, kp + 1, kp))
    images, pivot = x.new_empty(t, n, side + 2, side + 2, c), x.new_empty(t, kp)
    per_split = triton.cdiv(triton.cdiv(pixels, MOST), 1024) * 1024
    splits = triton.cdiv(pixels, per_split)
    part = x.new_empty(t, splits, c)
    image_sums_kernel[(splits, t)](x, part, pixels, c, per_split, BM=256, BC=bc)
    border_kernel[(triton.cdiv(images[0].numel(), 2048), t)](
        x, part, images, pivot, n, side, splits, pixels, c,
        PRECISION=precision, KP=kp, BLOCK=2048, BS=triton.next_power_of_2(splits),
    )  # fmt: skip
    part, patch_mean = x.new_empty(t, parts, kp + 1, kp), x.new_empty(t, kp)
    cov = x.new_empty(t, kp, kp)
    patch_sums_kernel[(parts, t)](
        images, part, n, side, c, per_part, PRECISION=precision, KP=kp, BM=bm, num_stages=1
    )  # values of 4 bytes: they come slower ahead, into shared memory, than when they are read
    patch_moments_kernel[(kp // ROWS, t)](
        part, patch_mean, cov, parts, pixels, KP=kp, BK=ROWS, BS=AT_ONCE
    )
    return Patches(images, patch_mean, cov, pivot)
