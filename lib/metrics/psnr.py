"""Peak signal-to-noise ratio of pictures in [0,1]."""

import torch
from jaxtyping import Float
from torch import Tensor

# Identical pictures would have an infinite ratio; the error is kept above that of 100 dB.
SMALLEST_ERROR = 1e-10


def psnr(image: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], weight: Float[Tensor, "B 1 H W"] | None = None) -> Float[Tensor, "B"]:
    """Per picture, in dB; with a weight the squared error is averaged over its pixels (NaN where it is all zero)."""
    squared = (image - target).square().mean(dim=1, keepdim=True)
    weight = torch.ones_like(squared) if weight is None else weight
    return decibels((squared * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)))


def decibels(squared_error: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The ratio that belongs to a mean squared error; NaN stays NaN."""
    return -10.0 * squared_error.clamp(min=SMALLEST_ERROR).log10()
