"""Pinhole cameras: world->camera, OpenCV axes, pixel intrinsics; the centre of the first pixel is at (0.5, 0.5)."""

import dataclasses
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from lib.tensors import TensorBundle


@dataclass(frozen=True)
class Camera(TensorBundle):
    """B cameras of one image size. The principal point may lie anywhere."""

    world_to_camera: Float[Tensor, "*B 3 4"]
    intrinsics: Float[Tensor, "*B 3 3"]
    width: int
    height: int

    def resized(self, width: int, height: int) -> "Camera":
        """The camera of the same picture resampled to another size in pixels."""
        intrinsics = self.intrinsics.clone()  # row by row, as a factor on the device would have to be waited for
        intrinsics[..., 0, :] *= width / self.width
        intrinsics[..., 1, :] *= height / self.height
        return dataclasses.replace(self, intrinsics=intrinsics, width=width, height=height)

    def cropped(self, left: int, top: int, width: int, height: int) -> "Camera":
        """The camera of a crop whose corner is pixel (left, top); negative values and larger sizes pad."""
        shift = torch.zeros_like(self.intrinsics)
        shift[..., 0, 2], shift[..., 1, 2] = left, top
        return dataclasses.replace(self, intrinsics=self.intrinsics - shift, width=width, height=height)

    def centers(self) -> Float[Tensor, "*B 3"]:
        """Where the cameras are in the world."""
        return -(self.world_to_camera[..., :3].transpose(-1, -2) @ self.world_to_camera[..., 3:])[..., 0]

    def to_camera(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        """World points in camera axes; the third coordinate is the depth."""
        rotation, translation = self.world_to_camera[..., :3], self.world_to_camera[..., 3]
        return points @ rotation.transpose(-1, -2) + translation[..., None, :]

    def to_pixels(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 2"]:
        """Camera-space points in pixels; depths must be positive for the result to mean anything."""
        homogeneous = points @ self.intrinsics.transpose(-1, -2)
        return homogeneous[..., :2] / homogeneous[..., 2:]

    def project(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 2"]:
        """World points in pixels."""
        return self.to_pixels(self.to_camera(points))


def look_at(center: Float[Tensor, "*B 3"], target: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 4"]:
    """World->camera of cameras at `center` looking at `target`, upright in a y-up world."""
    forward = torch.nn.functional.normalize(target - center, dim=-1)
    up = torch.zeros_like(forward)
    up[..., 1] = 1.0
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=-2)
    return torch.cat([rotation, -rotation @ center[..., None]], dim=-1)


def interpolate(keys: Camera, position: float) -> Camera:
    """The camera at `position` in [0,1] along K evenly spaced keys: centres and intrinsics linear, rotations on the shortest arc."""
    place = position * (len(keys.intrinsics) - 1)
    before = min(int(place), max(0, len(keys.intrinsics) - 2))
    after, part = min(before + 1, len(keys.intrinsics) - 1), torch.tensor(place - before)
    rotations, centers = keys.world_to_camera[..., :3], keys.centers()
    ends = [roma.rotmat_to_unitquat(rotations[row]) for row in (before, after)]
    rotation = roma.unitquat_to_rotmat(roma.unitquat_slerp(ends[0], ends[1], part[None], shortest_arc=True))[0]
    center = torch.lerp(centers[before], centers[after], part)
    world_to_camera = torch.cat([rotation, -rotation @ center[:, None]], dim=1)
    intrinsics = torch.lerp(keys.intrinsics[before], keys.intrinsics[after], part)
    return dataclasses.replace(keys, world_to_camera=world_to_camera[None], intrinsics=intrinsics[None])
