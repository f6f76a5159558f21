"""Gaussian rasterization in plain torch: the definition of what every backend computes.

Any number of channels, any floating type, CPU and CUDA, plain autograd. Tiles with lists of similar length are blended
together, so memory follows the number of (tile, Gaussian) pairs; above a budget blending is recomputed in the backward pass.
"""

from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.boxes import box_cells

NEAR = 0.2  # world units; Gaussians whose centre is nearer are culled
LOW_PASS = 0.3  # px², added to the diagonal of every projected covariance
ALPHA_MAX, ALPHA_MIN = 0.99, 1.0 / 255.0
TRANSMITTANCE_MIN = 1e-4  # a Gaussian that would bring a pixel below is not blended, nor any behind it
FRUSTUM_MARGIN = 0.3  # of the half field of view: where the Jacobian of the projection is evaluated at most

TILE = 8  # pixels
GROUP_RATIO = 0.6  # tiles are blended together when the shortest list is at least this part of the longest
CHUNK_VALUES = 1 << 23  # (pixel, Gaussian) values blended at once
KEEP_VALUES = 1 << 26  # more than this in one call: recompute instead of keeping intermediate values


@dataclass(frozen=True)
class Projected:
    """Gaussians on the image plane, flattened over the batch. `power` at a pixel is log alpha before clamping."""

    means: Float[Tensor, "M 2"]
    conics: Float[Tensor, "M 3"]
    log_opacities: Float[Tensor, "M"]
    depths: Float[Tensor, "M"]
    low: Int[Tensor, "M 2"]
    extent: Int[Tensor, "M 2"]


def rasterize(
    cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 1 H W"]]:
    """Features over the background, and alpha. See interface.rasterize."""
    batch, channels = len(cloud.means), cloud.features.shape[-1]
    projected = project(cloud, camera)
    tiles_x, tiles_y = -(-camera.width // TILE), -(-camera.height // TILE)
    gaussian, tile = _tile_lists(projected, batch, tiles_x, tiles_y)
    # One more Gaussian that contributes nothing fills up short lists.
    means = torch.cat([projected.means, projected.means.new_zeros(1, 2)])
    conics = torch.cat([projected.conics, projected.conics.new_zeros(1, 3)])
    log_opacities = torch.cat([projected.log_opacities, projected.log_opacities.new_full((1,), -torch.inf)])
    features = torch.cat([cloud.features.flatten(0, 1), cloud.features.new_zeros(1, channels)])

    counts = torch.bincount(tile, minlength=batch * tiles_x * tiles_y)
    starts = counts.cumsum(dim=0) - counts
    basis = _pixel_basis(means)
    recompute = torch.is_grad_enabled() and int(counts.sum()) * TILE * TILE > KEEP_VALUES
    blended, rows = [], []
    for group in _groups(counts):
        length = int(counts[group].max())
        position = torch.arange(length, device=group.device)
        slot = starts[group][:, None] + position
        members = torch.where(position < counts[group][:, None], gaussian[slot.clamp(max=len(gaussian) - 1)], len(means) - 1)
        centres = _tile_centres(group, tiles_x, tiles_y).to(means.dtype)
        arguments = (means[members] - centres[:, None], conics[members], log_opacities[members], features[members], basis)
        blended.append(checkpoint(_blend, *arguments, use_reentrant=False) if recompute else _blend(*arguments))
        rows.append(group)

    canvas = features.new_zeros(batch * tiles_x * tiles_y, TILE * TILE, channels + 1)
    if blended:
        canvas = canvas.index_copy(0, torch.cat(rows), torch.cat(blended))
    image = canvas.reshape(batch, tiles_y, tiles_x, TILE, TILE, channels + 1).permute(0, 5, 1, 3, 2, 4)
    image = image.reshape(batch, channels + 1, tiles_y * TILE, tiles_x * TILE)[:, :, :camera.height, :camera.width]
    alpha = image[:, channels:]
    return image[:, :channels] + (1.0 - alpha) * background[:, None, None], alpha


def project(cloud: GaussianCloud, camera: Camera) -> Projected:
    """EWA projection (Zwicker et al., 2001) with the exact box of pixels in which alpha reaches 1/255; cameras without skew."""
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
    determinant = a * c - b * b
    conics = torch.stack([c, -b, a], dim=-1) / determinant[..., None]
    means = torch.stack([fx * x / safe_z + cx, fy * y / safe_z + cy], dim=-1)

    with torch.no_grad():
        visible = in_front & (cloud.opacities >= ALPHA_MIN)
        reach = (2.0 * (cloud.opacities.clamp(min=ALPHA_MIN) / ALPHA_MIN).log())[..., None]
        half = (reach * torch.stack([a, c], dim=-1)).sqrt()
        size = torch.tensor([camera.width, camera.height], device=means.device)
        low = torch.ceil(means - half - 0.5).clamp(min=0)
        high = torch.minimum(torch.floor(means + half - 0.5), (size - 1).to(means.dtype))
        extent = torch.where(visible[..., None], high - low + 1, torch.zeros_like(high)).clamp(min=0)
        extent = torch.where((extent > 0).all(dim=-1, keepdim=True), extent, torch.zeros_like(extent))
        low = torch.where(extent > 0, low, torch.zeros_like(low))
    tiny = torch.finfo(cloud.opacities.dtype).tiny
    return Projected(
        means=means.flatten(0, 1), conics=conics.flatten(0, 1), log_opacities=cloud.opacities.clamp(min=tiny).log().flatten(),
        depths=z.detach().flatten(), low=low.long().flatten(0, 1), extent=extent.long().flatten(0, 1),
    )


def _tile_lists(projected: Projected, batch: int, tiles_x: int, tiles_y: int) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """(Gaussian, tile) pairs ordered by tile, then depth, then Gaussian."""
    with torch.no_grad():
        low = projected.low // TILE
        extent = (projected.low + projected.extent - 1) // TILE - low + 1
        extent = torch.where(projected.extent > 0, extent, torch.zeros_like(extent))
        drawn = extent.prod(dim=1).nonzero()[:, 0]
        by_depth = drawn[projected.depths[drawn].argsort(stable=True)]
        gaussian, column, row = box_cells(by_depth, low, extent)
        image = gaussian // (len(projected.depths) // batch)
        tile, order = ((image * tiles_y + row) * tiles_x + column).sort(stable=True)
        return gaussian[order], tile


def _groups(counts: Int[Tensor, "T"]) -> list[Int[Tensor, "t"]]:
    """Tiles that are not empty, longest lists first, cut where lists become much shorter or a chunk is full."""
    length, tile = counts.sort(descending=True, stable=True)
    lengths = length[:int((length > 0).sum())].tolist()
    groups, start = [], 0
    for end in range(1, len(lengths) + 1):
        full = (end - start + 1) * lengths[start] * TILE * TILE > CHUNK_VALUES
        if end == len(lengths) or full or lengths[end] < GROUP_RATIO * lengths[start]:
            groups.append(tile[start:end])
            start = end
    return groups


def _tile_centres(tile: Int[Tensor, "t"], tiles_x: int, tiles_y: int) -> Float[Tensor, "t 2"]:
    column, row = tile % tiles_x, tile // tiles_x % tiles_y
    return (torch.stack([column, row], dim=1) + 0.5) * TILE


def _pixel_basis(like: Tensor) -> Float[Tensor, "p 6"]:
    """Monomials [x², xy, y², x, y, 1] of the pixel centres of a tile, relative to its centre."""
    offset = torch.arange(TILE, device=like.device, dtype=like.dtype) + 0.5 - TILE / 2
    y, x = (grid.reshape(-1) for grid in torch.meshgrid(offset, offset, indexing="ij"))
    return torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x)], dim=1)


def _blend(
    means: Float[Tensor, "t k 2"], conics: Float[Tensor, "t k 3"], log_opacities: Float[Tensor, "t k"],
    features: Float[Tensor, "t k C"], basis: Float[Tensor, "p 6"],
) -> Float[Tensor, "t p D"]:
    """Front-to-back blending of one group of tiles; means are relative to the tile centres. D = features and alpha."""
    u, v = means.unbind(dim=-1)
    a, b, c = conics.unbind(dim=-1)
    along, across = a * u + b * v, b * u + c * v
    polynomial = torch.stack([-0.5 * a, -b, -0.5 * c, along, across, log_opacities - 0.5 * (along * u + across * v)], dim=1)
    alpha = (basis @ polynomial).exp().clamp(max=ALPHA_MAX)  # (t, p, k)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))
    after = (1.0 - alpha).cumprod(dim=-1)
    before = torch.nn.functional.pad(after[..., :-1], (1, 0), value=1.0)
    weight = torch.where(after >= TRANSMITTANCE_MIN, alpha * before, torch.zeros_like(alpha))
    return torch.cat([weight @ features, weight.sum(dim=-1, keepdim=True)], dim=-1)
