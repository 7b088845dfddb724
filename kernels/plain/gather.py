"""The images of episodes, from a bank of bytes that lies on the device."""

import torch
from torch import Tensor


def fwd(
    bank: Tensor,  # uint8 [M, H, W, C]
    index: Tensor,  # int64 [T, ways, samples + 1]: first pixels of images, then quarter turns
    places: Tensor,  # int64 [4, H · W] the pixels of an image by each turn
    scale: Tensor,  # [W · C] of a line of an image
    shift: Tensor,  # [W · C]
    shots: int,  # samples that are of the support set
) -> tuple[Tensor, Tensor]:  # of support and target set [T, ways · samples, C, H, W], NHWC
    """scale · byte + shift of each image's pixels, in the order of its class's turn.

    `index` must stay within the bank and the turns, from 0 on: to look would be to wait for the
    device, and Triton reads beyond them.
    """
    first, turns = index[..., :-1], index[..., -1]
    turned = places[turns].unsqueeze(2)  # [T, ways, 1, H · W]
    pixels = bank.view(-1, bank.shape[3])[first.unsqueeze(3) + turned]
    support, target = (
        _images(part, bank, scale, shift)
        for part in pixels.split([shots, first.shape[2] - shots], 2)
    )
    return support, target


def _images(pixels: Tensor, bank: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Of bytes [T, ways, samples, H · W, C]."""
    tasks, ways, samples = pixels.shape[:3]
    _, height, width, channels = bank.shape
    x = pixels.view(tasks, ways, samples, height, width * channels)
    x = torch.mul(x, scale).add_(shift)
    return x.view(tasks, ways * samples, height, width, channels).permute(0, 1, 4, 2, 3)
