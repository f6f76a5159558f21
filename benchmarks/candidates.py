"""The rasterizers that are compared, and whether they draw the same picture: every one against the float64 reference."""

import dataclasses
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.scenes import FOCAL, Drawing
from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import gsplat, inria, reference, tiled
from lib.render.gaussian.contract import Capacity, RasterOptions
from lib.render.gaussian.interface import rasterize

LEAVES = ("means", "quats_wxyz", "scales", "opacities", "features")
BIAS_VALUES, BIAS_FLOOR = 1000, 1e-5  # a mean of fewer values says nothing about a bias; errors below are the rounding of float32
LIMITS = {"high": 1e-3, "highest": 1e-5, "peer": 1e-2}  # of the relative L2 error; peers: enough to tell that they do the same work
SEEDS = (0, 1, 2)

Draw = Callable[[GaussianCloud, Camera, Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Candidate:
    """A way to draw. `limit`: key of LIMITS; `clip`: what the reference must do to draw the same; `conventions`: what else is different."""

    name: str
    backend: str
    obstacle: Callable[[GaussianCloud], str | None]
    limit: str
    options: RasterOptions | None = None  # None: a package of its own, called directly, without what the adapter adds
    clip: bool = False
    tangent: bool = False  # gradients of quaternions along the unit sphere only
    camera_gradients: bool = True
    conventions: str = ""

    def draw(self, cloud: GaussianCloud, camera: Camera, background: Tensor, capacity: Capacity | None = None) -> tuple[Tensor, Tensor | None]:
        """Features and, where it comes with them, alpha."""
        if self.options is None:
            return {"gsplat": draw_gsplat, "inria": draw_inria}[self.backend](cloud, camera, background)
        result = rasterize(cloud, camera, background, self.backend, dataclasses.replace(self.options, capacity=capacity))
        return result.features, result.alpha


CANDIDATES = [
    Candidate("gluon", "gluon", tiled.gluon_obstacle, "high", RasterOptions()),
    Candidate("gluon-highest", "gluon", tiled.gluon_obstacle, "highest", RasterOptions(precision="highest")),
    Candidate("gluon-deterministic", "gluon", tiled.gluon_obstacle, "high", RasterOptions(deterministic=True)),
    Candidate("triton", "triton", tiled.triton_obstacle, "high", RasterOptions()),
    Candidate("gsplat", "gsplat", gsplat.obstacle, "peer", tangent=True, conventions=(
        "alpha at most 0.999 up to 1.5.3 (here 0.99); its own clamp of the Jacobian; a pixel stops at a transmittance of 1e-4, not only below; "
        "normalises quaternions, so that only gradients along the unit sphere are compared")),
    Candidate("inria", "inria", inria.obstacle, "peer", clip=True, tangent=True, camera_gradients=False, conventions=(
        "clips at three standard deviations (as the reference that it is compared with); gradients pass the clamp of alpha; gives none to the "
        "camera and the background; gradients of quaternions as for gsplat")),
    Candidate("reference", "reference", lambda cloud: None, "high", RasterOptions()),
]


def draw_gsplat(cloud: GaussianCloud, camera: Camera, background: Tensor) -> tuple[Tensor, Tensor]:
    """One call of gsplat.rasterization, which since 1.5.3 also takes a batch of clouds; before, one per cloud."""
    if len(cloud.means) > 1 and not _gsplat_batches():
        parts = [draw_gsplat(_row(cloud, b), _camera_row(camera, b), background) for b in range(len(cloud.means))]
        features, alpha = (torch.cat(values) for values in zip(*parts, strict=True))
        return features, alpha
    from gsplat import rasterization

    bottom = torch.zeros_like(camera.world_to_camera[:, :1])
    bottom[..., 3] = 1.0
    views = torch.cat([camera.world_to_camera, bottom], dim=1)
    own = len(cloud.means) > 1  # dimensions: (clouds, cameras of each); one cloud has no dimension of clouds
    values = [getattr(cloud, name) if own else getattr(cloud, name)[0] for name in LEAVES]
    backgrounds = background.expand(len(views), -1)
    views, intrinsics, backgrounds = (value[:, None] if own else value for value in (views, camera.intrinsics, backgrounds))
    features, alpha, _ = rasterization(
        *values, viewmats=views, Ks=intrinsics, width=camera.width, height=camera.height, near_plane=0.2, eps2d=0.3, radius_clip=0.0, packed=False,
        backgrounds=backgrounds,
    )
    return features.flatten(0, -4).permute(0, 3, 1, 2), alpha.flatten(0, -4).permute(0, 3, 1, 2)


def _gsplat_batches() -> bool:
    import gsplat as package

    return tuple(int(number) for number in re.findall(r"\d+", package.__version__)[:3]) >= (1, 5, 3)


def draw_inria(cloud: GaussianCloud, camera: Camera, background: Tensor) -> tuple[Tensor, None]:
    """One call of INRIA's rasterizer per image. The adapter adds alpha, which is a second pass where all compiled channels are used."""
    channels = cloud.features.shape[-1]
    compiled = inria._compiled_channels(cloud.means.device)
    if channels > compiled:
        raise InputError(f"cannot draw {channels} channels: compiled for {compiled}")
    views, projections = inria._matrices(camera)
    half, centers = 0.5 / FOCAL, camera.centers()  # tangent of half the field of view; to read it from the camera would wait for the device
    images = []
    for b in range(len(views)):
        view = {"image_height": camera.height, "image_width": camera.width, "tanfovx": half, "tanfovy": half, "viewmatrix": views[b],
                "projmatrix": projections[b], "campos": centers[b]}
        row = 0 if len(cloud.means) == 1 else b
        colours = torch.nn.functional.pad(cloud.features[row], (0, compiled - channels))
        images.append(inria._draw(cloud, row, colours, torch.nn.functional.pad(background, (0, compiled - channels)), view)[0][:channels])
    return torch.stack(images), None


def _row(cloud: GaussianCloud, row: int) -> GaussianCloud:
    return GaussianCloud(*(getattr(cloud, name)[row:row + 1] for name in LEAVES))


def _camera_row(camera: Camera, row: int) -> Camera:
    return dataclasses.replace(camera, world_to_camera=camera.world_to_camera[row:row + 1], intrinsics=camera.intrinsics[row:row + 1])


def with_gradients(drawing: Drawing) -> tuple[GaussianCloud, list[Tensor]]:
    """The cloud as leaves that want gradients, as in training."""
    leaves = [getattr(drawing.cloud, name).detach().requires_grad_() for name in LEAVES]
    return GaussianCloud(*leaves), leaves


def quantities(draw: Draw, drawing: Drawing, camera_gradients: bool) -> dict[str, Tensor]:
    """Picture and gradients by name, in float64 on the CPU."""
    cloud, leaves = with_gradients(drawing)
    names, camera, background = list(LEAVES), drawing.camera, drawing.background
    if camera_gradients:
        background, pose = background.detach().clone().requires_grad_(), camera.world_to_camera.detach().clone().requires_grad_()
        camera = dataclasses.replace(camera, world_to_camera=pose)
        names, leaves = [*names, "background", "world_to_camera"], [*leaves, background, pose]
    features, alpha = draw(cloud, camera, background)
    gradients = torch.autograd.grad(features, leaves, drawing.upstream.to(features.dtype))
    found = {"image": features, **({} if alpha is None else {"alpha": alpha}), **{f"d_{name}": g for name, g in zip(names, gradients, strict=True)}}
    return {name: value.detach().double().cpu() for name, value in found.items()}


def truth(drawing: Drawing, clip: bool) -> dict[str, Tensor]:
    """What the reference gives in float64, from the same float32 numbers."""
    def draw(cloud: GaussianCloud, camera: Camera, background: Tensor) -> tuple[Tensor, Tensor]:
        result = reference.rasterize(cloud, camera, background, RasterOptions(clip=clip))
        return result.features, result.alpha

    return quantities(draw, drawing.to(str(drawing.background.device), torch.float64), True)


def compare(candidate: Candidate, drawing: Drawing, exact: dict[str, Tensor]) -> dict[str, tuple[float, float | None]]:
    """Per quantity: relative L2 error (1e30: not finite); and the mean signed error over the rms error.

    The sign is that of the true value: a gradient that is always too small in magnitude shows, whichever way it points.
    """
    found, result = quantities(candidate.draw, drawing, candidate.camera_gradients), {}
    quats = drawing.cloud.quats_wxyz.double().cpu()
    for name, value in found.items():
        expected = exact[name]
        if name == "d_quats_wxyz" and candidate.tangent:
            value, expected = (g - (g * quats).sum(dim=-1, keepdim=True) * quats for g in (value, expected))
        error = value - expected
        relative = float(error.norm() / expected.norm().clamp(min=1e-30)) if bool(error.isfinite().all()) else 1e30
        rms = float(error.square().mean().sqrt())
        biased = error.numel() >= BIAS_VALUES and rms > 0
        result[name] = relative, float((error * expected.sign()).mean()) / rms if biased else None
    return result


def judge(candidate: Candidate, comparisons: list[dict[str, tuple[float, float | None]]]) -> dict:
    """Medians over seeds, and whether all are within the limit of the candidate."""
    errors = {name: statistics.median(one[name][0] for one in comparisons) for name in comparisons[0]}
    biases = {name: statistics.median(one[name][1] for one in comparisons) for name in errors
              if comparisons[0][name][1] is not None and errors[name] > BIAS_FLOOR}
    limit = LIMITS[candidate.limit]
    beyond = sorted(name for name, value in errors.items() if not value <= limit)
    return {
        "passed": not beyond, "limit": limit, "beyond": beyond, "relative_l2": {name: float(f"{value:.3g}") for name, value in errors.items()},
        "signed_over_rms": {name: round(value, 4) for name, value in biases.items()}, "conventions": candidate.conventions,
    }
