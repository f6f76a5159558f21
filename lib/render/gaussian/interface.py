"""The one way to draw Gaussians. Backends are chosen by name; all have the semantics of `reference`.

`gsplat` and `inria` are adapters of packages that users install; their files say where their semantics differ. `auto` never picks them.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import gsplat, inria, reference, tiled
from lib.render.gaussian.contract import DEFAULT, FeatureImage, RasterOptions

Backend = Callable[[GaussianCloud, Camera, Tensor, RasterOptions], FeatureImage]
BACKENDS: dict[str, Backend] = {
    "gluon": tiled.rasterize_gluon, "triton": tiled.rasterize_triton, "reference": reference.rasterize, "gsplat": gsplat.rasterize,
    "inria": inria.rasterize,
}


def rasterize(
    cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], backend: str = "auto", options: RasterOptions = DEFAULT
) -> FeatureImage:
    """Draws B clouds, each by its own camera, or one cloud by B cameras: EWA splatting, front to back, any number of channels.

    Differentiable in means, quats_wxyz, scales, opacities, features and world_to_camera. A covariance gets 0.3 px² on
    its diagonal; contributions below 1/255 are dropped, above 0.99 clamped; a pixel stops when its transmittance would
    fall below 1e-4; Gaussians nearer than 0.2 are culled. `auto` is the first of gluon, triton and reference that can draw
    these tensors here, and says so once. Raises InputError for an unknown backend, for one that cannot draw these tensors, and for batches
    that do not fit.
    """
    name = _automatic(cloud) if backend == "auto" else backend
    if name not in BACKENDS:
        raise InputError(f"rasterizer backend '{backend}' is not known; expected auto or one of {sorted(BACKENDS)}")
    clouds, cameras = cloud.means.shape[0], camera.intrinsics.shape[0]
    if clouds not in (1, cameras):
        raise InputError(f"{clouds} clouds cannot be drawn by {cameras} cameras; expected as many, or one cloud")
    if options.check:
        _check_finite(cloud, camera, background)
    return BACKENDS[name](cloud, camera, background, options)


def _check_finite(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"]) -> None:
    inputs = {field.name: getattr(cloud, field.name) for field in dataclasses.fields(cloud)}
    inputs |= {"world_to_camera": camera.world_to_camera, "intrinsics": camera.intrinsics, "background": background}
    for name, value in inputs.items():
        wrong = ~torch.isfinite(value)
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            raise InputError(f"cannot draw Gaussians: {int(wrong.sum())} of {wrong.numel()} values of {name} are NaN or infinite, first {place}")


def _automatic(cloud: GaussianCloud) -> str:
    if not cloud.means.is_cuda:
        _say(f"rasterizer: reference (tensors on {cloud.means.device.type})")
        return "reference"
    why = ""
    for name, obstacle in (("gluon", tiled.gluon_obstacle), ("triton", tiled.triton_obstacle)):
        reason = obstacle(cloud)
        if reason is None:
            break
        why = f" (not {name}: {reason})"
    else:
        name = "reference"
    _say(f"rasterizer: {name}{why}")
    return name


@functools.cache
def _say(line: str) -> None:
    print(line, flush=True)
