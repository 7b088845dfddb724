"""z = conv(x, w), its gradients and tangents: contractions of one trilinear form."""

import torch
from torch import Tensor

from kernels.plain.layout import channels_last, stack, total


def fwd(
    x: Tensor,  # [T, N, C, H, W]
    w: Tensor,  # [T, F, C, R, S]
    stride: int,
    padding: int,
) -> Tensor:  # [T, N, F, H', W']
    x = channels_last(x)
    return _stack_images([torch.conv2d(x[t], w[t], None, stride, padding) for t in range(len(x))])


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
            dz[t],
            x[t],
            w[t],
            None,
            [stride] * 2,
            [padding] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            [*need, False],
        )
        dx.append(gx)
        dw.append(gw)
    return _stack_images(dx) if need[0] else None, stack(dw) if need[1] else None


def tan_fwd(x, w, x_dot, w_dot, stride, padding) -> Tensor | None:
    return total(
        None if w_dot is None else fwd(x, w_dot, stride, padding),
        None if x_dot is None else fwd(x_dot, w, stride, padding),
    )


def tan_bwd(
    dz, dz_dot, x, w, x_dot, w_dot, stride, padding, need=(True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """(dgrad(ż, w) + dgrad(z, ẇ), wgrad(x, ż) + wgrad(ẋ, z)) with z = dz."""
    first = second = (None, None)
    if dz_dot is not None:
        first = bwd(dz_dot, x, w, stride, padding, need)
    use = (need[0] and w_dot is not None, need[1] and x_dot is not None)
    if any(use):
        # Only the operand that a product needs has to be right; the other one lends its shape.
        second = bwd(
            dz,
            x if x_dot is None else x_dot,
            w if w_dot is None else w_dot,
            stride,
            padding,
            use,
        )
    return total(first[0], second[0]), total(first[1], second[1])


def _stack_images(images: list[Tensor]) -> Tensor:
    return stack([i.permute(0, 2, 3, 1) for i in images]).permute(0, 1, 4, 2, 3)
