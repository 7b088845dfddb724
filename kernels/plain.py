"""The backend that runs anywhere: every op's derivatives as closed forms in plain torch, any float dtype, any device.

Each op supplies pure functions over the task axis; inputs are never written:

* `fwd`      the value, and what the others need;
* `bwd`      the gradient;
* `tan_fwd`  the derivative of `fwd` along a direction of its inputs;
* `tan_bwd`  the derivative of `bwd` along the same direction.

The tangent has two halves because a chain of layers needs every forward half before the first backward
one. A direction that is zero may be `None`. Images are logically [T, N, C, H, W] and NHWC in memory,
which is what makes the convolutions and the per-channel passes fast; other layouts are converted.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """`x` [T, N, C, H, W] with NHWC memory, copied only if it has another layout."""
    _, n, c, h, w = x.shape
    stride = (n * h * w * c, h * w * c, 1, w * c, c)
    # One channel looks like both layouts; only an explicit stride of 1 makes torch keep NHWC.
    if all(a == b for a, b, size, dim in zip(x.stride(), stride, x.shape, range(5), strict=True)
           if size > 1 or dim == 2):
        return x
    return torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)


def _stack(images: list[Tensor]) -> Tensor:
    if len(images) == 1:
        return images[0].unsqueeze(0)
    return torch.stack([i.permute(0, 2, 3, 1) for i in images]).permute(0, 1, 4, 2, 3)


def _sum(*terms: Tensor | None) -> Tensor | None:
    present = [t for t in terms if t is not None]
    if not present:
        return None
    total = present[0]
    for term in present[1:]:
        total = total + term
    return total


class conv:
    """z = conv(x, w), bwd and tangents: the three contractions of one trilinear form (engine study §2.1)."""

    @staticmethod
    def fwd(
        x: Tensor,  # [T, N, C, H, W]
        w: Tensor,  # [T, F, C, R, S]
        stride: int,
        padding: int,
    ) -> Tensor:  # [T, N, F, H', W']
        x = channels_last(x)
        return _stack([torch.conv2d(x[t], w[t], None, stride, padding) for t in range(len(x))])

    @staticmethod
    def bwd(
        dz: Tensor,  # [T, N, F, H', W']
        x: Tensor,  # [T, N, C, H, W]
        w: Tensor,  # [T, F, C, R, S]
        stride: int,
        padding: int,
        need: tuple[bool, bool] = (True, True),
    ) -> tuple[Tensor | None, Tensor | None]:
        dz, x = channels_last(dz), channels_last(x)
        dx, dw = [], []
        for t in range(len(x)):
            gx, gw, _ = torch.ops.aten.convolution_backward(
                dz[t], x[t], w[t], None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
                [*need, False],
            )
            dx.append(gx)
            dw.append(gw)
        return _stack(dx) if need[0] else None, torch.stack(dw) if need[1] else None

    @staticmethod
    def tan_fwd(x, w, x_dot, w_dot, stride, padding) -> Tensor | None:
        return _sum(
            None if w_dot is None else conv.fwd(x, w_dot, stride, padding),
            None if x_dot is None else conv.fwd(x_dot, w, stride, padding),
        )

    @staticmethod
    def tan_bwd(
        dz, dz_dot, x, w, x_dot, w_dot, stride, padding, need=(True, True)
    ) -> tuple[Tensor | None, Tensor | None]:
        """(dgrad(ż, w) + dgrad(z, ẇ), wgrad(x, ż) + wgrad(ẋ, z)) with z = dz."""
        first = second = (None, None)
        if dz_dot is not None:
            first = conv.bwd(dz_dot, x, w, stride, padding, need)
        use = (need[0] and w_dot is not None, need[1] and x_dot is not None)
        if any(use):
            # Only the operand that a product needs has to be right; the other one lends its shape.
            second = conv.bwd(
                dz, x if x_dot is None else x_dot, w if w_dot is None else w_dot, stride, padding, use
            )
        return _sum(first[0], second[0]), _sum(first[1], second[1])


class NormActSaved(NamedTuple):
    """What `norm_act` keeps: everything the tangents need, the dense input once."""

    z: Tensor  # [T, N, C, H, W]
    mean: Tensor  # [T, C] of the batch
    var: Tensor  # [T, C] of the batch, biased
    centre: Tensor  # [T, C] subtracted: the batch mean, or the given one
    rstd: Tensor  # [T, C]
    x_hat: Tensor  # [T, N, C, h, w] normalised input at the pooling winners
    index: Tensor | None  # [T·N, C, h, w] winner inside its image, None without pooling
    mask: Tensor | None  # [T, N, C, h, w] slope of the activation, None without one
    count: int  # elements behind each statistic; 0: the statistics were given and are constants


class NormActTangent(NamedTuple):
    z_dot: Tensor | None  # [T, N, C, H, W]
    mean_dot: Tensor | None  # [T, C]
    q: Tensor | None  # [T, C] mean of x̂·ż, so that ṙ = −r²q
    x_hat_dot: Tensor | None  # [T, N, C, h, w]


def _wide(v: Tensor) -> Tensor:
    """[T, C] → [T, 1, C, 1, 1]"""
    return v[:, None, :, None, None]


def _channel_sum(x: Tensor) -> Tensor:
    """[T, N, C, h, w] → [T, C]"""
    return x.permute(0, 1, 3, 4, 2).flatten(1, 3).sum(1)


def _rows(x: Tensor) -> Tensor:
    """[n, C, h, w] → [n, h·w, C], a view for NHWC memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _at_winners(dense: Tensor, saved: NormActSaved) -> Tensor:
    if saved.index is None:
        return dense
    values = _rows(dense.flatten(0, 1)).gather(1, _rows(saved.index))
    t, n, c, h, w = saved.x_hat.shape
    return values.view(t, n, h, w, c).permute(0, 1, 4, 2, 3)


def _scatter(pooled: Tensor, saved: NormActSaved) -> Tensor:
    """Pooled values at their winners, zero elsewhere; a new tensor that the caller may write."""
    if saved.index is None:
        return pooled.clone()
    dense = torch.ops.aten.max_pool2d_with_indices_backward(
        pooled.flatten(0, 1), saved.z.flatten(0, 1), [2, 2], [2, 2], [0, 0], [1, 1], False, saved.index
    )
    return dense.view_as(saved.z)


def _masked(values: Tensor | None, saved: NormActSaved) -> Tensor | None:
    return values if saved.mask is None or values is None else values * saved.mask


class norm_act:
    """Batch norm + affine + leaky ReLU + 2×2 max pool (engine study §2.2), statistics per task and channel."""

    @staticmethod
    def fwd(
        z: Tensor,  # [T, N, C, H, W]
        gain: Tensor,  # [T, C]
        bias: Tensor,  # [T, C]
        eps: float,
        negative_slope: float,
        pool: bool,
        statistics: tuple[Tensor, Tensor] | None,  # mean, biased variance [T, C]; None: the batch's own
    ) -> tuple[Tensor, NormActSaved]:
        z = channels_last(z)
        moments = [torch.batch_norm_update_stats(image, None, None, 0.0) for image in z]
        mean, var = (torch.stack(m) for m in zip(*moments, strict=True))
        centre, spread = statistics or (mean, var)
        rstd = (spread + eps).rsqrt()
        winners, index = z, None
        if pool:
            # Affine and activation are monotone, so they commute with the maximum up to the gain's sign.
            flat = z.flatten(0, 1)
            if bool((gain > 0).all()):
                winners, index = F.max_pool2d(flat, 2, return_indices=True)
                winners = winners.unflatten(0, z.shape[:2])
            else:
                signed = (z * _wide(gain.sign())).flatten(0, 1)
                _, index = F.max_pool2d(signed, 2, return_indices=True)
                values = _rows(flat).gather(1, _rows(index))
                h, w = index.shape[2:]
                winners = values.unflatten(1, (h, w)).permute(0, 3, 1, 2).unflatten(0, z.shape[:2])
        x_hat = (winners - _wide(centre)) * _wide(rstd)
        y = torch.addcmul(_wide(bias), x_hat, _wide(gain))
        mask = None
        if negative_slope != 1.0:
            mask = torch.where(y > 0, y.new_ones(()), y.new_full((), negative_slope))
            y = y * mask
        count = 0 if statistics else z.numel() // (z.shape[0] * z.shape[2])
        return y, NormActSaved(z, mean, var, centre, rstd, x_hat, index, mask, count)

    @staticmethod
    def bwd(
        saved: NormActSaved,
        gain: Tensor,  # [T, C]
        dy: Tensor,  # [T, N, C, h, w]
    ) -> tuple[Tensor, Tensor, Tensor]:  # dz, dgain [T, C], dbias [T, C]
        delta = _masked(dy, saved)
        s1, s2 = _channel_sum(delta), _channel_sum(delta * saved.x_hat)
        scale = gain * saved.rstd
        dz = _scatter(delta * _wide(scale), saved)
        if saved.count:
            slope = -scale * saved.rstd * s2 / saved.count
            dz.addcmul_(saved.z, _wide(slope))
            dz.add_(_wide(-scale * s1 / saved.count - slope * saved.centre))
        return dz, s2, s1

    @staticmethod
    def tan_fwd(
        saved: NormActSaved,
        gain: Tensor,  # [T, C]
        z_dot: Tensor | None,  # [T, N, C, H, W]
        gain_dot: Tensor | None = None,  # [T, C]
        bias_dot: Tensor | None = None,  # [T, C]
    ) -> tuple[Tensor | None, NormActTangent]:
        mean_dot = q = x_hat_dot = None
        if z_dot is not None:
            z_dot = channels_last(z_dot)
            x_hat_dot = _at_winners(z_dot, saved)
            if saved.count:
                mean_dot = _channel_sum(z_dot) / saved.count
                # Centred before the product: mean(z·ż) − μ·μ̇ would cancel where |μ| exceeds the spread.
                product = (saved.z - _wide(saved.centre)).mul_(z_dot)
                q = _channel_sum(product) * saved.rstd / saved.count
                x_hat_dot = x_hat_dot - _wide(mean_dot) - saved.x_hat * _wide(q)
            x_hat_dot = x_hat_dot * _wide(saved.rstd)
        y_dot = _sum(
            None if x_hat_dot is None else x_hat_dot * _wide(gain),
            None if gain_dot is None else saved.x_hat * _wide(gain_dot),
            None if bias_dot is None else _wide(bias_dot).expand_as(saved.x_hat),
        )
        return _masked(y_dot, saved), NormActTangent(z_dot, mean_dot, q, x_hat_dot)

    @staticmethod
    def tan_bwd(
        saved: NormActSaved,
        tangent: NormActTangent,
        gain: Tensor,  # [T, C]
        dy: Tensor,  # [T, N, C, h, w]
        dy_dot: Tensor | None,  # [T, N, C, h, w]
        gain_dot: Tensor | None = None,  # [T, C]
    ) -> tuple[Tensor, Tensor, Tensor]:  # directions of dz, dgain, dbias
        delta = _masked(dy, saved)
        delta_dot = torch.zeros_like(delta) if dy_dot is None else _masked(dy_dot, saved)
        s1_dot, s2_dot = _channel_sum(delta_dot), _channel_sum(delta_dot * saved.x_hat)
        if tangent.x_hat_dot is not None:
            s2_dot = s2_dot + _channel_sum(delta * tangent.x_hat_dot)
        r, n, scale = saved.rstd, saved.count, gain * saved.rstd
        scale_dot = torch.zeros_like(scale) if gain_dot is None else gain_dot * r
        if tangent.q is not None:
            scale_dot = scale_dot - scale * r * tangent.q
        pooled = torch.addcmul(delta * _wide(scale_dot), delta_dot, _wide(scale))
        dz_dot = _scatter(pooled, saved)
        if n:
            # Coefficients of x̂, of ż and of 1 (engine study §2.2, b₁…b₄, with dz eliminated).
            s1, s2 = _channel_sum(delta), _channel_sum(delta * saved.x_hat)
            on_x_hat = -(scale_dot * s2 + scale * s2_dot) / n
            constant = -(scale_dot * s1 + scale * s1_dot) / n
            if tangent.z_dot is not None:
                on_z_dot = -scale * r * s2 / n
                dz_dot.addcmul_(tangent.z_dot, _wide(on_z_dot))
                on_x_hat = on_x_hat - on_z_dot * tangent.q
                constant = constant - on_z_dot * tangent.mean_dot
            dz_dot.addcmul_(saved.z, _wide(on_x_hat * r))
            dz_dot.add_(_wide(constant - on_x_hat * r * saved.centre))
        return dz_dot, s2_dot, s1_dot


class HeadSaved(NamedTuple):
    residual: Tensor  # [T, N, ways] (softmax − one-hot) / N
    softmax: Tensor  # [T, N, ways]


class head:
    """Linear classifier and mean cross-entropy, one task a row."""

    @staticmethod
    def fwd(
        h: Tensor,  # [T, N, D]
        w: Tensor,  # [T, ways, D]
        c: Tensor,  # [T, ways]
        labels: Tensor,  # [T, N]
    ) -> tuple[Tensor, Tensor, HeadSaved]:  # loss [T], logits [T, N, ways]
        logits = torch.baddbmm(c.unsqueeze(1), h, w.mT)
        log_softmax = logits.log_softmax(2)
        softmax = log_softmax.exp()
        picked = log_softmax.gather(2, labels.unsqueeze(2)).squeeze(2)
        ones = torch.ones_like(picked).unsqueeze(2)
        residual = softmax.scatter_add(2, labels.unsqueeze(2), -ones) / h.shape[1]
        return -picked.mean(1), logits, HeadSaved(residual, softmax)

    @staticmethod
    def bwd(
        saved: HeadSaved,
        h: Tensor,  # [T, N, D]
        w: Tensor,  # [T, ways, D]
        d_loss: Tensor,  # [T]
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_logits = saved.residual * d_loss[:, None, None]
        return d_logits @ w, d_logits.mT @ h, d_logits.sum(1)

    @staticmethod
    def tan_fwd(saved, h, w, h_dot, w_dot, c_dot) -> tuple[Tensor, Tensor]:
        """Directions of the loss [T] and of the logits [T, N, ways]."""
        logits_dot = _sum(
            None if h_dot is None else h_dot @ w.mT,
            None if w_dot is None else h @ w_dot.mT,
            None if c_dot is None else c_dot.unsqueeze(1).expand_as(saved.softmax),
        )
        if logits_dot is None:
            logits_dot = torch.zeros_like(saved.softmax)
        return (saved.residual * logits_dot).sum((1, 2)), logits_dot

    @staticmethod
    def tan_bwd(saved, logits_dot, h, w, h_dot, w_dot, d_loss) -> tuple[Tensor, Tensor, Tensor]:
        centred = logits_dot - (saved.softmax * logits_dot).sum(2, keepdim=True)
        scale = d_loss[:, None, None]
        d_logits = saved.residual * scale
        d_logits_dot = saved.softmax * centred * (scale / h.shape[1])
        dh_dot = _sum(d_logits_dot @ w, None if w_dot is None else d_logits @ w_dot)
        dw_dot = _sum(d_logits_dot.mT @ h, None if h_dot is None else d_logits.mT @ h_dot)
        return dh_dot, dw_dot, d_logits_dot.sum(1)


class update:
    """θ' = θ − α[segment]·g over flat buffers (engine study §2.4). `rates` has one entry a segment."""

    @staticmethod
    def spread(rates: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """One rate a segment [L] → one a parameter [P]."""
        counts = torch.tensor(sizes, device=rates.device)
        return rates.repeat_interleave(counts, output_size=sum(sizes))

    @staticmethod
    def fwd(
        theta: Tensor,  # [T, P]
        grad: Tensor,  # [T, P]
        rates: Tensor,  # [L]
        sizes: tuple[int, ...],
    ) -> Tensor:  # [T, P]
        return torch.addcmul(theta, update.spread(rates, sizes), grad, value=-1)

    @staticmethod
    def bwd(
        d_theta: Tensor,  # [T, P] gradient of θ'; θ has the same
        grad: Tensor,  # [T, P]
        rates: Tensor,  # [L]
        sizes: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:  # of g [T, P], of the rates [L]
        per_segment = (d_theta * grad).sum(0).split(sizes)
        d_rates = -torch.stack([segment.sum() for segment in per_segment])
        return -d_theta * update.spread(rates, sizes), d_rates

    @staticmethod
    def tan_fwd(grad, rates, theta_dot, grad_dot, rates_dot, sizes) -> Tensor | None:
        return _sum(
            theta_dot,
            None if grad_dot is None else -update.spread(rates, sizes) * grad_dot,
            None if rates_dot is None else -update.spread(rates_dot, sizes) * grad,
        )

    @staticmethod
    def tan_bwd(d_theta, grad_dot, rates_dot, sizes) -> tuple[Tensor | None, Tensor | None]:
        """Directions of the gradients of g and of the rates, for a fixed `d_theta`."""
        d_grad_dot = None if rates_dot is None else -d_theta * update.spread(rates_dot, sizes)
        d_rates_dot = None
        if grad_dot is not None:
            segments = (d_theta * grad_dot).sum(0).split(sizes)
            d_rates_dot = -torch.stack([segment.sum() for segment in segments])
        return d_grad_dot, d_rates_dot
