"""Linear classifier and mean cross-entropy behind the last stage, and their tangent.

Features are the activation, filter by filter [F][pixels], or with MEAN each filter's mean; they are
built from x̂ [T, N, pixels, F] when they are loaded. One program an image for the logits, one a task
and pixel behind them. Of one pixel the second makes the logits itself, and there is no first.
"""

import triton
import triton.language as tl

from kernels.triton.launch import COUNTS
from kernels.triton.operands import slope_at, unbent


@triton.jit
def load_features(x_hat, gain, bias, slope, rows, p, f, valid, pixels, filters):
    """[images, filters] of the activation at pixel p, and its slope."""
    at = (rows[:, None] * pixels + p) * filters + f[None, :]
    both = valid[:, None] & (f < filters)[None, :]
    value = tl.load(x_hat + at, mask=both, other=0.0)
    g = tl.load(gain + f, mask=f < filters, other=0.0)[None, :]
    b = tl.load(bias + f, mask=f < filters, other=0.0)[None, :]
    bend = slope_at(value, g, b, slope)
    return tl.where(both, unbent(value, g, b) * bend, 0.0), bend


@triton.jit
def load_features_dot(x_hat_dot, gain, bend, rows, p, f, valid, pixels, filters):
    at = (rows[:, None] * pixels + p) * filters + f[None, :]
    both = valid[:, None] & (f < filters)[None, :]
    g = tl.load(gain + f, mask=f < filters, other=0.0)[None, :]
    return tl.load(x_hat_dot + at, mask=both, other=0.0) * g * bend


@triton.jit
def column(f, p, pixels, MEAN: tl.constexpr):
    """Column of a filter's feature in the classifier's weights."""
    return f if MEAN else f * pixels + p


@triton.jit
def load_classes(w, k, f, p, ways, filters, pixels, MEAN: tl.constexpr):
    """[filters, ways] of [ways, D]"""
    width = filters if MEAN else filters * pixels
    at = k[None, :] * width + column(f, p, pixels, MEAN)[:, None]
    return tl.load(w + at, mask=(k < ways)[None, :] & (f < filters)[:, None], other=0.0)


@triton.jit
def load_residual(residual, rows, k, valid, ways):
    """[images, ways]"""
    both = valid[:, None] & (k < ways)[None, :]
    return tl.load(residual + rows[:, None] * ways + k[None, :], mask=both, other=0.0)


@triton.jit
def cross_entropy(logits, k, labels, images, ways):
    """Softmax, (softmax − one-hot) / images, both [rows, ways], and what is lost in each row."""
    logits = tl.where((k < ways)[None, :], logits, -float("inf"))
    top = tl.max(logits, 1)
    e = tl.exp(logits - top[:, None])
    total = tl.sum(e, 1)
    softmax = e / total[:, None]
    right = labels[:, None] == k[None, :]
    each = tl.log(total) + top - tl.sum(tl.where(right, logits, 0.0), 1)
    each = tl.where((labels >= 0) & (labels < ways), each, float("nan"))
    return softmax, (softmax - tl.where(right, 1.0, 0.0)) / images, each


@triton.jit
def residual_along(logits_dot, softmax, images):
    """[rows, ways]"""
    return softmax * (logits_dot - tl.sum(softmax * logits_dot, 1)[:, None]) / images


@triton.jit(do_not_specialize=COUNTS)
def head_kernel(
    x_hat, x_hat_dot, gain, bias,  # of gain and bias a task's, the next `row_step` further on
    w, w_dot,  # [ways, D] then [ways] of a task, the next `w_step`, `w_dot_step` further on
    labels,  # int64 [T, N]
    logits, softmax, residual,  # [T, N, ways]; residual = (softmax − one-hot) / N
    losses,  # [T, N]
    images, pixels, filters: tl.constexpr, ways, row_step, w_step, w_dot_step, slope,
    MEAN: tl.constexpr, LABELS: tl.constexpr, DUAL: tl.constexpr,
    BD: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """DUAL: `residual` gets its direction, and `logits` is not written; softmax is then read."""
    task, k, real = tl.program_id(0), tl.arange(0, BW), tl.arange(0, BW) < ways
    row = task * images + tl.program_id(1)
    size = pixels * filters
    width = filters if MEAN else size
    gain += task * row_step
    bias += task * row_step
    w += task * w_step
    w_dot += task * w_dot_step
    acc = tl.zeros((BW, BD), tl.float32)
    # In the order of the weights, which are many more than the image's own values.
    for start in range(0, size, BD):
        j = start + tl.arange(0, BD)
        f, there = j // pixels, j < size
        at = row * size + j % pixels * filters + f
        value = tl.load(x_hat + at, mask=there, other=0.0)
        g = tl.load(gain + f, mask=there, other=0.0)
        b = tl.load(bias + f, mask=there, other=0.0)
        bend = slope_at(value, g, b, slope)
        h = (unbent(value, g, b) * bend)[None, :]
        weight = k[:, None] * width + (f if MEAN else j)[None, :]
        both = real[:, None] & there[None, :]
        if DUAL:
            acc += tl.load(w_dot + weight, mask=both, other=0.0) * h
            h = (tl.load(x_hat_dot + at, mask=there, other=0.0) * g * bend)[None, :]
        acc += tl.load(w + weight, mask=both, other=0.0) * h
    value = tl.sum(acc, 1)
    if MEAN:
        value = value / pixels
    value += tl.load((w_dot if DUAL else w) + ways * width + k, mask=real, other=0.0)
    at, real = (row * ways + k)[None, :], real[None, :]
    value = value[None, :]
    if DUAL:
        p = tl.load(softmax + at, mask=real, other=0.0)
        tl.store(residual + at, residual_along(value, p, images), mask=real)
    else:
        tl.store(logits + at, value, mask=real)
    if LABELS:
        own = row + tl.arange(0, 1)
        p, r, each = cross_entropy(value, k, tl.load(labels + own), images, ways)
        tl.store(softmax + at, p, mask=real)
        tl.store(residual + at, r, mask=real)
        tl.store(losses + own, each)


@triton.jit
def logits_of(
    x_hat, x_hat_dot, gain, bias, slope, w, w_dot, rows, valid, k, ways, filters: tl.constexpr,
    DUAL: tl.constexpr, BN: tl.constexpr, BF: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """[images, ways] of one pixel's features, or with DUAL their direction."""
    value = tl.zeros((BN, BW), tl.float32)
    for start in range(0, filters, BF):
        f = start + tl.arange(0, BF)
        h, bend = load_features(x_hat, gain, bias, slope, rows, 0, f, valid, 1, filters)
        classes = load_classes(w, k, f, 0, ways, filters, 1, False)
        if DUAL:
            along = load_classes(w_dot, k, f, 0, ways, filters, 1, False)
            value = tl.dot(h, along, value, input_precision="ieee")
            h = load_features_dot(x_hat_dot, gain, bend, rows, 0, f, valid, 1, filters)
        value = tl.dot(h, classes, value, input_precision="ieee")
    constant = tl.load((w_dot if DUAL else w) + ways * filters + k, mask=k < ways, other=0.0)
    return value + constant[None, :]


@triton.jit(do_not_specialize=COUNTS)
def logits_kernel(
    x_hat, gain, bias, w, logits,  # as in `head_kernel`
    images, filters: tl.constexpr, ways, row_step, w_step, slope,
    BN: tl.constexpr, BF: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Of one pixel's features, as `head_bwd_kernel` makes them, and nothing else."""
    task, k = tl.program_id(0), tl.arange(0, BW)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    rows, valid = task * images + n, n < images
    gain += task * row_step
    bias += task * row_step
    w += task * w_step
    value = logits_of(
        x_hat, x_hat, gain, bias, slope, w, w, rows, valid, k, ways, filters, False, BN, BF, BW
    )
    both = valid[:, None] & (k < ways)[None, :]
    tl.store(logits + rows[:, None] * ways + k[None, :], value, mask=both)


@triton.jit(do_not_specialize=COUNTS)
def head_bwd_kernel(
    x_hat, x_hat_dot, gain, bias, w, w_dot,
    labels, logits, softmax,  # of `head_kernel`, with OWN
    residual, residual_dot,  # [T, N, ways]
    losses, loss,  # [T, N] → [T], without DUAL
    delta,  # of the last stage [T, N, pixels, F]: written, with DUAL read
    delta_dot,  # written with DUAL
    part,  # [T, pixels, 2, F] Σδ and Σδx̂ over the images, or their directions
    gradient,  # [ways, D] then [ways], tasks `out_step` apart; with DUAL the product
    images, pixels, filters: tl.constexpr, ways, row_step, w_step, w_dot_step, out_step, slope,
    MEAN: tl.constexpr, DUAL: tl.constexpr, OWN: tl.constexpr,
    BN: tl.constexpr, BF: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """δ = slope·residual·w, and the classifier's gradient; a program does a block of filters at one
    pixel, with MEAN at all of them, a few images at a time. OWN, of one pixel: it makes the logits,
    and what follows from them, of all filters before.
    """
    task, k = tl.program_id(0), tl.arange(0, BW)
    f = tl.program_id(2) * BF + tl.arange(0, BF)
    real = f < filters
    gain += task * row_step
    bias += task * row_step
    w += task * w_step
    w_dot += task * w_dot_step
    gradient += task * out_step
    scale = 1.0 / pixels if MEAN else 1.0
    width = filters if MEAN else filters * pixels
    first = 0 if MEAN else tl.program_id(1)
    last = pixels if MEAN else first + 1
    dw = tl.zeros((BW, BF), tl.float32)
    constant, total = tl.zeros((BW,), tl.float32), tl.zeros((BN,), tl.float32)
    for p in range(first, last):
        s1 = tl.zeros((BF,), tl.float32)
        s2 = tl.zeros((BF,), tl.float32)
        classes = tl.trans(load_classes(w, k, f, p, ways, filters, pixels, MEAN))
        for start in range(0, images, BN):
            n = start + tl.arange(0, BN)
            rows, valid = task * images + n, n < images
            if OWN:
                value = logits_of(
                    x_hat, x_hat_dot, gain, bias, slope, w, w_dot, rows, valid, k, ways, filters,
                    DUAL, BN, BF, BW,
                )  # fmt: skip
                if DUAL:
                    r = load_residual(residual, rows, k, valid, ways)
                    chances = load_residual(softmax, rows, k, valid, ways)
                    r_dot = residual_along(value, chances, images)
                else:
                    label = tl.load(labels + rows, mask=valid, other=0)
                    chances, r, each = cross_entropy(value, k, label, images, ways)
                    both = valid[:, None] & (k < ways)[None, :]
                    r = tl.where(both, r, 0.0)
                    r_dot = r
                    if tl.program_id(2) == 0:
                        to = rows[:, None] * ways + k[None, :]
                        tl.store(logits + to, value, mask=both)
                        tl.store(softmax + to, chances, mask=both)
                        tl.store(residual + to, r, mask=both)
                    total += tl.where(valid, each, 0.0)
            else:
                r = load_residual(residual, rows, k, valid, ways)
                r_dot = load_residual(residual_dot, rows, k, valid, ways) if DUAL else r
                if not DUAL:
                    total += tl.load(losses + rows, mask=valid & (p == 0), other=0.0)
            if p == first:
                constant += tl.sum(r_dot, 0)
            h, bend = load_features(x_hat, gain, bias, slope, rows, p, f, valid, pixels, filters)
            dh = tl.dot(r_dot, classes, input_precision="ieee")
            dw = tl.dot(tl.trans(r_dot), h, dw, input_precision="ieee")
            if DUAL:
                other = tl.trans(load_classes(w_dot, k, f, p, ways, filters, pixels, MEAN))
                dh = tl.dot(r, other, dh, input_precision="ieee")
                h_dot = load_features_dot(x_hat_dot, gain, bend, rows, p, f, valid, pixels, filters)
                dw = tl.dot(tl.trans(r), h_dot, dw, input_precision="ieee")
            where = (rows[:, None] * pixels + p) * filters + f[None, :]
            inside = valid[:, None] & real[None, :]
            d = tl.where(inside, dh * bend * scale, 0.0)
            products = d * tl.load(x_hat + where, mask=inside, other=0.0)
            if DUAL:
                products += tl.load(delta + where, mask=inside, other=0.0) * tl.load(
                    x_hat_dot + where, mask=inside, other=0.0
                )
                tl.store(delta_dot + where, d, mask=inside)
            else:
                tl.store(delta + where, d, mask=inside)
            s1 += tl.sum(d, 0)
            s2 += tl.sum(products, 0)
        sums = part + (task * pixels + p) * 2 * filters + f
        tl.store(sums, s1, mask=real)
        tl.store(sums + filters, s2, mask=real)
    out = k[:, None] * width + column(f, first, pixels, MEAN)[None, :]
    tl.store(gradient + out, dw * scale, mask=(k < ways)[:, None] & real[None, :])
    if tl.program_id(1) == 0 and tl.program_id(2) == 0:
        tl.store(gradient + ways * width + k, constant, mask=k < ways)
        if not DUAL:
            tl.store(loss + task, tl.sum(total, 0) / images)
