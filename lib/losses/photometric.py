"""Differences of pictures."""

from jaxtyping import Float
from torch import Tensor


def visible_l1(image: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], visible: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean absolute difference over all values, both pictures multiplied by `visible`."""
    return (image * visible - target * visible).abs().mean()
