"""The one form in which Gaussians travel."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lib.tensors import TensorBundle


@dataclass(frozen=True)
class GaussianCloud(TensorBundle):
    """B clouds of N Gaussians in the world: unit quaternions (wxyz), scales = standard deviations, opacities in [0,1]."""

    means: Float[Tensor, "B N 3"]
    quats_wxyz: Float[Tensor, "B N 4"]
    scales: Float[Tensor, "B N 3"]
    opacities: Float[Tensor, "B N"]
    features: Float[Tensor, "B N C"]
