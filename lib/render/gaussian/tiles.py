"""Gaussians on the image plane and the tiles that they reach, by kernels: what `projection` defines, in few launches and without waiting.

Tiles are (width, height) in pixels. Runs on CUDA, and on the CPU under Triton's interpreter.
"""

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera

FORWARD_BLOCK, FORWARD_WARPS = 32, 1  # one warp: a loop ends with the last of its Gaussians
BACKWARD_BLOCK, BACKWARD_WARPS = 128, 4
EMIT_BLOCK, EMIT_WARPS = 64, 1
GATHER_BLOCK, GATHER_WARPS = 256, 4
SHORT_TILES = (1 << 16) - 1  # as many tiles have keys of 16 bits, which sort in fewer passes, and one key is left for none


@dataclass(frozen=True)
class Rows:
    """Gaussians on the image planes of all images, image by image. What is culled has depth infinity, no tiles and radius 0.

    geometry: [x, y, qa, qb, qc, lo, hx, hy]: alpha before clamping is 2^(lo + qa dx² + qb dx dy + qc dy²) at the offset (dx, dy) in
    pixels from the mean (x, y); hx, hy: half extents of the ellipse of alpha 1/255. counts: of tiles, for one shape of them.
    """

    geometry: Float[Tensor, "M 8"]
    depths: Float[Tensor, "M"]
    counts: Int[Tensor, "M"]
    radii: Int[Tensor, "M"]


@dataclass(frozen=True)
class TileLists:
    """Which Gaussians each tile of each image blends, front to back: members[ranges[tile, 0]:ranges[tile, 1]].

    slots: where pair i stood before pairs were sorted by tile; there the pairs of a Gaussian are contiguous: those of the r-th nearest,
    order[r], end before ends[r]. The last of `ends` is the number of pairs; beyond the room for them they are missing here.
    """

    members: Int[Tensor, "P"]
    ranges: Int[Tensor, "E 2"]
    slots: Int[Tensor, "P"]
    order: Int[Tensor, "M"]
    ends: Int[Tensor, "M"]
    tiles_x: int
    tiles_y: int
    images: int
    width: int
    height: int
    tile: tuple[int, int]


def project_cloud(cloud: GaussianCloud, camera: Camera, clip: bool, tile: tuple[int, int]) -> Rows:
    """B clouds by their cameras, or one by all; with `clip` only tiles that meet the squares of `projection.project(clip=True)`.

    Their pixels that lie outside of these squares are not marked: sides of tiles should divide CLIP_BLOCK.
    """
    from lib.render.gaussian.projection_kernels import LAUNCH, project_forward

    means, images, count = cloud.means, len(camera.intrinsics), cloud.means.shape[1]
    geometry, depths = means.new_empty(images * count, 8), means.new_empty(images * count)
    counts, radii = means.new_empty(2, images * count, dtype=torch.int32).unbind()
    if images * count > 0:
        with torch.cuda.device_of(means):
            project_forward[(-(-count // FORWARD_BLOCK), images)](
                means.contiguous(), cloud.quats_wxyz.contiguous(), cloud.scales.contiguous(), cloud.opacities.contiguous(),
                camera.world_to_camera.contiguous(), camera.intrinsics.contiguous(), geometry, depths, counts, radii,
                count, camera.width, camera.height, SHARED=len(means) != images, CLIP=clip, TILE_X=tile[0], TILE_Y=tile[1],
                BLOCK=FORWARD_BLOCK, num_warps=FORWARD_WARPS, **LAUNCH,
            )
    return Rows(geometry, depths, counts, radii)


def recount(rows: Rows, width: int, height: int, clip: bool, tile: tuple[int, int]) -> Rows:
    """The same Gaussians with their numbers of tiles of another shape."""
    from lib.render.gaussian.projection_kernels import LAUNCH, count_tiles

    counts, total = torch.empty_like(rows.counts), len(rows.counts)
    if total > 0:
        with torch.cuda.device_of(counts):
            count_tiles[(-(-total // FORWARD_BLOCK),)](
                rows.geometry, rows.radii, counts, total, width, height,
                CLIP=clip, TILE_X=tile[0], TILE_Y=tile[1], BLOCK=FORWARD_BLOCK, num_warps=FORWARD_WARPS, **LAUNCH,
            )
    return dataclasses.replace(rows, counts=counts)


def project_cloud_backward(
    cloud: GaussianCloud, camera: Camera, counts: Int[Tensor, "M"], d_geometry: Float[Tensor, "M 8"], pose: bool
) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 4"], Float[Tensor, "B N 3"], Float[Tensor, "B N"], Float[Tensor, "I 3 4"] | None]:
    """Gradients of means, quats_wxyz, scales, opacities, and of world_to_camera if `pose`; always in the same order of summation.

    d_geometry: rows [m0, sx, sy, sxx, sxy, syy, -, -], sums over pixels of dL/dpower times 1, dx, dy, dx², dx dy, dy², where power is
    the natural logarithm of alpha before clamping and (dx, dy) = mean - pixel. Rows of Gaussians without tiles are not read.
    """
    from lib.render.gaussian.projection_kernels import LAUNCH, project_backward

    means, images, (clouds, count, _) = cloud.means, len(camera.intrinsics), cloud.means.shape
    programs = -(-count // BACKWARD_BLOCK)
    d_means, d_quats, d_scales = means.new_empty(clouds, count, 3), means.new_empty(clouds, count, 4), means.new_empty(clouds, count, 3)
    d_opacities, parts = means.new_empty(clouds, count), means.new_empty(images, programs, 12) if pose else d_means
    if images * count > 0:
        with torch.cuda.device_of(means):
            project_backward[(programs, clouds)](
                means.contiguous(), cloud.quats_wxyz.contiguous(), cloud.scales.contiguous(), cloud.opacities.contiguous(),
                camera.world_to_camera.contiguous(), camera.intrinsics.contiguous(), counts, d_geometry.contiguous(),
                d_means, d_quats, d_scales, d_opacities, parts, count, images, camera.width, camera.height,
                SHARED=clouds != images, POSE=pose, BLOCK=BACKWARD_BLOCK, num_warps=BACKWARD_WARPS, **LAUNCH,
            )
    d_pose = None
    if pose:
        sums = parts.sum(dim=1)
        d_pose = torch.cat([sums[:, :9].reshape(images, 3, 3), sums[:, 9:, None]], dim=2)
    return d_means, d_quats, d_scales, d_opacities, d_pose


def tile_lists(rows: Rows, images: int, width: int, height: int, tile: tuple[int, int], clip: bool, pairs: int) -> TileLists:
    """Pairs of tiles and Gaussians by tile, depth, then Gaussian; the rows must have been counted for these tiles with the same `clip`.

    `pairs` is the room: what is left of it belongs to no tile, and what does not fit is left out.
    """
    from lib.render.gaussian.binning_kernels import emit, gather_ranges
    from lib.render.gaussian.projection_kernels import LAUNCH

    tiles_x, tiles_y = -(-width // tile[0]), -(-height // tile[1])
    tiles, total = images * tiles_x * tiles_y, len(rows.counts)
    short = tiles <= SHORT_TILES
    order = rows.depths.sort(stable=True).indices
    ends = rows.counts[order].cumsum(dim=0, dtype=torch.int32)
    ranges = ends.new_zeros(tiles, 2)
    if total == 0 or pairs == 0:
        members, slots = ends.new_zeros(pairs), torch.arange(pairs, device=order.device)
    else:
        gaussians, members = ends.new_empty(2, pairs).unbind()
        keys = ends.new_empty(pairs, dtype=torch.int16 if short else torch.int32)
        with torch.cuda.device_of(keys):
            emit[(-(-pairs // EMIT_BLOCK),)](
                rows.geometry, rows.radii, order, ends, keys, gaussians, total, total // images, pairs, total.bit_length(), width, height,
                SHORT=short, CLIP=clip, TILE_X=tile[0], TILE_Y=tile[1], BLOCK=EMIT_BLOCK, num_warps=EMIT_WARPS, **LAUNCH,
            )
            keys, slots = keys.sort(stable=True)
            gather_ranges[(-(-pairs // GATHER_BLOCK),)](
                keys, slots, gaussians, members, ranges, pairs, tiles, SHORT=short, BLOCK=GATHER_BLOCK, num_warps=GATHER_WARPS, **LAUNCH,
            )
    return TileLists(members, ranges, slots, order, ends, tiles_x, tiles_y, images, width, height, tile)
