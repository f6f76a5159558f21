"""FLAME (Li et al. 2017), editions 2020 and 2023: 100 identity and 59 expression coefficients.

Of the latter 50 are shapes, then come jaw (3) and eyes (6) as rotation vectors.

Linear blend skinning, with neck and root at rest: a vertex p goes to p + sum over jaw and eyes of w (R - 1)(p - J), after pose offsets
linear in R - 1. Canonical: decimetres (ten times FLAME's metres, so that a head has the size of the other models) about the centroid of the template.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lib.errors import InputError
from lib.face_models.arrays import array, rows_of, triples
from lib.face_models.contract import FaceModel, Linearization, without_outer_corners
from lib.face_models.pickles import read_pickle
from lib.geometry.rotations import left_jacobian, skew

IDENTITIES, SHAPES, ANGLES = 100, 50, 9
FIRST_EXPRESSION = 300  # column of shapedirs
MOVED = (2, 3, 4)  # joints: jaw and eyes; 0 and 1, root and neck, are at rest
CANONICAL_PER_METRE = 10.0
JAW_SPREAD, EYE_SPREAD = 0.2, 0.1  # radians
EMBEDDINGS = ("landmark_embedding.npy", "flame_static_embedding.pkl", "flame_dynamic_embedding.npy")
FRONTAL = 0  # row of the dynamic embedding: the outline seen from the front


@dataclass(frozen=True)
class FlameModel(FaceModel):
    """`expression` is zero in its last nine rows: what the joints do is here."""

    pose_offsets: Float[Tensor, "27 V 3"] = dataclasses.field(kw_only=True)
    skinning: Float[Tensor, "V 3"] = dataclasses.field(kw_only=True)  # weights of jaw and eyes
    joints: Float[Tensor, "3 3"] = dataclasses.field(kw_only=True)
    joints_by_identity: Float[Tensor, "J 3 3"] = dataclasses.field(kw_only=True)  # of FLAME's own coefficients: no offset moves a joint
    joints_by_expression: Float[Tensor, "E 3 3"] = dataclasses.field(kw_only=True)

    def vertices(self, identity: Float[Tensor, "I"], expression: Float[Tensor, "E"]) -> Float[Tensor, "M 3"]:
        """All vertices, canonical."""
        linear = self.mean + torch.tensordot(identity, self.identity, 1) + torch.tensordot(expression, self.expression, 1)
        turned = roma.rotvec_to_rotmat(expression[-ANGLES:].reshape(3, 3)) - torch.eye(3, dtype=linear.dtype)
        posed = linear + torch.tensordot(turned.reshape(-1), self.pose_offsets, 1)
        arms = posed[:, None] - self._joints(identity, expression[None])[0]
        return posed + torch.einsum("mj,jxy,mjy->mx", self.skinning, turned, arms)

    def linearize(self, identity: Float[Tensor, "I"], expression: Float[Tensor, "B E"], rows: Int[Tensor, "*B P"]) -> Linearization:
        """As the base class, with the joints."""
        line = super().linearize(identity, expression, rows)
        angles = expression[:, -ANGLES:].reshape(-1, 3, 3)
        rotation = roma.rotvec_to_rotmat(angles)
        turned = rotation - torch.eye(3, dtype=rotation.dtype)
        # Of R by its vector: [left Jacobian column]x R. Indices: frame, joint, component, 3, 3.
        by_angle = skew(left_jacobian(angles).transpose(-1, -2)) @ rotation[:, :, None]
        offsets, weights = self.pose_offsets[:, rows].unflatten(0, (3, 9)), self.skinning[rows].expand(len(expression), -1, -1)
        if rows.ndim == 1:
            offsets = offsets[:, :, None].expand(-1, -1, len(expression), -1, -1)
        posed = line.points + torch.einsum("bjk,jkbpx->bpx", turned.flatten(2), offsets)
        arms = posed[:, :, None] - self._joints(identity, expression)[:, None]  # (B, P, 3 joints, 3)
        blended = torch.eye(3, dtype=posed.dtype) + torch.einsum("bpj,bjxy->bpxy", weights, turned)

        def carried(basis: Float[Tensor, "B P 3 K"], joints: Float[Tensor, "J 3 3"]) -> Float[Tensor, "B P 3 K"]:
            joints = torch.nn.functional.pad(joints, (0, 0, 0, 0, 0, basis.shape[-1] - len(joints)))
            return blended @ basis - torch.einsum("bpj,bjxy,kjy->bpxk", weights, turned, joints)

        by_angles = torch.einsum("bjckl,jklbpx->bpxjc", by_angle, offsets.unflatten(1, (3, 3)))
        by_angles = torch.einsum("bpxy,bpyjc->bpxjc", blended, by_angles)
        by_angles = by_angles + torch.einsum("bpj,bjcxy,bpjy->bpxjc", weights, by_angle, arms)
        by_expression = carried(line.by_expression, self.joints_by_expression)
        by_expression = torch.cat([by_expression[..., :-ANGLES], by_angles.flatten(-2)], dim=-1)
        points = posed + torch.einsum("bpj,bjxy,bpjy->bpx", weights, turned, arms)
        return Linearization(points, carried(line.by_identity, self.joints_by_identity), by_expression)

    def part(self, rows: Int[Tensor, "P"]) -> "FlameModel":
        """As the base class."""
        return dataclasses.replace(super().part(rows), pose_offsets=self.pose_offsets[:, rows], skinning=self.skinning[rows])

    def _joints(self, identity: Float[Tensor, "I"], expression: Float[Tensor, "B E"]) -> Float[Tensor, "B 3 3"]:
        own = identity[:len(self.joints_by_identity)]
        return self.joints + torch.tensordot(own, self.joints_by_identity, 1) + torch.tensordot(expression, self.joints_by_expression, 1)


def read_flame(path: Path) -> FlameModel:
    """generic_model.pkl, flame2020.pkl or flame2023.pkl, with a landmark embedding beside it. Raises InputError for anything else."""
    content = read_pickle(path)
    template = _shaped(path, content, "v_template", (None, 3))
    vertices = len(template)
    shapes = _shaped(path, content, "shapedirs", (vertices, 3, None))
    if shapes.shape[2] < FIRST_EXPRESSION + SHAPES:
        raise InputError(f"{path}: 'shapedirs': expected {FIRST_EXPRESSION} identity and {SHAPES} expression columns or more, found "
                         f"{shapes.shape[2]}")
    pose = _shaped(path, content, "posedirs", (vertices, 3, 36))
    regressor, weights = _shaped(path, content, "J_regressor", (5, vertices)), _shaped(path, content, "weights", (vertices, 5))
    triangles = torch.from_numpy(rows_of(path, "f", _shaped(path, content, "f", (None, 3)), vertices))
    corners, landmark_weights = read_embedding(path.parent, triangles)

    centred = CANONICAL_PER_METRE * (template - template.mean(axis=0))
    identity, expression = (
        torch.from_numpy(CANONICAL_PER_METRE * basis).permute(2, 0, 1)
        for basis in (shapes[..., :IDENTITIES], shapes[..., FIRST_EXPRESSION:FIRST_EXPRESSION + SHAPES]))
    expression = torch.cat([expression, expression.new_zeros(ANGLES, vertices, 3)])
    moved = torch.from_numpy(regressor[list(MOVED)])
    first = 9 * (MOVED[0] - 1)  # nine per joint, from the neck on
    spread = torch.cat([torch.ones(SHAPES), torch.full((3,), JAW_SPREAD), torch.full((6,), EYE_SPREAD)])
    return FlameModel(
        name="flame", mean=torch.from_numpy(centred).float(), identity=identity.float(), expression=expression.float(), triangles=triangles,
        landmark_corners=corners, landmark_weights=landmark_weights, identity_spread=torch.ones(IDENTITIES), expression_spread=spread,
        bounded=torch.zeros(SHAPES + ANGLES, dtype=torch.bool),
        pose_offsets=torch.from_numpy(CANONICAL_PER_METRE * pose[..., first:]).permute(2, 0, 1).float(),
        skinning=torch.from_numpy(weights[:, list(MOVED)]).float(), joints=(moved @ torch.from_numpy(centred)).float(),
        joints_by_identity=torch.einsum("jm,kmx->kjx", moved, identity).float(),
        joints_by_expression=torch.einsum("jm,kmx->kjx", moved, expression).float(),
    )


def read_embedding(folder: Path, triangles: Int[Tensor, "T 3"]) -> tuple[Int[Tensor, "66 3"], Float[Tensor, "66 3"]]:
    """Corners and barycentric weights of the landmarks, of FLAME's own file or of RingNet's two."""
    whole, static, dynamic = (folder / name for name in EMBEDDINGS)
    if whole.is_file():
        content = read_pickle(whole)
        faces, weights = array(whole, content, "full_lmk_faces_idx").reshape(-1), triples(whole, content, "full_lmk_bary_coords")
        faces, weights = faces[:68], weights[:68]  # some files go on with irises
    elif static.is_file() and dynamic.is_file():
        outline, inner = read_pickle(dynamic), read_pickle(static)
        faces = np.concatenate([array(dynamic, outline, "lmk_face_idx")[FRONTAL], array(static, inner, "lmk_face_idx").reshape(-1)])
        weights = np.concatenate([array(dynamic, outline, "lmk_b_coords")[FRONTAL], triples(static, inner, "lmk_b_coords")])
    else:
        raise InputError(f"{whole}: FLAME's landmarks are missing. Either {whole.name} (from the pages of FLAME or DECA), or both {static.name} and "
                         f"{dynamic.name} (from RingNet; all non-commercial) belong into {folder}; nothing is downloaded")
    file = whole if whole.is_file() else static
    try:
        faces, weights = without_outer_corners(faces), without_outer_corners(weights.astype(np.float32))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    faces = rows_of(file, "faces of the landmarks; is it the embedding of another model?", faces, len(triangles))
    return triangles[torch.from_numpy(faces)], torch.from_numpy(weights)


def _shaped(path: Path, content: dict[str, object], key: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    value = array(path, content, key).astype(np.float64)
    if value.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, value.shape, strict=True)):
        expected = "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
        raise InputError(f"{path}: '{key}': expected shape {expected}, found {value.shape}; is it FLAME 2020 or 2023?")
    return value

