"""How published code computes its numbers, where that can be said exactly: to reproduce them, beside our own. Table: docs/evaluation.md."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lib.losses.perceptual import Lpips, Network
from lib.metrics.psnr import psnr
from lib.metrics.ssim import MARGIN, ssim

ConventionName = Literal["ga_train", "ga_metrics", "hg_masked"]
HG_LPIPS_FACTOR = 0.05  # of its metrics.py, which calls it inherited

Pictures = Float[Tensor, "B 3 H W"]


@dataclass(frozen=True)
class Convention:
    """`prepare` makes of image, target and matte the two pictures that are compared; `distance` is their LPIPS."""

    prepare: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    psnr: Callable[[Tensor, Tensor], Tensor]
    distance: Callable[[Lpips, Tensor, Tensor], Tensor]
    network: Network

    def measure(self, image: Pictures, target: Pictures, mask: Float[Tensor, "B 1 H W"], lpips: Lpips | None) -> Float[Tensor, "B 3"]:
        """PSNR, SSIM and LPIPS (NaN without the network)."""
        one, other = self.prepare(image, target, mask)
        distance = torch.full_like(one[:, 0, 0, 0], torch.nan) if lpips is None else self.distance(lpips, one, other)
        return torch.stack([self.psnr(one, other), padded_ssim(one, other), distance], dim=1)


def padded_ssim(image: Pictures, target: Pictures) -> Float[Tensor, "B"]:
    """SSIM over all pixels, with windows that see zeros beyond the border, as code descended from 3D Gaussian splatting has it."""
    return ssim(*(torch.nn.functional.pad(picture, (MARGIN,) * 4) for picture in (image, target)))


def channel_psnr(image: Pictures, target: Pictures) -> Float[Tensor, "B"]:
    """Mean of the ratios of the three channels."""
    return torch.stack([psnr(image[:, k:k + 1], target[:, k:k + 1]) for k in range(3)]).mean(dim=0)


def eight_bits(picture: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """As read back from a PNG: 256 levels."""
    return (picture.clamp(0.0, 1.0) * 255.0 + 0.5).floor() / 255.0


def unmapped(lpips: Lpips, image: Pictures, target: Pictures) -> Float[Tensor, "B"]:
    """LPIPS of pictures in [0,1] where it expects [-1,1] (`Lpips` maps what it is given, which undoes this)."""
    return lpips((image + 1.0) / 2.0, (target + 1.0) / 2.0)


CONVENTIONS: dict[ConventionName, Convention] = {
    "ga_train": Convention(lambda image, target, mask: (image.clamp(0.0, 1.0), target), channel_psnr, unmapped, "alex"),
    "ga_metrics": Convention(lambda image, target, mask: (eight_bits(image), eight_bits(target)), psnr, unmapped, "vgg"),
    "hg_masked": Convention(
        lambda image, target, mask: (eight_bits(image) * eight_bits(mask), eight_bits(target) * eight_bits(mask)), psnr,
        lambda lpips, image, target: HG_LPIPS_FACTOR * lpips(image, target), "vgg"),
}
