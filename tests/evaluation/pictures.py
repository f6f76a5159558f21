"""Smooth pictures, noisy copies and weights, in [0,1]: what tests of measures share."""

import torch

from lib.evaluation.measures import Compared


def compared(count: int = 3, size: int = 40, closed: tuple[int, ...] = (), seed: int = 0) -> Compared:
    """`closed` are the pictures whose mouth is closed."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=random)
    target = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    image = (target + 0.1 * torch.randn(target.shape, generator=random)).clamp(0.0, 1.0)
    mask = torch.zeros(count, 1, size, size)
    mask[..., 6:30, 5:33] = 1.0
    mask[..., 6, :] *= 0.5
    face, mouth = torch.zeros_like(mask), torch.zeros_like(mask)
    face[..., 10:25, 8:29] = 1.0
    mouth[..., 18:23, 12:22] = 1.0
    mouth[list(closed)] = 0.0
    return Compared(image, target, mask, face, mouth)
