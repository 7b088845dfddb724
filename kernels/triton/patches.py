"""Moments of the patches of a task's images, for the first stage (`kernels.triton.stem`).

Sums over hundreds of thousands of patches in float32: each tile's is added with the rounding error
of the sum so far carried along (Kahan 1965), and the parts are merged in order.
"""

from typing import NamedTuple

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.launch import COUNTS, padded
from kernels.triton.operands import pixels_of
from kernels.triton.stem import load_patches


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
def patch_sums_kernel(
    images,
    part,  # [T, splits, KP + 1, KP] Σ patch·patchᵀ, then Σ patch
    count, side, channels, per_split,
    KP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    split, task, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    k = tl.arange(0, KP)
    pixels = count * side * side
    gram, gram_lost = tl.zeros((KP, KP), tl.float32), tl.zeros((KP, KP), tl.float32)
    total, total_lost = tl.zeros((KP,), tl.float32), tl.zeros((KP,), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, pixels), BM):
        m = start + tl.arange(0, BM)
        n, y, x = pixels_of(m, side, side)
        n += task * count
        patches = load_patches(images, n, y, x, k, m < pixels, side, channels)
        product = tl.dot(tl.trans(patches), patches, input_precision="ieee")
        gram, gram_lost = add(product, gram, gram_lost)
        total, total_lost = add(tl.sum(patches, 0), total, total_lost)
    out = part + (task * splits + split) * (KP + 1) * KP
    tl.store(out + k[:, None] * KP + k[None, :], gram)
    tl.store(out + KP * KP + k, total)


@triton.jit(do_not_specialize=COUNTS)
def patch_moments_kernel(
    part, mean_out, cov,  # [T, splits, KP + 1, KP], [T, KP], [T, KP, KP]
    splits, pixels, KP: tl.constexpr,
):  # fmt: skip
    task, k = tl.program_id(0), tl.arange(0, KP)
    gram, gram_lost = tl.zeros((KP, KP), tl.float32), tl.zeros((KP, KP), tl.float32)
    total, total_lost = tl.zeros((KP,), tl.float32), tl.zeros((KP,), tl.float32)
    for split in range(splits):
        at = part + (task * splits + split) * (KP + 1) * KP
        gram, gram_lost = add(tl.load(at + k[:, None] * KP + k[None, :]), gram, gram_lost)
        total, total_lost = add(tl.load(at + KP * KP + k), total, total_lost)
    mean = total / pixels
    tl.store(mean_out + task * KP + k, mean)
    out = cov + (task * KP + k[:, None]) * KP + k[None, :]
    tl.store(out, gram / pixels - mean[:, None] * mean[None, :])


def patches(x: Tensor) -> Patches:  # [T, N, H, W, C]
    """The images as the first stage reads them, and the moments of their 3×3 patches with padding
    1. Little is left of the mean, so that the covariance does not cancel in float32.
    """
    t, n, side, _, c = x.shape
    mean = x.mean((1, 2, 3))
    images = F.pad(x, (0, 0, 1, 1, 1, 1)) - mean.view(t, 1, 1, 1, c)
    kp, bm, pixels = padded(9 * c), 64, n * side**2
    per_split = triton.cdiv(triton.cdiv(pixels, min(triton.cdiv(pixels, 8 * bm), 64)), bm) * bm
    splits = triton.cdiv(pixels, per_split)
    part, patch_mean = x.new_empty(t, splits, kp + 1, kp), x.new_empty(t, kp)
    cov = x.new_empty(t, kp, kp)
    patch_sums_kernel[(splits, t)](images, part, n, side, c, per_split, KP=kp, BM=bm)
    patch_moments_kernel[(t,)](part, patch_mean, cov, splits, pixels, KP=kp, num_warps=8)
    pivot = F.pad(mean.repeat_interleave(9, 1), (0, kp - 9 * c))
    return Patches(images, patch_mean, cov, pivot)
