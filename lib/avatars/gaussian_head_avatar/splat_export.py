"""An avatar as PLY files for viewers of Gaussians, and how close what these show comes to the avatar."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar
from lib.avatars.gaussian_head_avatar.color_fit import CHECKED, ColorMap, coarse_rgb, draw, fit_colors, look_at_head, pixel, quarter
from lib.datasets.driving import DrivingFrame
from lib.datasets.images import write_image
from lib.datasets.sampler import spread
from lib.gaussians.ply import Splats, read_ply, write_ply
from lib.metrics.psnr import psnr
from lib.networks.upsampler import SCALE
from lib.render.gaussian.interface import rasterize
from lib.training.recorder import image_rows, shrink
from lib.training.runtime import is_terminal

# Of a sequence, all of whose frames have the same map, so that colours do not flicker: features depend on the expression, so many are fitted.
FRAMES_FITTED, FRAMES_SCORED = 16, 4


@dataclass(frozen=True)
class SplatScore:
    """PSNR (dB) of the Gaussians in the files, read again, drawn over white from sides (and, where there are more, at frames) that the
    colours were not fitted to.

    `super_resolved`: against the avatar's picture. `quarter`: both averaged to a quarter of the size. `coarse`: averaged, against the avatar
    without super-resolution. `first_channels`: what that itself scores where the Gaussians score `quarter`. `residual`: of the fit of colours,
    root mean square from 0 to 1, over the pictures it was made of.
    """

    super_resolved: float
    quarter: float
    coarse: float
    first_channels: float
    residual: float

    def __str__(self) -> str:
        return (f"{self.super_resolved:.2f} dB against the super-resolved picture; at a quarter of its size {self.quarter:.2f} dB (its coarse "
                f"picture: {self.first_channels:.2f} dB) and {self.coarse:.2f} dB against its coarse picture; the fit of colours leaves "
                f"{self.residual:.4f}")


def write_splats(avatar: GaussianAvatar, frames: Sequence[DrivingFrame], paths: Sequence[Path], comments: Sequence[Sequence[str]], size: int,
                 low_pass: float, picture: Path) -> SplatScore:
    """Writes the Gaussians of every frame to its path, and `picture`: super-resolved above, the files below. `size`: pixels at which the
    avatar is drawn to fit colours and to compare, divisible by 4. `low_pass`: as in `splats_of`.

    Raises InputError for an avatar that is NaN and for what cannot be written.
    """
    device = avatar.head.xyz.device
    fitted = spread(list(range(len(frames))), FRAMES_FITTED)
    scored = spread([index for index in range(len(frames)) if index not in fitted] or fitted, FRAMES_SCORED)
    colors, residual = fit_colors(avatar, [frames[index].to(device) for index in fitted], size)
    rows, scores = [], []
    for index in tqdm(range(len(frames)), desc="export", unit="frame", mininterval=0.5 if is_terminal() else 15.0, disable=len(frames) == 1):
        frame = frames[index].to(device)
        write_ply(paths[index], splats_of(avatar, frame, colors, low_pass * pixel(size // SCALE) ** 2), comments[index])
        if index in scored:
            read = read_ply(paths[index]).to(device)
            for direction in CHECKED:
                row, score = _compare(avatar, frame, read, direction, size)
                rows.append(row)
                scores.append(score)
    write_image(picture, image_rows([torch.cat([row[k] for row in rows[:len(CHECKED)]]) for k in range(2)]))
    return SplatScore(*(round(float(values.mean()), 2) for values in torch.tensor(scores).unbind(dim=1)), residual=round(residual, 5))


@torch.no_grad()
def splats_of(avatar: GaussianAvatar, frame: DrivingFrame, colors: ColorMap, low_pass: float) -> Splats:
    """The Gaussians of a frame on the avatar's device, each wider by a variance of `low_pass` squared canonical units.

    An avatar is drawn at a quarter of its size, where the rasterizer widens every Gaussian by 0.3 px². Its Gaussians have become so small
    that there are holes between them wherever pixels are smaller, so what they were trained with must come along.
    """
    cloud = avatar.head(frame.expression, frame.pose_code, frame.head)
    scales = (cloud.scales.square() + low_pass * frame.head.scale.square()).sqrt()  # axes stay: the same is added along each
    return Splats.of(dataclasses.replace(cloud, features=colors(cloud.features), scales=scales))


@torch.no_grad()
def _compare(avatar: GaussianAvatar, frame: DrivingFrame, splats: Splats, direction: tuple[float, float], size: int,
             ) -> tuple[tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 3 h w"]], tuple[float, ...]]:
    """The avatar's picture and that of the Gaussians, shrunk, and the numbers of SplatScore."""
    camera, white = look_at_head(frame.head, *direction, size), torch.ones(3, device=frame.head.pose.device)
    drawn, cloud = draw(avatar, frame, direction, size), splats.cloud()
    large = rasterize(cloud, camera, white).features
    small, wanted, coarse = quarter(large), quarter(drawn.image), coarse_rgb(drawn)
    scores = tuple(float(psnr(image, target)) for image, target in ((large, drawn.image), (small, wanted), (small, coarse), (coarse, wanted)))
    return (shrink(drawn.image).cpu(), shrink(large).cpu()), scores
