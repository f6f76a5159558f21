"""Gaussian rasterization in plain torch: the definition of what every backend computes.

Any number of channels, any floating type, CPU and CUDA, plain autograd. Tiles with lists of similar length are blended
together, so memory follows the number of (tile, Gaussian) pairs; above a budget blending is recomputed in the backward pass.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian.contract import DEFAULT, FeatureImage, RasterOptions, one_per_camera
from lib.render.gaussian.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, project, tile_pairs

TILE = 8  # pixels
GROUP_RATIO = 0.6  # tiles are blended together when the shortest list is at least this part of the longest
CHUNK_VALUES = 1 << 23  # (pixel, Gaussian) values blended at once
KEEP_VALUES = 1 << 26  # more than this in one call: recompute instead of keeping intermediate values


def rasterize(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "C"], options: RasterOptions = DEFAULT) -> FeatureImage:
    """See interface.rasterize."""
    cloud = one_per_camera(cloud, camera)
    batch, channels = len(cloud.means), cloud.features.shape[-1]
    projected = project(cloud, camera, options.clip)
    tiles_x, tiles_y = -(-camera.width // TILE), -(-camera.height // TILE)
    gaussian, tile = tile_pairs(projected, batch, TILE, tiles_x, tiles_y)
    tile, order = tile.sort(stable=True)  # within a tile still by depth, then Gaussian
    gaussian = gaussian[order]
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
    features = image[:, :channels] + (1.0 - alpha) * background[:, None, None]
    return FeatureImage(features.to(options.dtype or features.dtype), alpha, projected.radii.reshape(batch, -1))


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
