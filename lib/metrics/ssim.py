"""Structural similarity (Wang et al., 2004) of pictures in [0,1]."""

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
MARGIN = WINDOW // 2


def ssim(image: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    """Mean over channels and all pixels whose 11x11 Gaussian window (sigma 1.5) lies inside the picture; range 1.

    Raises ValueError for pictures smaller than the window.
    """
    return ssim_map(image, target).mean(dim=(1, 2))


def ssim_map(image: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w"]:
    """The same pixel by pixel (mean over channels): of those that are MARGIN or more from every border."""
    if min(image.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim needs pictures of at least {WINDOW}x{WINDOW} pixels, found {tuple(image.shape[-2:])}")
    offset = torch.arange(WINDOW, device=image.device, dtype=image.dtype) - MARGIN
    kernel = torch.exp(-offset.square() / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()

    def blur(x: Tensor) -> Tensor:
        x = x.reshape(-1, 1, *x.shape[-2:])
        return torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, kernel[None, None, None]), kernel[None, None, :, None])

    a, b = blur(image), blur(target)
    variance_a, variance_b, covariance = blur(image * image) - a * a, blur(target * target) - b * b, blur(image * target) - a * b
    luminance = (2 * a * b + K1**2) / (a * a + b * b + K1**2)
    structure = (2 * covariance + K2**2) / (variance_a + variance_b + K2**2)
    values = luminance * structure
    return values.reshape(*image.shape[:2], *values.shape[-2:]).mean(dim=1)
