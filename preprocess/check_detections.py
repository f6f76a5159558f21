"""2D landmarks of landmarks/, and how far the projected 3D ones lie from them."""

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.head_capture import HeadCapture, Picture
from lib.datasets.layout import JAW_ROWS, LANDMARK_COUNT
from lib.errors import InputError
from lib.geometry.camera import Camera

# From the side a detector puts the jaw line on the visible outline, which is no point of the model.
INNER_ROWS = slice(JAW_ROWS.stop, LANDMARK_COUNT)
LEAST_SCORE = 0.5  # of the median of all scores: what a detector is less sure of (hidden by the nose, say) is not compared


@dataclass(frozen=True)
class Detections:
    """F frames and C cameras; N landmarks without the jaw line. `found` in pixels of `size` x `size` pictures, NaN where none is sure."""

    frames: tuple[str, ...]
    cameras: tuple[str, ...]
    size: int
    points: Float[Tensor, "F N 3"]
    found: Float[Tensor, "F C N 2"]
    world_to_camera: Float[Tensor, "F C 3 4"]
    intrinsics: Float[Tensor, "F C 3 3"]

    @property
    def pictures(self) -> int:
        """How many pictures have detections."""
        return int((~self.found[..., 0].isnan()).any(dim=-1).sum())

    def of_cameras(self, cameras: list[str]) -> "Detections":
        """Only these cameras."""
        columns = [self.cameras.index(camera) for camera in cameras]
        return dataclasses.replace(self, cameras=tuple(cameras), found=self.found[:, columns], world_to_camera=self.world_to_camera[:, columns],
                                   intrinsics=self.intrinsics[:, columns])

    def camera(self, column: int) -> Camera:
        """One of the cameras in all frames."""
        return Camera(self.world_to_camera[:, column], self.intrinsics[:, column], self.size, self.size)

    def offsets(self, column: int, camera: Camera) -> Float[Tensor, "K 2"]:
        """Detected minus projected landmarks of one camera, of the image size; of those behind it infinite."""
        seen = camera.to_camera(self.points)
        there = ~self.found[:, column].isnan().any(dim=-1)
        offsets = torch.where(seen[..., 2:] > 0, self.found[:, column] - camera.to_pixels(seen), torch.inf)
        return offsets[there] / self.size


def read_detections(capture: HeadCapture) -> tuple[Detections | None, list[str]]:
    """All detections of a capture in pixels of its original resolution; and a line for each file that cannot be read."""
    size = capture.config.original_resolution
    found: dict[Picture, Float[Tensor, "66 3"]] = {}
    problems = []
    for picture in (Picture(frame, camera) for frame in capture.frames for camera in capture.camera_ids):
        try:
            detected = capture.folder.read_detections(picture.frame, picture.camera)
        except InputError as error:
            problems.append(str(error))
        else:
            if detected is not None:
                found[picture] = detected
    if not found:
        return None, problems
    reach = max(float(detected[:, :2].max()) for detected in found.values())
    least = LEAST_SCORE * float(torch.cat([detected[:, 2] for detected in found.values()]).median())
    sure = {picture: torch.where(detected[:, 2:] >= least, detected[:, :2], torch.nan) for picture, detected in found.items()}
    found = {picture: points for picture, points in sure.items() if not bool(points[INNER_ROWS].isnan().all())}
    detector_size = capture.folder.detection_size(size, reach)
    print(f"2D landmarks of {len(found)} pictures reach to {reach:.0f} px: taken as detected in pictures of {detector_size} x {detector_size}")
    frames = [frame for frame in capture.frames if any(Picture(frame, camera) in found for camera in capture.camera_ids)]
    cameras = [camera for camera in capture.camera_ids if any(Picture(frame, camera) in found for frame in frames)]
    nothing = torch.full((LANDMARK_COUNT, 2), torch.nan)
    pixels = torch.stack([torch.stack([found.get(Picture(frame, camera), nothing) for camera in cameras]) for frame in frames])
    seen = [capture.camera(frame, cameras).resized(size, size) for frame in frames]
    return Detections(
        tuple(frames), tuple(cameras), size, torch.stack([capture.control_points[frame][INNER_ROWS] for frame in frames]),
        pixels[:, :, INNER_ROWS] * (size / detector_size),
        torch.stack([camera.world_to_camera for camera in seen]), torch.stack([camera.intrinsics for camera in seen]),
    ), problems
