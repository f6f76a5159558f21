"""One RGB colour per Gaussian, for viewers without a super-resolution network: the affine map of features that explains its pictures best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.avatars.gaussian_head_avatar.avatar import RGB, AvatarImage, GaussianAvatar
from lib.datasets.driving import ORBIT_FOCAL_PER_PIXEL, DrivingFrame
from lib.errors import InputError
from lib.geometry.camera import Camera, look_at
from lib.geometry.head_pose import HeadPose
from lib.networks.upsampler import SCALE
from lib.tensors import TensorBundle

# Canonical units: with a head of two of them, that of the free view. Degrees of azimuth and elevation around the face: where there is training data.
DISTANCE, TARGET = 12.0, (0.0, 0.0, 0.5)
FITTED = tuple((azimuth, elevation) for azimuth in (-40.0, -20.0, 0.0, 20.0, 40.0) for elevation in (-10.0, 10.0))
CHECKED = ((-30.0, 0.0), (-10.0, 0.0), (10.0, 0.0), (30.0, 0.0))  # between those
# Of the mean of the diagonal: as much weight has it that the first three channels are RGB. 32 channels are hardly independent.
RIDGE = 1e-6


@dataclass(frozen=True)
class ColorMap(TensorBundle):
    """RGB = matrix · features + offset."""

    matrix: Float[Tensor, "3 C"]
    offset: Float[Tensor, "3"]

    def __call__(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N 3"]:
        """Colours of Gaussians, in [0,1]: viewers cut off what is beyond."""
        return (features @ self.matrix.T + self.offset).clamp(0.0, 1.0)


def look_at_head(head: HeadPose, azimuth: float, elevation: float, size: int) -> Camera:
    """A camera of size² pixels around a posed head (batch of one): degrees to the head's left and above its face."""
    turn, rise = math.radians(azimuth), math.radians(elevation)
    direction = torch.tensor([math.cos(rise) * math.sin(turn), math.sin(rise), math.cos(rise) * math.cos(turn)], dtype=torch.float64)
    target = torch.tensor(TARGET, dtype=torch.float64)
    scale, rotation = head.scale.double().cpu(), head.rotation().double().cpu()
    to_camera = look_at(scale * (target + DISTANCE * direction), scale * target)  # of a head that is not posed, in world units
    turned = to_camera[..., :3] @ rotation.transpose(-1, -2)
    moved = to_camera[..., 3:] - turned @ head.pose[:, 3:, None].double().cpu()
    focal = ORBIT_FOCAL_PER_PIXEL * size
    intrinsics = torch.tensor([[[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]]])
    return Camera(torch.cat([turned, moved], dim=-1).float(), intrinsics, size, size).to(head.pose.device)


def pixel(size: int) -> float:
    """How many canonical units a pixel of such a camera is wide, at the head."""
    return DISTANCE / (ORBIT_FOCAL_PER_PIXEL * size)


def draw(avatar: GaussianAvatar, frame: DrivingFrame, direction: tuple[float, float], size: int) -> AvatarImage:
    """An avatar as a frame on its device moves it, seen from somewhere around its face."""
    return avatar(frame.expression, frame.pose_code, frame.head, look_at_head(frame.head, *direction, size))


def fit_colors(avatar: GaussianAvatar, frames: Sequence[DrivingFrame], size: int) -> tuple[ColorMap, float]:
    """The map whose Gaussians, drawn over white, come closest to the super-resolved pictures of `size`² pixels averaged to a quarter.

    Blending is linear in what is blended, so a pixel of the mapped Gaussians is the map of its blended features, G, and of its opacity, a:
    matrix · G + offset · a + (1 - a) · white. Least squares over all pixels, weighted by their opacity: normal equations of C + 1 unknowns
    per colour, with a ridge around `the first three channels are RGB`. Also the root of the mean square, weighted likewise, of what is left.

    Raises InputError for an avatar that is NaN or of which nothing is seen.
    """
    channels = avatar.head.config.color_channels
    normal = torch.zeros(channels + 1, channels + 1, dtype=torch.float64)
    right = torch.zeros(channels + 1, 3, dtype=torch.float64)
    squares = covered = 0.0
    with torch.no_grad():
        for number, frame in enumerate(frames):
            for direction in FITTED if len(frames) == 1 else FITTED[number % 2::2]:  # of several, from above and from below in turn
                drawn = draw(avatar, frame, direction, size)
                alpha, white = drawn.coarse.alpha, 1.0 - drawn.coarse.alpha
                rows = torch.cat([drawn.coarse.features - white, alpha], dim=1)[0].flatten(1).T.double()
                wanted = (quarter(drawn.image) - white)[0].flatten(1).T.double()
                weighted = rows.T * alpha.flatten().double()
                normal += (weighted @ rows).cpu()
                right += (weighted @ wanted).cpu()
                squares += float((alpha.flatten()[:, None] * wanted.square()).sum())
                covered += float(alpha.sum())
    if not bool(torch.isfinite(normal).all() & torch.isfinite(right).all()):
        raise InputError("the avatar renders NaN; is the checkpoint damaged?")
    if not bool(normal[-1, -1] > 0):
        raise InputError(f"nothing of the avatar is seen by cameras that are {DISTANCE * float(frames[0].head.scale):.3g} world units away from it "
                         f"({float(frames[0].head.scale):.3g} per canonical unit); is its scale right?")
    ridge, identity = RIDGE * normal.diagonal().mean(), torch.eye(channels + 1, dtype=torch.float64)
    solved = torch.linalg.solve(normal + ridge * identity, right + ridge * identity[:, RGB])
    left = float((solved * (normal @ solved - 2.0 * right)).sum()) + squares
    solved = solved.float().to(avatar.head.xyz.device)
    return ColorMap(solved[:channels].T.contiguous(), solved[channels]), math.sqrt(max(0.0, left) / (3.0 * covered))


def quarter(image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
    """Means of squares of pixels: as large as the coarse picture."""
    return torch.nn.functional.avg_pool2d(image, SCALE)


def coarse_rgb(drawn: AvatarImage) -> Float[Tensor, "B 3 h w"]:
    """The avatar without super-resolution, as it is shown: the first three channels."""
    return drawn.coarse.features[:, RGB].clamp(0.0, 1.0)
