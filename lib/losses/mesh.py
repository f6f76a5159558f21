"""Penalties on surfaces."""

from jaxtyping import Float, Int
from torch import Tensor

from lib.geometry.trimesh import uniform_laplacian


def laplacian_smoothness(vertices: Float[Tensor, "B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, ""]:
    """Mean over vertices and axes of the squared uniform Laplacian, summed over the batch; units of `vertices` squared."""
    return uniform_laplacian(vertices, faces).square().mean(dim=(1, 2)).sum()
