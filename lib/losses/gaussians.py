"""Penalties on Gaussians themselves."""

from jaxtyping import Float
from torch import Tensor

from lib.gaussians.cloud import GaussianCloud


def transparency(cloud: GaussianCloud) -> Float[Tensor, ""]:
    """Mean of 1 - opacity."""
    return (1.0 - cloud.opacities).mean()


def oversize(cloud: GaussianCloud, unit: Float[Tensor, "B 1"], limit: float) -> Float[Tensor, ""]:
    """Mean squared relative excess of each Gaussian's longest axis over `limit`, in units of which one is `unit` world units long."""
    longest = cloud.scales.amax(dim=-1) / unit
    return (longest / limit - 1.0).clamp(min=0.0).square().mean()
