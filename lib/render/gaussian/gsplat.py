"""Adapter of gsplat (https://github.com/nerfstudio-project/gsplat, Apache-2.0; its API of 1.0 to 1.5), for comparisons; `auto` never picks it.

Where its pictures are not those of `reference`, by the source of 1.5.3: alpha is clamped at 0.999, not 0.99 (later versions: 0.99);
a pixel stops when its transmittance would fall to 1e-4, not only below; the exponential is CUDA's fast one; the determinant of a
covariance is a difference in float32, so very thin Gaussians lose digits, and those whose determinant is not positive are dropped;
quaternions are normalised inside, so their gradient is along the unit sphere only. Near plane, low-pass, pixel centres, the clamp of
the Jacobian around the principal point, the threshold 1/255 and the order of depths are the same. Like `reference`, it ignores skew.
Any number of channels from 1: above 32 it draws in passes of 32 and pads each to a count that it was compiled for. It compiles its
kernels at first use and needs the CUDA toolkit then, unless a compiled wheel was installed.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian.contract import DEFAULT, FeatureImage, RasterOptions
from lib.render.gaussian.installed import empty_image, gradient_obstacle, package_obstacle, refuse_obstacles
from lib.render.gaussian.projection import LOW_PASS, NEAR


def obstacle(cloud: GaussianCloud) -> str | None:
    """Why this backend cannot draw the cloud here, or None."""
    if cloud.features.shape[-1] == 0:
        return "it draws at least one channel, found none; use reference"
    return package_obstacle(cloud, "gsplat", "PyPI")


def rasterize(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], options: RasterOptions = DEFAULT) -> FeatureImage:
    """See interface.rasterize. One cloud is seen by all cameras in one call; own clouds are drawn one after another.

    Features are a permuted view of gsplat's BHWC. Gradients also reach the background; atomic sums differ in the last bits every time.
    """
    refuse_obstacles(
        "gsplat", obstacle(cloud),
        "its gradients are atomic sums, not deterministic; leave options.deterministic False, or use triton" if options.deterministic else None,
        "it does not clip at three standard deviations; leave options.clip False, or use triton or inria" if options.clip else None,
        gradient_obstacle(intrinsics=camera.intrinsics),
    )
    if cloud.means.shape[1] == 0:
        return empty_image(camera, background, options)
    bottom = torch.zeros_like(camera.world_to_camera[:, :1])
    bottom[..., 3] = 1.0
    viewmats = torch.cat([camera.world_to_camera, bottom], dim=1)
    cameras = [slice(None)] if len(cloud.means) == 1 else [slice(b, b + 1) for b in range(len(cloud.means))]
    drawn = [_draw(cloud, row, viewmats[which], camera.intrinsics[which], camera, background) for row, which in enumerate(cameras)]
    features, alpha, radii = drawn[0] if len(drawn) == 1 else (torch.cat(parts) for parts in zip(*drawn, strict=True))
    features = features.permute(0, 3, 1, 2)
    return FeatureImage(features.to(options.dtype or features.dtype), alpha.permute(0, 3, 1, 2), radii)


def _draw(
    cloud: GaussianCloud, row: int, viewmats: Float[Tensor, "K 4 4"], intrinsics: Float[Tensor, "K 3 3"], camera: Camera,
    background: Float[Tensor, "C"],
) -> tuple[Float[Tensor, "K H W C"], Float[Tensor, "K H W 1"], Int[Tensor, "K N"]]:
    """One cloud of the batch, by K cameras."""
    from gsplat import rasterization  # the installed package: imports are absolute

    features, alpha, meta = rasterization(
        means=cloud.means[row], quats=cloud.quats_wxyz[row], scales=cloud.scales[row], opacities=cloud.opacities[row], colors=cloud.features[row],
        viewmats=viewmats, Ks=intrinsics, width=camera.width, height=camera.height, near_plane=NEAR, eps2d=LOW_PASS, radius_clip=0.0, packed=False,
        backgrounds=background.expand(len(viewmats), -1),
    )
    return features, alpha, _radii(meta["radii"], meta["conics"].detach())


def _radii(theirs: Int[Tensor, "K N *axes"], conics: Float[Tensor, "K N 3"]) -> Int[Tensor, "K N"]:
    """Three standard deviations of the larger axis, by the formula of projection.project from the conics.

    Theirs are per axis and only as far as alpha reaches 1/255 (before 1.5: one number), so they only tell which were culled.
    Those are outside of the picture by their box, which reaches up to a pixel further than ours. The values are exact up to rounding.
    """
    drawn = theirs > 0 if theirs.dim() == 2 else (theirs > 0).all(dim=-1)
    a, b, c = conics.unbind(dim=-1)
    # Less than that a difference of float32 products cannot tell from 0.
    determinant = torch.maximum(a * c - b * b, torch.finfo(a.dtype).eps * a * c)
    middle = 0.5 * (a + c) / determinant
    radius = torch.ceil(3.0 * (middle + (middle.square() - 1.0 / determinant).clamp(min=0.1).sqrt()).sqrt())
    return torch.where(drawn, radius, torch.zeros_like(radius)).int()  # conics of culled ones are memory that nobody wrote
