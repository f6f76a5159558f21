"""What cameras say of a head: detected landmarks in pictures scaled to 512², and how far points of the world lie from them."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.layout import JAW_ROWS, LANDMARK_COUNT, CaptureFolder
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.tensors import TensorBundle

SIZE = 512  # all distances in pictures are in pixels of pictures of this size
LEAST_DEPTH = 1e-3  # of the distance between head and cameras; nearer points are taken as being there


@dataclass(frozen=True)
class Observations(TensorBundle):
    """Detections of F frames by C cameras. Where nothing was found the score is 0, and pixels mean nothing; nor does a camera without a file."""

    camera: Camera  # batched (F, C), of pictures of 512²
    pixels: Float[Tensor, "F C 66 2"]
    scores: Float[Tensor, "F C 66"]  # 0 to 1

    @cached_property
    def projection(self) -> Float[Tensor, "F C 3 4"]:
        """World -> homogeneous pixels."""
        return self.camera.intrinsics @ self.camera.world_to_camera

    @cached_property
    def centers(self) -> Float[Tensor, "F C 3"]:
        """Of the cameras, in the world."""
        return self.camera.centers()

    def in_world(self, unit: float, origin: Float[Tensor, "3"]) -> "Observations":
        """Of the same cameras in a world whose coordinates are (x - origin) / unit."""
        rotation, translation = self.camera.world_to_camera.split([3, 1], dim=-1)
        moved = torch.cat([rotation, (translation + rotation @ origin[:, None]) / unit], dim=-1)
        return dataclasses.replace(self, camera=dataclasses.replace(self.camera, world_to_camera=moved))

    def frames(self, rows: slice | Tensor) -> "Observations":
        """Of these frames."""
        camera = dataclasses.replace(self.camera, world_to_camera=self.camera.world_to_camera[rows], intrinsics=self.camera.intrinsics[rows])
        return Observations(camera, self.pixels[rows], self.scores[rows])


@dataclass(frozen=True)
class Pull:
    """Residuals of P points of F frames in C cameras, and their derivatives by the points."""

    residuals: Float[Tensor, "F C P 2"]  # projected - wanted, pixels
    slopes: Float[Tensor, "F C P 2 3"]

    def normal_equations(self, weights: Float[Tensor, "F C P"]) -> tuple[Float[Tensor, "F P 3 3"], Float[Tensor, "F P 3"]]:
        """Of the weighted sum of squares, summed over cameras: a point has three unknowns, however many cameras see it."""
        weighted = weights[..., None, None] * self.slopes
        return torch.einsum("fcpix,fcpiy->fpxy", weighted, self.slopes), torch.einsum("fcpix,fcpi->fpx", weighted, self.residuals)


def pull(points: Float[Tensor, "F P 3"], projection: Float[Tensor, "F C 3 4"], wanted: Float[Tensor, "F C P 2"]) -> Pull:
    """How projected points miss what is wanted."""
    homogeneous = points[:, None] @ projection[..., :3].transpose(-1, -2) + projection[..., None, :, 3]
    depth = homogeneous[..., 2:].clamp(min=LEAST_DEPTH)
    pixels = homogeneous[..., :2] / depth
    linear = projection[..., None, :, :3]
    slopes = (linear[..., :2, :] - pixels[..., None] * linear[..., 2:, :]) / depth[..., None]
    return Pull(pixels - wanted, slopes)


def visibility(
    landmarks: Float[Tensor, "66 3"], rotation: Float[Tensor, "F 3 3"], translation: Float[Tensor, "F 3"], centers: Float[Tensor, "F C 3"],
    jaw_yaw: tuple[float, float], side_yaw: tuple[float, float],
) -> Float[Tensor, "F C 66"]:
    """How much a detector can know of each landmark in a view, 0 to 1, from angles (degrees) around the vertical axis of the head.

    Jaw line (rows 0:17): detectors put it on the visible outline, which is no point of the head once it is seen from the side: full weight
    to `jaw_yaw[0]` from the front, none beyond `jaw_yaw[1]`. Other landmarks: the face is taken as a cylinder around the middle between the ends
    of the jaw line; full weight where that faces the camera by less than `side_yaw[0]`, none beyond `side_yaw[1]`, which is on the far side.
    """
    axis = landmarks[[JAW_ROWS.start, JAW_ROWS.stop - 1]].mean(dim=0)
    directions = (centers - translation[:, None]) @ rotation  # in axes of the head
    yaw = torch.atan2(directions[..., 0], directions[..., 2])[..., None]
    azimuth = torch.atan2(landmarks[:, 0] - axis[0], landmarks[:, 2] - axis[2])
    apart = torch.rad2deg(torch.atan2(torch.sin(azimuth - yaw), torch.cos(azimuth - yaw)).abs())
    weight = ((side_yaw[1] - apart) / (side_yaw[1] - side_yaw[0])).clamp(0.0, 1.0)
    jaw = ((jaw_yaw[1] - torch.rad2deg(yaw.abs())) / (jaw_yaw[1] - jaw_yaw[0])).clamp(0.0, 1.0)
    weight[..., JAW_ROWS] = jaw.expand_as(weight[..., JAW_ROWS])
    return weight


def read_observations(folder: CaptureFolder, frames: list[str], cameras: list[str], original: int) -> Observations:
    """All detections of a subject. `original`: pixels of the full pictures, which the intrinsics are for.

    Raises InputError for files that cannot be used, a detection without a camera, and where nothing is found at all.
    """
    found = {(f, c): detected for f, frame in enumerate(frames) for c, camera in enumerate(cameras)
             if (detected := folder.read_detections(frame, camera)) is not None}
    if not found:
        raise InputError(f"{folder.detections_path(frames[0], cameras[0]).parent.parent}: no frame has 2D landmarks "
                         "(<frame>/lmk_<camera>.npy with 68 rows of x, y, score that are not all zero); detect them first")
    detected_size = folder.detection_size(original, max(float(detected[:, :2].max()) for detected in found.values()))
    shape = (len(frames), len(cameras))
    world_to_camera = torch.eye(3, 4, dtype=torch.float64).repeat(*shape, 1, 1)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(*shape, 1, 1)
    pixels, scores = torch.zeros(*shape, LANDMARK_COUNT, 2, dtype=torch.float64), torch.zeros(*shape, LANDMARK_COUNT, dtype=torch.float64)
    for f, frame in enumerate(frames):
        files = folder.files(frame)
        for c, camera in enumerate(cameras):
            if (f, c) in found or files.has_camera(camera):  # outlines need those that detect nothing
                world_to_camera[f, c], intrinsics[f, c] = folder.read_camera(frame, camera)
    for (f, c), detected in found.items():
        pixels[f, c] = detected[:, :2].double() * (SIZE / detected_size)
        score = detected[:, 2].double().clamp(0.0, 1.0)
        scores[f, c] = score if bool(score.any()) else 1.0  # some detectors have none to tell
    return Observations(Camera(world_to_camera, intrinsics, original, original).resized(SIZE, SIZE), pixels, scores)
