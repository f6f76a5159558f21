"""What backends share: reasons not to draw; and of rasterizers that users install, the picture of no Gaussians."""

import importlib.util

import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian.contract import FeatureImage, RasterOptions


def package_obstacle(cloud: GaussianCloud, package: str, source: str) -> str | None:
    """Why the CUDA kernels of `package`, which computes in float32, cannot draw the cloud here, or None. `source`: where to get it."""
    wrong = {value.dtype for value in (cloud.means, cloud.quats_wxyz, cloud.scales, cloud.opacities, cloud.features)} - {torch.float32}
    if wrong:
        return f"it computes in float32, not {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in wrong))}; convert, or use reference"
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed; get it from {source}, or use another backend"
    return device_obstacle(cloud)


def device_obstacle(cloud: GaussianCloud) -> str | None:
    """Why the tensors are on the wrong device, or None; apart, because tests draw on the CPU."""
    return None if cloud.means.is_cuda else f"it needs CUDA tensors, not {cloud.means.device.type}; move the cloud and the camera, or use reference"


def gradient_obstacle(**inputs: Tensor) -> str | None:
    """Which of the inputs want a gradient that the package does not compute, or None."""
    wanted = [name for name, value in inputs.items() if torch.is_grad_enabled() and value.requires_grad]
    return f"it gives no gradient to {' and '.join(wanted)}, which require one; detach, or use another backend" if wanted else None


def refuse_obstacles(backend: str, *obstacles: str | None) -> None:
    """Raises InputError with the first obstacle that is there."""
    for obstacle in obstacles:
        if obstacle is not None:
            raise InputError(f"rasterizer backend '{backend}' cannot draw this: {obstacle}")


def empty_image(camera: Camera, background: Float[Tensor, "C"], options: RasterOptions) -> FeatureImage:
    """What no Gaussians look like; packages crash or draw zeros instead of the background."""
    batch = len(camera.intrinsics)
    features = background[None, :, None, None].expand(batch, -1, camera.height, camera.width)
    return FeatureImage(
        features.to(options.dtype or features.dtype), background.new_zeros(batch, 1, camera.height, camera.width),
        torch.zeros(batch, 0, dtype=torch.int32, device=background.device),
    )
