"""First values of Gaussians."""

from jaxtyping import Float
from torch import Tensor

from lib.geometry.neighbors import mean_squared_to_nearest

NEIGHBORS = 3
SMALLEST_SQUARED = 1e-7  # squared units of the points: coinciding points would have scale 0


def isotropic_log_scales(points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Log of the root mean squared distance to the three nearest other points, equal on all axes."""
    squared = mean_squared_to_nearest(points, NEIGHBORS).clamp(min=SMALLEST_SQUARED)
    return (0.5 * squared.log())[:, None].expand(-1, 3)
