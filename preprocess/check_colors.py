"""Cameras of one rig that record the same skin in different colours: gain of every camera and channel, from what several cameras see.

A point of the face has one colour, whichever camera looks at it, up to what light and gloss do; a median over hundreds of points leaves the
camera. Background and hair are not looked at: cameras see different parts of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.head_capture import HeadCapture
from preprocess.check_evidence import Sight, sample
from preprocess.check_findings import Finding, numbers

DARKEST, BRIGHTEST = 0.08, 0.97  # outside, noise or clipping decides
LEAST_POINTS = 30  # seen by a camera and by others
LARGEST_GAIN = 0.12  # cameras whose gains differ by a few percent are usual, and training copes with them
CHANNELS = ("red", "green", "blue")


@dataclass(frozen=True)
class CameraColor:
    """Gains of one camera: red, green, blue; 1 is the median of all cameras."""

    camera: str
    gains: tuple[float, float, float]

    def off(self) -> list[str]:
        """Channels that are off, with their gains."""
        return [f"{name} {gain:.2f}" for name, gain in zip(CHANNELS, self.gains, strict=True) if abs(gain - 1.0) > LARGEST_GAIN]


def camera_colors(sight: Sight) -> list[CameraColor]:
    """Gains of all cameras that share enough points with others."""
    logs = []
    for column in range(len(sight.cameras)):
        seen = sample(sight, column, sight.camera(column))
        clear = seen.visible & (seen.color > DARKEST).all(dim=-1) & (seen.color < BRIGHTEST).all(dim=-1)
        logs.append(torch.where(clear[..., None], seen.color, torch.nan).nanmedian(dim=0).values.log())  # of the frames
    colors = torch.stack(logs)  # (C, N, 3)
    shared = (~colors[..., 0].isnan()).sum(dim=0) >= 2
    colors = colors[:, shared]
    gains = torch.zeros(len(colors), 3)
    for _ in range(20):  # gains and colours in turn, both by medians
        truth = (colors - gains[:, None]).nanmedian(dim=0).values
        gains = (colors - truth).nanmedian(dim=1).values
        gains = gains - gains.nanmedian(dim=0).values
    enough = (~colors[..., 0].isnan()).sum(dim=1) >= LEAST_POINTS
    values: Float[Tensor, "C 3"] = gains.exp()
    return [CameraColor(camera, tuple(values[row].tolist())) for row, camera in enumerate(sight.cameras) if enough[row]]


def color_findings(capture: HeadCapture, sight: Sight) -> list[Finding]:
    """Cameras whose colours differ from what the others record."""
    if len(sight.cameras) < 3:
        return []  # of two cameras nobody can say which is right
    found = []
    for one in camera_colors(sight):
        if off := one.off():
            path = capture.folder.image_path(capture.frames[0], one.camera)
            found.append(Finding(
                "camera_color", f"{path}: camera {one.camera} records the face in other colours than the rest of the rig: {', '.join(off)} times as "
                f"bright (red {one.gains[0]:.2f}, green {one.gains[1]:.2f}, blue {one.gains[2]:.2f}; up to {LARGEST_GAIN:.0%} is usual). Correct its "
                "pictures (`python -m preprocess.nersemble` does, where a capture has a colour calibration), or leave the camera out", (str(path),),
                cameras=(one.camera,), numbers=numbers(**dict(zip(CHANNELS, one.gains, strict=True)))))
    return found
