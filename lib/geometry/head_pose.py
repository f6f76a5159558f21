"""Head pose: x_world = R(rotation vector) (S x_canonical) + T. The one place that applies it."""

from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from lib.tensors import TensorBundle


@dataclass(frozen=True)
class HeadPose(TensorBundle):
    """`pose` = rotation vector (radians) followed by translation (world units); `scale` = world units per canonical unit."""

    pose: Float[Tensor, "*B 6"]
    scale: Float[Tensor, "*B 1"]

    @classmethod
    def from_matrix(cls, matrix: Float[Tensor, "*B 3 4"], scale: Float[Tensor, "*B 1"]) -> "HeadPose":
        """The pose of a rotation and translation, a rigid map to the world."""
        return cls(torch.cat([roma.rotmat_to_rotvec(matrix[..., :3]), matrix[..., 3]], dim=-1), scale)

    def rotation(self) -> Float[Tensor, "*B 3 3"]:
        """Rotation matrix canonical -> world."""
        return roma.rotvec_to_rotmat(self.pose[..., :3])

    def to_world(self, points: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 3"]:
        """Canonical points in the world."""
        x, y, z = (points * self.scale[..., None, :]).split(1, dim=-1)
        columns = self.rotation().transpose(-1, -2)[..., None, :, :].unbind(dim=-2)
        return x * columns[0] + y * columns[1] + z * columns[2] + self.pose[..., None, 3:]  # no product of matrices, which might be rounded

    def to_canonical(self, points: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 3"]:
        """World points in canonical units: the inverse of `to_world`."""
        return ((points - self.pose[..., None, 3:]) @ self.rotation()) / self.scale[..., None, :]

    def rotate_quaternions(self, quats_wxyz: Float[Tensor, "*B N 4"]) -> Float[Tensor, "*B N 4"]:
        """Unit quaternions (wxyz) of canonical frames, turned with the head: R · R(quat)."""
        head_xyzw = roma.rotvec_to_unitquat(self.pose[..., :3])[..., None, :]
        turned = roma.quat_product(head_xyzw.expand(*quats_wxyz.shape), roma.quat_wxyz_to_xyzw(quats_wxyz))
        return roma.quat_xyzw_to_wxyz(turned)

    def solved(self) -> "SolvedHeadPose":
        """The same, with its rotation computed now."""
        x, y, z, w = roma.rotvec_to_unitquat(self.pose[..., :3]).unbind(dim=-1)
        rows = [(w, -x, -y, -z), (x, w, -z, y), (y, z, w, -x), (z, -y, x, w)]
        return SolvedHeadPose(self.pose, self.scale, self.rotation(), torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2))


@dataclass(frozen=True)
class SolvedHeadPose(HeadPose):
    """With its rotation as a matrix, and as what it does to quaternions: a device then has a few products to do, not a hundred small steps."""

    matrix: Float[Tensor, "*B 3 3"]
    quat_matrix: Float[Tensor, "*B 4 4"]

    def rotation(self) -> Float[Tensor, "*B 3 3"]:
        """Rotation matrix canonical -> world."""
        return self.matrix

    def rotate_quaternions(self, quats_wxyz: Float[Tensor, "*B N 4"]) -> Float[Tensor, "*B N 4"]:
        """As HeadPose."""
        return quats_wxyz @ self.quat_matrix.transpose(-1, -2)
