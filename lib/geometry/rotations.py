"""Derivatives of rotations; what they are otherwise is roma's."""

import torch
from jaxtyping import Float
from torch import Tensor


def skew(vectors: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Matrices of the cross product v x."""
    x, y, z = vectors.unbind(dim=-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def left_jacobian(vectors: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Of rotation vectors (radians): R(v + d) is R(J d) R(v) for small d (Solà et al. 2018, eq. 145)."""
    squared = vectors.square().sum(dim=-1)[..., None, None]
    small = squared < 1e-8
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    first = torch.where(small, 0.5 - squared / 24.0, (1.0 - angle.cos()) / angle**2)
    second = torch.where(small, 1.0 / 6.0 - squared / 120.0, (angle - angle.sin()) / angle**3)
    cross = skew(vectors)
    return torch.eye(3, dtype=vectors.dtype) + first * cross + second * cross @ cross
