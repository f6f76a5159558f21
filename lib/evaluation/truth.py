"""Held-out pictures as they are measured: in the order of time, camera after camera, with their regions."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.datasets.batches import HeadBatch, on_white, where_seen
from lib.datasets.driving import DrivingFrame
from lib.datasets.head_capture import HeadCapture, Picture
from lib.evaluation.measures import Compared
from lib.evaluation.protocol import SplitContents
from lib.geometry.head_pose import HeadPose
from lib.metrics.regions import face_region, mouth_region
from lib.tensors import TensorBundle


@dataclass(frozen=True)
class Truth(TensorBundle):
    """Pixels as in HeadBatch, weights of face and open mouth, and the truth with expression 0 (NaN where there is none; None: nowhere)."""

    pixels: UInt8[Tensor, "B 5 H W"]
    regions: UInt8[Tensor, "B 2 H W"]
    expressionless: Float[Tensor, "B 3 H W"] | None

    def compared(self, image: Float[Tensor, "B 3 H W"]) -> Compared:
        """With what an avatar drew; in the padding nothing differs."""
        face, mouth = self.regions.float().split(1, dim=1)
        target = on_white(self.pixels)
        return Compared(where_seen(image, target, self.pixels), target, self.pixels[:, 3:4].float() / 255.0, face, mouth)


@dataclass(frozen=True)
class Portion:
    """Some pictures of a split: what drives the avatar, and the truth. `follows`: whether a picture is the next frame after the one before it."""

    pictures: tuple[Picture, ...]
    follows: tuple[bool, ...]
    frames: tuple[DrivingFrame, ...]
    truth: Truth

    def open_mouths(self) -> list[int]:
        """Rows whose mouth is open and seen."""
        return [row for row, region in enumerate(self.truth.regions[:, 1]) if region.numpy().any()]


def in_order(capture: HeadCapture, pictures: Iterable[Picture]) -> list[Picture]:
    """Camera after camera, each in the order of frames."""
    place = {frame: number for number, frame in enumerate(capture.frames)}
    return sorted(pictures, key=lambda picture: (capture.camera_ids.index(picture.camera), place[picture.frame]))


def follows(capture: HeadCapture, picture: Picture, before: Picture | None) -> bool:
    """Whether `picture` is the frame after `before`, of the same camera and sequence."""
    if before is None or before.camera != picture.camera or capture.sequence_of[before.frame] != capture.sequence_of[picture.frame]:
        return False
    return capture.frames.index(picture.frame) == capture.frames.index(before.frame) + 1


def load_portion(capture: HeadCapture, pictures: Sequence[Picture], before: Picture | None) -> Portion:
    """Reads these pictures; `before` is the one before them in the split. May run in any thread.

    Raises InputError for a picture that cannot be used.
    """
    batch = capture.pictures(list(pictures))
    size = capture.config.resolution
    projected = batch.flat_camera().project(batch.control_points)
    regions = np.stack([np.stack([face_region(pixels, size, size), mouth_region(points, pixels, size, size)])
                        for pixels, points in zip(projected, batch.control_points, strict=True)])
    plain = [capture.expressionless(picture) for picture in pictures]
    blank = torch.full((3, size, size), torch.nan)
    expressionless = torch.stack([blank if one is None else one for one in plain]) if any(one is not None for one in plain) else None
    chain = [before, *pictures]
    return Portion(
        tuple(pictures), tuple(follows(capture, picture, previous) for previous, picture in zip(chain, pictures, strict=False)),
        driving_frames(batch), Truth(batch.pixels[:, 0], torch.from_numpy(regions), expressionless))


def driving_frames(batch: HeadBatch) -> tuple[DrivingFrame, ...]:
    """What drives an avatar as in each picture of a batch; tracked head poses, without offsets that a training has learned."""
    camera = batch.flat_camera()
    rows = [slice(row, row + 1) for row in range(len(batch.frame))]
    return tuple(DrivingFrame(batch.expression[row], batch.head.pose[row], HeadPose(batch.head.pose[row], batch.head.scale[row]),
                              camera.rows(row)) for row in rows)


def without_expression(frame: DrivingFrame) -> DrivingFrame:
    """The same with expression 0."""
    return dataclasses.replace(frame, expression=torch.zeros_like(frame.expression))


def contents(capture: HeadCapture, pictures: Sequence[Picture]) -> SplitContents:
    """Which pictures these are."""
    lines = []
    for picture in in_order(capture, pictures):
        camera = torch.cat([part.flatten() for part in capture.cameras[picture]])
        lines.append(f"{capture.digest(picture.frame)} {hashlib.sha256(camera.numpy().tobytes()).hexdigest()}")
    frames = dict.fromkeys(picture.frame for picture in pictures)
    return SplitContents(
        pictures=len(pictures), cameras=tuple(sorted({picture.camera for picture in pictures})),
        sequences=tuple(sorted({capture.sequence_of[frame] for frame in frames} - {""})),
        digest=hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16])
