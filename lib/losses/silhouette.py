"""Differences of masks."""

from jaxtyping import Float
from torch import Tensor


def one_minus_iou(mask: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """1 - sum(a·b) / sum(a + b - a·b) per image, averaged: the soft intersection over union."""
    both = (mask * target).sum(dim=(1, 2, 3))
    either = (mask + target - mask * target).sum(dim=(1, 2, 3))
    return (1.0 - both / (either + 1e-10)).mean()
