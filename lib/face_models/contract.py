"""Face models: identity and expression coefficients -> vertices and the 66 landmarks.

Canonical units, y up, face towards +z. All models here are linear in identity; what is not linear in expression (the joints of
FLAME, the eyeballs of ICT) overrides two methods.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lib.errors import InputError
from lib.tensors import TensorBundle

LANDMARK_COUNT = 66
_OUTER_MOUTH_CORNERS = (48, 54)  # of the 68-point set


@dataclass(frozen=True)
class Linearization(TensorBundle):
    """P points of B frames and how they move with the coefficients."""

    points: Float[Tensor, "B P 3"]
    by_identity: Float[Tensor, "B P 3 I"]
    by_expression: Float[Tensor, "B P 3 E"]


@dataclass(frozen=True)
class FaceModel(TensorBundle):
    """mean + identity + expression, and what is known of its coefficients before anything is seen."""

    name: str
    mean: Float[Tensor, "M 3"]
    identity: Float[Tensor, "I M 3"]
    expression: Float[Tensor, "E M 3"]
    triangles: Int[Tensor, "T 3"]
    landmark_corners: Int[Tensor, "66 3"]  # rows of vertices
    landmark_weights: Float[Tensor, "66 3"]  # barycentric
    identity_spread: Float[Tensor, "I"]  # standard deviations of coefficients among people and expressions
    expression_spread: Float[Tensor, "E"]
    bounded: Bool[Tensor, "E"]  # coefficients that mean something in [0,1] only
    written: int | None = None  # how many vertices, from the first, training is given; None: all
    skin_triangles: Int[Tensor, "K"] | None = None  # rows of `triangles` that can be an outline; None: all

    @property
    def identity_count(self) -> int:
        """Number of identity coefficients."""
        return len(self.identity)

    @property
    def expression_count(self) -> int:
        """Number of expression coefficients."""
        return len(self.expression)

    def vertices(self, identity: Float[Tensor, "I"], expression: Float[Tensor, "E"]) -> Float[Tensor, "M 3"]:
        """All vertices, canonical."""
        return self.mean + torch.tensordot(identity, self.identity, 1) + torch.tensordot(expression, self.expression, 1)

    def landmarks(self, vertices: Float[Tensor, "*B M 3"]) -> Float[Tensor, "*B 66 3"]:
        """The 66 landmarks of any vertices with this topology."""
        return (vertices[..., self.landmark_corners, :] * self.landmark_weights[..., None]).sum(dim=-2)

    def linearize(self, identity: Float[Tensor, "I"], expression: Float[Tensor, "B E"], rows: Int[Tensor, "*B P"]) -> Linearization:
        """Vertices `rows`, the same in all frames or of each frame its own, and their derivatives."""
        by_identity, by_expression = (basis[:, rows].movedim(0, -1) for basis in (self.identity, self.expression))
        frames = len(expression)
        by_identity, by_expression = (basis.expand(frames, *basis.shape[-3:]) for basis in (by_identity, by_expression))
        points = self.mean[rows] + by_identity @ identity + (by_expression @ expression[:, None, :, None])[..., 0]
        return Linearization(points, by_identity, by_expression)

    def linearize_landmarks(self, identity: Float[Tensor, "I"], expression: Float[Tensor, "B E"]) -> Linearization:
        """As `linearize`, of the landmarks."""
        corners = self.linearize(identity, expression, self.landmark_corners.reshape(-1))
        return Linearization(*(self._blended(value) for value in (corners.points, corners.by_identity, corners.by_expression)))

    def _blended(self, corners: Float[Tensor, "B C *rest"]) -> Float[Tensor, "B 66 *rest"]:
        parts = corners.unflatten(1, (LANDMARK_COUNT, 3))
        weights = self.landmark_weights.reshape(1, LANDMARK_COUNT, 3, *[1] * (parts.ndim - 3))
        return (parts * weights).sum(dim=2)

    def part(self, rows: Int[Tensor, "P"]) -> "FaceModel":
        """The same model with these vertices only, which must hold the corners of the landmarks; it has no triangles."""
        place = torch.full((len(self.mean),), -1)
        place[rows] = torch.arange(len(rows))
        return dataclasses.replace(self, mean=self.mean[rows], identity=self.identity[:, rows], expression=self.expression[:, rows],
                                   triangles=self.triangles[:0], landmark_corners=place[self.landmark_corners],
                                   written=None, skin_triangles=None)

    def double(self) -> "FaceModel":
        """In float64."""
        return dataclasses.replace(self, **{field.name: value.double() for field in dataclasses.fields(self)
                                            if isinstance(value := getattr(self, field.name), Tensor) and value.is_floating_point()})

    def widened(self, offsets: Float[Tensor, "K M 3"]) -> "FaceModel":
        """With K more identity coefficients, each 0 ± 1, that move the neutral by `offsets`."""
        return dataclasses.replace(self, identity=torch.cat([self.identity, offsets]),
                                   identity_spread=torch.cat([self.identity_spread, self.identity_spread.new_ones(len(offsets))]))


def vertex_landmarks(rows: NDArray[np.integer]) -> tuple[Int[Tensor, "66 3"], Float[Tensor, "66 3"]]:
    """Corners and weights of landmarks that are vertices. 68 lose the outer mouth corners."""
    rows = without_outer_corners(rows.reshape(-1).astype(np.int64))
    weights = torch.tensor([1.0, 0.0, 0.0]).repeat(len(rows), 1)
    return torch.from_numpy(rows)[:, None].repeat(1, 3), weights


def without_outer_corners(values: NDArray) -> NDArray:
    """The 66 landmarks of 68, or 66 as they are. Raises InputError for another number."""
    if len(values) == LANDMARK_COUNT + len(_OUTER_MOUTH_CORNERS):
        values = np.delete(values, _OUTER_MOUTH_CORNERS, axis=0)
    if len(values) != LANDMARK_COUNT:
        raise InputError(f"expected 68 (or 66) landmarks, found {len(values)}")
    return values
