"""An untrained avatar of which expressions move only what is near a mouth."""

import torch

from benchmarks.reenact import AXES, make_avatar
from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar
from lib.datasets.driving import DrivingFrame

MOUTH = (0.0, -0.4, 0.85)  # on the shell, canonical units
REACH = 0.3  # of the height of the picture: as far as pixels about the mouth change


def shell_with_mouth(gaussians: int) -> GaussianAvatar:
    """The shell of the benchmarks, with all control landmarks about the mouth."""
    avatar = make_avatar(gaussians)
    with torch.no_grad():
        landmarks, axes = avatar.head.landmarks_3d_neutral, torch.tensor(AXES)
        landmarks.copy_(axes * torch.nn.functional.normalize(torch.tensor(MOUTH) / axes + 0.1 * torch.randn(landmarks.shape), dim=-1))
        for layer in avatar.head.exp_color.layers:
            layer.weight.mul_(2.0)
    return avatar


def mouth_in(frame: DrivingFrame) -> tuple[float, float]:
    """Column and row of the mouth, as parts of the picture's width and height."""
    column, row = frame.camera.project(frame.head.to_world(torch.tensor([[MOUTH]])))[0, 0].tolist()
    return column / frame.camera.width, row / frame.camera.height
