"""What a model cannot say of a face: a smooth offset of its neutral, known at the landmarks.

A Gaussian process (Matérn 3/2). Its posterior mean, given offsets of the landmarks, carries them over to all vertices; far from every
landmark the model is left as it is. What a pose or scale of the head says is no offset: the process is conditioned on moving the
landmarks by no similarity.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lib.face_models.contract import FaceModel

LEAST_EIGENVALUE = 1e-5  # relative: patterns of landmarks that nearly coincide, which would be told apart by noise alone


def smooth_offsets(model: FaceModel, spread: float, radius: float, further: int = 0) -> Float[Tensor, "K M 3"]:
    """Modes, each of coefficient 0 ± 1, of offsets with standard deviation `spread` and correlation length `radius` (canonical units).

    They are free at the landmarks and at `further` vertices, each as far as can be from all others. Most important first; K is at
    most 3·(66 + further) - 7.
    """
    landmarks = model.landmarks(model.mean).double()
    points = torch.cat([landmarks, _far_apart(model.mean[:model.written].double(), landmarks, further)])
    among = _correlation(points, points, radius) + 1e-6 * torch.eye(len(points), dtype=torch.float64)
    covariance = torch.kron(among, torch.eye(3, dtype=torch.float64))
    similarities = torch.nn.functional.pad(_similarities(landmarks), (0, 0, 0, 3 * further))
    rigid = covariance @ similarities
    covariance = covariance - rigid @ torch.linalg.solve(similarities.T @ rigid, rigid.T)
    values, patterns = torch.linalg.eigh((covariance + covariance.T) / 2.0)
    kept = values > LEAST_EIGENVALUE * values[-1]
    modes = (values[kept].sqrt() * patterns[:, kept]).flip(1).reshape(len(points), -1)  # (points, 3K)
    carried = _correlation(model.mean.double(), points, radius) @ torch.linalg.solve(among, modes)
    return (spread * carried).unflatten(1, (3, -1)).permute(2, 0, 1).to(model.mean)


def _far_apart(vertices: Float[Tensor, "M 3"], points: Float[Tensor, "L 3"], count: int) -> Float[Tensor, "N 3"]:
    distances, chosen = torch.cdist(vertices, points).amin(dim=1), []
    for _ in range(count):
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, (vertices - vertices[chosen[-1]]).norm(dim=1))
    return vertices[chosen]


def _similarities(points: Float[Tensor, "L 3"]) -> Float[Tensor, "3*L 7"]:
    """How points move with translations, rotations and scale."""
    centred = points - points.mean(dim=0)
    axes = torch.eye(3, dtype=points.dtype)
    moves = [axis.expand_as(points) for axis in axes] + [torch.linalg.cross(axis.expand_as(points), centred) for axis in axes] + [centred]
    return torch.stack([move.reshape(-1) for move in moves], dim=1)


def _correlation(a: Float[Tensor, "A 3"], b: Float[Tensor, "B 3"], radius: float) -> Float[Tensor, "A B"]:
    far = 3.0**0.5 * torch.cdist(a, b) / radius
    return (1.0 + far) * (-far).exp()
