"""The head of assets/demo_head: ICT-FaceKit topology, its identity modes and 55 expression shapes.

Canonical: 0.1·(ICT cm - (0, 0, 2)); one unit is a decimetre.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lib.face_models.contract import FaceModel, vertex_landmarks

HEAD_FILE = Path(__file__).resolve().parent.parent.parent / "assets" / "demo_head" / "head.npz"
CANONICAL_PER_CM, ORIGIN_CM = 0.1, (0.0, 0.0, 2.0)
# Vertex rows of the ICT topology.
FACE_ROWS, SKIN_ROWS = slice(0, 9409), slice(0, 11248)
EYE_ROWS = {"L": slice(21451, 23021), "R": slice(23021, 24591)}
GAZE_RANGE = {"horizontal": np.deg2rad(32.0), "vertical": np.deg2rad(24.0)}  # of a full eyeLook coefficient
SHAPE_SPREAD = 0.25  # of coefficients that lie in [0,1]


@dataclass(frozen=True)
class IctModel(FaceModel):
    """Linear but for the eyeballs, which no landmark lies on."""

    expression_names: tuple[str, ...] = ()

    def vertices(self, identity: Float[Tensor, "I"], expression: Float[Tensor, "E"]) -> Float[Tensor, "M 3"]:
        """Linear, then eyeballs turned by the eyeLook coefficients about the centres of the neutral ones."""
        neutral = self.mean + torch.tensordot(identity, self.identity, 1)
        vertices = neutral + torch.tensordot(expression, self.expression, 1)
        return turn_eyes(vertices, neutral, dict(zip(self.expression_names, expression.tolist(), strict=True)))


def turn_eyes(vertices: Float[Tensor, "N 3"], neutral: Float[Tensor, "N 3"], value: dict[str, float]) -> Float[Tensor, "N 3"]:
    """Turns the eyeballs of `vertices` in place by coefficients of these names."""
    for side, rows in EYE_ROWS.items():
        outward = 1.0 if side == "L" else -1.0  # the left eye is at +x
        yaw = outward * GAZE_RANGE["horizontal"] * (value[f"eyeLookOut_{side}"] - value[f"eyeLookIn_{side}"])
        pitch = GAZE_RANGE["vertical"] * (value[f"eyeLookUp_{side}"] - value[f"eyeLookDown_{side}"])
        rotation = (_rotation_y(yaw) @ _rotation_x(-pitch)).to(vertices)
        centre = neutral[rows].mean(dim=0)
        vertices[rows] = (vertices[rows] - centre) @ rotation.T + centre
    return vertices


def read_head_file() -> dict[str, NDArray]:
    """The arrays of assets/demo_head/head.npz."""
    with np.load(HEAD_FILE, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def canonical(centimetres: NDArray[np.floating]) -> Float[Tensor, "N 3"]:
    """Positions."""
    return torch.from_numpy((CANONICAL_PER_CM * (centimetres - np.array(ORIGIN_CM))).astype(np.float32))


def canonical_offsets(arrays: dict[str, NDArray], key: str) -> Float[Tensor, "K N 3"]:
    """The modes `identity` or shapes `expression`, stored as int16 times a scale of each."""
    centimetres = arrays[f"{key}_q"].astype(np.float32) * arrays[f"{key}_scale"][:, None, None]
    return torch.from_numpy((CANONICAL_PER_CM * centimetres).astype(np.float32))


def read_ict() -> IctModel:
    """The shipped model; its neutral is the mean of ICT-FaceKit, no person."""
    arrays = read_head_file()
    identity, expression = canonical_offsets(arrays, "identity"), canonical_offsets(arrays, "expression")
    corners, weights = vertex_landmarks(arrays["landmarks68"])
    triangles = torch.from_numpy(arrays["faces"]).long()
    return IctModel(
        name="ict", mean=canonical(arrays["neutral"]), identity=identity, expression=expression, triangles=triangles,
        landmark_corners=corners, landmark_weights=weights, identity_spread=torch.ones(len(identity)),
        expression_spread=torch.full((len(expression),), SHAPE_SPREAD), bounded=torch.ones(len(expression), dtype=torch.bool),
        written=FACE_ROWS.stop, skin_triangles=(triangles < SKIN_ROWS.stop).all(dim=1).nonzero()[:, 0],
        expression_names=tuple(str(name) for name in arrays["expression_names"]),
    )


def _rotation_x(angle: float) -> Float[Tensor, "3 3"]:
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]])


def _rotation_y(angle: float) -> Float[Tensor, "3 3"]:
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
