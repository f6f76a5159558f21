"""What every rasterizer backend does first: Gaussians on the image plane, and the tiles that each may touch."""

from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.boxes import box_cells

NEAR = 0.2  # world units; Gaussians whose centre is nearer are culled
LOW_PASS = 0.3  # px², added to the diagonal of every projected covariance
ALPHA_MAX, ALPHA_MIN = 0.99, 1.0 / 255.0
TRANSMITTANCE_MIN = 1e-4  # a Gaussian that would bring a pixel below is not blended, nor any behind it
CLIP_BLOCK = 16  # pixels
FRUSTUM_MARGIN = 0.3  # of the half field of view: where the Jacobian of the projection is evaluated at most


@dataclass(frozen=True)
class Projected:
    """Gaussians on the image plane, flattened over the batch. `power` at a pixel is log alpha before clamping."""

    means: Float[Tensor, "M 2"]
    conics: Float[Tensor, "M 3"]
    log_opacities: Float[Tensor, "M"]
    depths: Float[Tensor, "M"]
    low: Int[Tensor, "M 2"]
    extent: Int[Tensor, "M 2"]
    radii: Int[Tensor, "M"]


def project(cloud: GaussianCloud, camera: Camera, clip: bool = False) -> Projected:
    """EWA projection (Zwicker et al., 2001) with the exact box of pixels in which alpha reaches 1/255; cameras without skew.

    With `clip` the box is cut to the blocks of 16 x 16 px that meet the square of three standard deviations around the mean.
    """
    points = camera.to_camera(cloud.means)
    x, y, z = points.unbind(dim=-1)
    in_front = z > NEAR
    safe_z = torch.where(in_front, z, torch.ones_like(z))
    fx, fy, cx, cy = (camera.intrinsics[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * camera.width / fx, FRUSTUM_MARGIN * 0.5 * camera.height / fy
    tx = (x / safe_z).clamp(-cx / fx - margin_x, (camera.width - cx) / fx + margin_x)
    ty = (y / safe_z).clamp(-cy / fy - margin_y, (camera.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([
        torch.stack([fx / safe_z, zero, -fx * tx / safe_z], dim=-1), torch.stack([zero, fy / safe_z, -fy * ty / safe_z], dim=-1),
    ], dim=-2)
    axes = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(cloud.quats_wxyz)) * cloud.scales[..., None, :]
    spread = jacobian @ (camera.world_to_camera[:, None, :, :3] @ axes)  # (B, N, 2, 3)
    a = spread[..., 0, :].square().sum(dim=-1) + LOW_PASS
    b = (spread[..., 0, :] * spread[..., 1, :]).sum(dim=-1)
    c = spread[..., 1, :].square().sum(dim=-1) + LOW_PASS
    # a c - b², by Lagrange's identity: the difference loses all digits of thin and long Gaussians in float32, and its sign.
    area = torch.linalg.cross(spread[..., 0, :], spread[..., 1, :]).square().sum(dim=-1)
    determinant = area + LOW_PASS * (a + c - LOW_PASS)
    conics = torch.stack([c, -b, a], dim=-1) / determinant[..., None]
    means = torch.stack([fx * x / safe_z + cx, fy * y / safe_z + cy], dim=-1)

    with torch.no_grad():
        visible = in_front & (cloud.opacities >= ALPHA_MIN)
        reach = (2.0 * (cloud.opacities.clamp(min=ALPHA_MIN) / ALPHA_MIN).log())[..., None]
        half = (reach * torch.stack([a, c], dim=-1)).sqrt()
        size = torch.tensor([camera.width, camera.height], device=means.device)
        low = torch.ceil(means - half - 0.5).clamp(min=0)
        high = torch.minimum(torch.floor(means + half - 0.5), (size - 1).to(means.dtype))
        middle = 0.5 * (a + c)
        radius = torch.ceil(3.0 * (middle + (middle.square() - determinant).clamp(min=0.1).sqrt()).sqrt())
        if clip:
            low = torch.maximum(low, torch.floor((means - radius[..., None] - 0.5) / CLIP_BLOCK) * CLIP_BLOCK)
            high = torch.minimum(high, torch.floor((means + radius[..., None] - 0.5 + CLIP_BLOCK - 1) / CLIP_BLOCK) * CLIP_BLOCK - 1)
        extent = torch.where(visible[..., None], high - low + 1, torch.zeros_like(high)).clamp(min=0)
        extent = torch.where((extent > 0).all(dim=-1, keepdim=True), extent, torch.zeros_like(extent))
        low = torch.where(extent > 0, low, torch.zeros_like(low))
    tiny = torch.finfo(cloud.opacities.dtype).tiny
    return Projected(
        means=means.flatten(0, 1), conics=conics.flatten(0, 1), log_opacities=cloud.opacities.clamp(min=tiny).log().flatten(),
        depths=z.detach().flatten(), low=low.long().flatten(0, 1), extent=extent.long().flatten(0, 1),
        radii=torch.where((extent > 0).all(dim=-1), radius, torch.zeros_like(radius)).int().flatten(),
    )


def tile_pairs(
    projected: Projected, batch: int, tile_size: int, tiles_x: int, tiles_y: int
) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """(Gaussian, tile) for every tile that meets a Gaussian's box: ordered by depth, then Gaussian, row by row."""
    with torch.no_grad():
        low = projected.low // tile_size
        extent = (projected.low + projected.extent - 1) // tile_size - low + 1
        extent = torch.where(projected.extent > 0, extent, torch.zeros_like(extent))
        drawn = extent.prod(dim=1).nonzero()[:, 0]
        by_depth = drawn[projected.depths[drawn].argsort(stable=True)]
        gaussian, column, row = box_cells(by_depth, low, extent)
        image = gaussian // (len(projected.depths) // batch)
        return gaussian, (image * tiles_y + row) * tiles_x + column
