"""2D landmarks as a detector would give them, from the demo head itself: exact, with scores that tell which are hidden."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lib.geometry.camera import Camera
from lib.render.mesh.reference import visible_faces
from preprocess.demo_head import DemoHead

DEPTH_SIZE = 192  # pixels of the picture that tells what is hidden
# Metres behind the nearest skin: a landmark is surely seen up to the first and surely hidden from the second on (lips are soft, the nose is not).
SEEN_M, HIDDEN_M = 0.006, 0.015
HIDDEN_SCORE = 0.02
OUTLIER_DISTANCE = 0.25  # of the picture's size: where wrong landmarks go


@dataclass(frozen=True)
class Detector:
    """How wrong the landmarks are: `noise` is a standard deviation in pixels of the cut picture, `outliers` the share that is anywhere.

    Outliers keep the score they would have had: a detector does not know of its mistakes.
    """

    noise: float = 0.0
    outliers: float = 0.0
    seed: int = 0

    def detect(self, head: DemoHead, skin: Float[Tensor, "N 3"], camera: Camera, shot: int) -> Float[NDArray, "B 68 3"]:
        """x, y in pixels of these cameras, and a score: 1 where the landmark is seen, 0.02 where skin hides it, linear between."""
        points = skin[head.landmark68_rows].expand(len(camera.intrinsics), -1, -1)
        pixels = camera.project(points).numpy()
        random = np.random.default_rng([self.seed, shot, 68])
        wrong = random.uniform(size=pixels.shape[:2]) < self.outliers
        pixels = pixels + self.noise * random.standard_normal(pixels.shape)
        anywhere = pixels + OUTLIER_DISTANCE * camera.width * random.standard_normal(pixels.shape)
        pixels = np.where(wrong[..., None], np.clip(anywhere, 0.0, camera.width), pixels)
        return np.concatenate([pixels, _scores(head, skin, camera)[..., None]], axis=2).astype(np.float32)


def _scores(head: DemoHead, skin: Float[Tensor, "N 3"], camera: Camera) -> Float[NDArray, "B 68"]:
    small = camera.resized(DEPTH_SIZE, DEPTH_SIZE)
    in_camera = small.to_camera(skin.expand(len(camera.intrinsics), -1, -1))
    pixels, faces = small.to_pixels(in_camera), head.faces.cpu()
    buffer = visible_faces(pixels, in_camera[..., 2], faces, DEPTH_SIZE, DEPTH_SIZE, perspective=True)
    rows = torch.arange(len(in_camera))
    nearest = (in_camera[..., 2][rows[:, None, None, None], faces[buffer.face]] * buffer.barycentrics).sum(dim=3)
    nearest = torch.where(buffer.covered, nearest, torch.full_like(nearest, torch.inf))
    # The farthest of the 3x3 pixels around: a landmark on an edge is not hidden by its neighbour.
    farthest = torch.nn.functional.max_pool2d(nearest[:, None], 3, stride=1, padding=1)[:, 0]
    column, row = pixels[:, head.landmark68_rows].floor().long().clamp(0, DEPTH_SIZE - 1).unbind(dim=2)
    behind = in_camera[:, head.landmark68_rows, 2] - farthest[rows[:, None], row, column]
    seen = ((HIDDEN_M - behind) / (HIDDEN_M - SEEN_M)).clamp(0.0, 1.0)
    return (HIDDEN_SCORE + (1.0 - HIDDEN_SCORE) * seen).numpy()
