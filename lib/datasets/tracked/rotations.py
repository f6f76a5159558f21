"""Rotations as trackers write them -> rotation vectors."""

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError


def rotation_vectors(rows: Float[Tensor, "D"], name: str) -> Float[Tensor, "K"]:
    """Rotation vectors, one after the other, of as many "6D" rotations (Zhou et al. 2019): the first two rows of each matrix, flattened.

    Raises InputError, naming `name`, where two rows do not span a plane.
    """
    pairs = rows.double().reshape(-1, 2, 3)
    if bool((torch.linalg.cross(pairs[:, 0], pairs[:, 1]).norm(dim=-1) < 1e-6).any()):
        raise InputError(f"{name}: expected the first two rows of a rotation matrix, found rows that are parallel or zero: {rows.tolist()}")
    transposed = roma.special_gramschmidt(pairs.transpose(-1, -2))  # roma orthonormalises columns
    return roma.rotmat_to_rotvec(transposed.transpose(-1, -2)).float().reshape(-1)


def matrix_vector(matrix: Float[Tensor, "3 3"], name: str) -> Float[Tensor, "3"]:
    """The rotation vector of a rotation matrix. Raises InputError, naming `name`, for a matrix that is none."""
    matrix = matrix.double()
    if float((matrix @ matrix.T - torch.eye(3, dtype=torch.float64)).abs().max()) > 1e-3 or float(torch.linalg.det(matrix)) < 0:
        raise InputError(f"{name}: expected a rotation matrix, found one that is none")
    return roma.rotmat_to_rotvec(matrix).float()
