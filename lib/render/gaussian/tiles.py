"""Gaussians on the image plane and the lists of Gaussians of every tile, by kernels: what `projection` defines, in few launches.

Tiles are (width, height) in pixels. Runs on CUDA, and on the CPU under Triton's interpreter.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera

PROJECT_BLOCK, PROJECT_WARPS, COLUMNS = 32, 1, 4  # one warp: a loop ends with the last of its Gaussians; tiles of a row taken at once
BACKWARD_BLOCK, BACKWARD_WARPS = 128, 4
SORT_LIMIT, SHORT_WARPS, LONG_WARPS = 512, 1, 8  # longer lists are sorted by more warps
SUM_BLOCK, SUM_WARPS = 16, 1


@dataclass(frozen=True)
class Rows:
    """Gaussians on the image planes of all images, image by image. What is culled has depth infinity and radius 0.

    geometry: [x, y, qa, qb, qc, lo, hx, hy]: alpha before clamping is 2^(lo + qa dx² + qb dx dy + qc dy²) at the offset (dx, dy) in
    pixels from the mean (x, y); hx, hy: half extents of the ellipse of alpha 1/255.
    """

    geometry: Float[Tensor, "M 8"]
    depths: Float[Tensor, "M"]
    radii: Int[Tensor, "M"]


@dataclass(frozen=True)
class Picture:
    """What is tiled: the images, which Gaussians may be clipped in (RasterOptions.clip), and how."""

    images: int
    width: int
    height: int
    clip: bool
    tile: tuple[int, int]

    @property
    def tiles_x(self) -> int:
        """Columns of tiles."""
        return -(-self.width // self.tile[0])

    @property
    def tiles_y(self) -> int:
        """Rows of tiles."""
        return -(-self.height // self.tile[1])

    @property
    def tiles(self) -> int:
        """Of all images."""
        return self.images * self.tiles_x * self.tiles_y

    def constants(self) -> dict[str, int | bool]:
        """For kernels."""
        return {"CLIP": self.clip, "TILE_X": self.tile[0], "TILE_Y": self.tile[1]}


def project_cloud(cloud: GaussianCloud, camera: Camera, picture: Picture) -> tuple[Rows, Int[Tensor, "T"]]:
    """B clouds by their cameras, or one by all; and how many Gaussians reach each tile."""
    from lib.render.gaussian.projection_kernels import LAUNCH, project_forward

    means, (clouds, count, _) = cloud.means, cloud.means.shape
    rows = picture.images * count
    geometry, depths = means.new_empty(rows, 8), means.new_empty(rows)
    radii, lengths = means.new_empty(rows, dtype=torch.int32), means.new_zeros(picture.tiles, dtype=torch.int32)
    if rows:
        project_forward[(-(-count // PROJECT_BLOCK), picture.images)](
            means.contiguous(), cloud.quats_wxyz.contiguous(), cloud.scales.contiguous(), cloud.opacities.contiguous(),
            camera.world_to_camera.contiguous(), camera.intrinsics.contiguous(), geometry, depths, radii, lengths,
            count, picture.width, picture.height, SHARED=clouds != picture.images,
            BLOCK=PROJECT_BLOCK, COLUMNS=COLUMNS, num_warps=PROJECT_WARPS, **picture.constants(), **LAUNCH,
        )
    return Rows(geometry, depths, radii), lengths


def project_cloud_backward(
    cloud: GaussianCloud, camera: Camera, radii: Int[Tensor, "M"], d_geometry: Float[Tensor, "M 8"], pose: bool
) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 4"], Float[Tensor, "B N 3"], Float[Tensor, "B N"], Float[Tensor, "I 3 4"] | None]:
    """Gradients of means, quats_wxyz, scales, opacities, and of world_to_camera if `pose`; always in the same order of summation.

    d_geometry: rows [m0, sx, sy, sxx, sxy, syy, -, -], sums over pixels of dL/dpower times 1, dx, dy, dx², dx dy, dy², where power is
    the natural logarithm of alpha before clamping and (dx, dy) = mean - pixel. Rows of culled Gaussians are not read.
    """
    from lib.render.gaussian.projection_kernels import LAUNCH, project_backward

    means, images, (clouds, count, _) = cloud.means, len(camera.intrinsics), cloud.means.shape
    programs = -(-count // BACKWARD_BLOCK)
    d_means, d_quats, d_scales = means.new_empty(clouds, count, 3), means.new_empty(clouds, count, 4), means.new_empty(clouds, count, 3)
    d_opacities, parts = means.new_empty(clouds, count), means.new_empty(images, programs, 12) if pose else d_means
    if images * count > 0:
        project_backward[(programs, clouds)](
            means.contiguous(), cloud.quats_wxyz.contiguous(), cloud.scales.contiguous(), cloud.opacities.contiguous(),
            camera.world_to_camera.contiguous(), camera.intrinsics.contiguous(), radii, d_geometry.contiguous(),
            d_means, d_quats, d_scales, d_opacities, parts, count, images, camera.width, camera.height,
            SHARED=clouds != images, POSE=pose, BLOCK=BACKWARD_BLOCK, num_warps=BACKWARD_WARPS, **LAUNCH,
        )
    d_pose = None
    if pose:
        sums = parts.sum(dim=1)
        d_pose = torch.cat([sums[:, :9].reshape(images, 3, 3), sums[:, 9:, None]], dim=2)
    return d_means, d_quats, d_scales, d_opacities, d_pose


def tile_members(rows: Rows, lengths: Int[Tensor, "T"], ends: Int[Tensor, "T"], picture: Picture, room: int) -> Int[Tensor, "R"]:
    """Gaussians of every tile, one list behind the other, each by depth, then index. What does not fit into the room is left out.

    `ends`: int64, where the lists end. `lengths` is used up: it counts down to zero.
    """
    from lib.render.gaussian.binning_kernels import sort_long, sort_short, throw
    from lib.render.gaussian.projection_kernels import LAUNCH

    members = lengths.new_empty(room)
    if room:
        keys = ends.new_empty(room)
        count = len(rows.radii) // picture.images
        throw[(-(-count // PROJECT_BLOCK), picture.images)](
            rows.geometry, rows.radii, rows.depths, lengths, ends, keys, count, room, picture.width, picture.height,
            BLOCK=PROJECT_BLOCK, COLUMNS=COLUMNS, num_warps=PROJECT_WARPS, **picture.constants(), **LAUNCH,
        )
        sort_short[(picture.tiles,)](ends, keys, members, room, LIMIT=SORT_LIMIT, num_warps=SHORT_WARPS)
        sort_long[(picture.tiles,)](ends, keys, members, room, LIMIT=SORT_LIMIT, num_warps=LONG_WARPS)
    return members


def sum_pairs(
    rows: Rows, ends: Int[Tensor, "T"], stops: Int[Tensor, "T"], members: Int[Tensor, "R"], picture: Picture,
    pair_geometry: Float[Tensor, "L 8"], pair_features: Float[Tensor, "R C"],
) -> tuple[Float[Tensor, "M 8"], Float[Tensor, "M C"]]:
    """Per Gaussian, the sums of the rows of its pairs, always in the same order. `stops`: how many of each list have rows."""
    from lib.render.gaussian.binning_kernels import sum_rows
    from lib.render.gaussian.projection_kernels import LAUNCH

    channels, (room, count) = pair_features.shape[1], (len(members), len(rows.radii) // picture.images)
    d_geometry, d_features = torch.empty_like(rows.geometry), rows.geometry.new_empty(len(rows.radii), channels)
    block = min(max(16, 1 << max(channels - 1, 0).bit_length()), 64)
    if count:
        sum_rows[(-(-count // SUM_BLOCK), picture.images, max(-(-channels // block), 1))](
            rows.geometry, rows.radii, rows.depths, ends, stops, members, pair_geometry, pair_features, d_geometry, d_features,
            count, room, picture.width, picture.height, channels,
            BLOCK=SUM_BLOCK, CHANNELS=block, PARTS=len(pair_geometry) // max(room, 1), num_warps=SUM_WARPS, **picture.constants(), **LAUNCH,
        )
    return d_geometry, d_features
