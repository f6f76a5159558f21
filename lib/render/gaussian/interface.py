"""The one way to draw Gaussians. Backends are chosen by name; all have the semantics of `reference`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import reference, triton
from lib.tensors import TensorBundle


@dataclass(frozen=True)
class FeatureImage(TensorBundle):
    """Blended features over the background, and the accumulated opacity."""

    features: Float[Tensor, "B C H W"]
    alpha: Float[Tensor, "B 1 H W"]


Backend = Callable[[GaussianCloud, Camera, Tensor], tuple[Tensor, Tensor]]
BACKENDS: dict[str, Backend] = {"reference": reference.rasterize, "triton": triton.rasterize}


def rasterize(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], backend: str = "auto") -> FeatureImage:
    """Draws B clouds, each by its own camera: EWA splatting, front to back, any number of channels.

    Differentiable in means, quats_wxyz, scales, opacities, features and world_to_camera. A covariance gets 0.3 px² on
    its diagonal; contributions below 1/255 are dropped, above 0.99 clamped; a pixel stops when its transmittance would
    fall below 1e-4; Gaussians nearer than 0.2 are culled. `auto` is triton for float32 on CUDA where Triton works, else
    reference, and says so once. Raises InputError for an unknown backend and for one that cannot draw these tensors.
    """
    name = _automatic(cloud) if backend == "auto" else backend
    if name not in BACKENDS:
        raise InputError(f"rasterizer backend '{backend}' is not known; expected auto or one of {sorted(BACKENDS)}")
    return FeatureImage(*BACKENDS[name](cloud, camera, background))


def _automatic(cloud: GaussianCloud) -> str:
    reason = triton.obstacle(cloud) if cloud.means.is_cuda else f"tensors on {cloud.means.device.type}"
    name = "triton" if reason is None else "reference"
    _say(f"rasterizer: {name}" if reason is None else f"rasterizer: {name} (not triton: {reason})")
    return name


@functools.cache
def _say(line: str) -> None:
    print(line, flush=True)
