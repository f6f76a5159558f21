"""Gaussians on the image plane and the lists of Gaussians of every tile, by kernels: what `projection` defines, in few launches.

Runs on CUDA, and on the CPU under Triton's interpreter.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.render.gaussian.launch import Launch, Parts
from lib.render.gaussian.projection import CLIP_BLOCK

PROJECT_BLOCK, PROJECT_WARPS, COLUMNS = 32, 1, 4  # one warp: a loop ends with the last of its Gaussians; blocks of tiles taken at once
BACKWARD_BLOCK, BACKWARD_WARPS = 128, 4
SCAN_BLOCK, SCAN_WARPS = 4096, 8
RUN, SORT_WARPS, SORT_PROGRAMS = 256, 1, 4  # keys sorted in registers; programs of a list
MERGE_BLOCK, MERGE_WARPS, MERGE_PROGRAMS = 256, 4, 4
TAKE_BLOCK, TAKE_WARPS = 256, 1
SUM_BLOCK, SUM_WARPS = 16, 1
BLOCK_MAX = 64  # channels of one program; more take several, which blend the same alphas


def channel_block(channels: int) -> int:
    """Channels of one program: a power of two, and at least 16, as matrix products want."""
    return min(max(1 << max(channels - 1, 0).bit_length(), 16), BLOCK_MAX)


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
class Lists:
    """Gaussians of the tiles by depth, then index: `members`, and where the list of each tile begins and how long it is, in any order."""

    members: Int[Tensor, "R"]
    ranges: Int[Tensor, "T 2"]


@dataclass(frozen=True)
class Scratch:
    """What is used on the way to the lists.

    counts, int64, as exploded scales can give any number: the number of pairs of tiles and Gaussians; how many of them are listed; the
    lengths of the lists of blocks of tiles; where these end, one behind the other. keys, words: these lists, never more than pairs.
    """

    counts: Int[Tensor, "C"]
    keys: Int[Tensor, "K"]
    words: Int[Tensor, "K"]


@dataclass(frozen=True)
class Scene:
    """The sizes of a drawing: `clouds` of `count` Gaussians, one for all images or one each, in tiles of (width, height) pixels.

    Its methods only start kernels that write into what they are given, so that they can be recorded; `..._parts` say what to allocate.
    Inputs of the projection, in this order and aligned: means, quats_wxyz, scales, opacities, world_to_camera, intrinsics.
    """

    clouds: int
    count: int
    images: int
    width: int
    height: int
    clip: bool
    tile: tuple[int, int]

    @functools.cached_property
    def tiles_x(self) -> int:
        """Columns of tiles."""
        return -(-self.width // self.tile[0])

    @functools.cached_property
    def tiles_per_image(self) -> int:
        """Columns by rows."""
        return self.tiles_x * -(-self.height // self.tile[1])

    @functools.cached_property
    def tiles(self) -> int:
        """Of all images."""
        return self.images * self.tiles_per_image

    @functools.cached_property
    def blocks_x(self) -> int:
        """Columns of blocks of tiles: squares of CLIP_BLOCK pixels, in which Gaussians are sorted."""
        return -(-self.width // CLIP_BLOCK)

    @functools.cached_property
    def blocks_per_image(self) -> int:
        """Columns by rows."""
        return self.blocks_x * -(-self.height // CLIP_BLOCK)

    @functools.cached_property
    def blocks(self) -> int:
        """Of all images."""
        return self.images * self.blocks_per_image

    @functools.cached_property
    def _tiled(self) -> dict[str, int | bool]:
        return {"CLIP": self.clip, "TILE_X": self.tile[0], "TILE_Y": self.tile[1]}

    @functools.cached_property
    def _grid(self) -> tuple[int, int]:
        return -(-self.count // PROJECT_BLOCK), self.images

    @functools.cached_property
    def programs(self) -> int:
        """Of the backward projection, of every image."""
        return -(-self.count // BACKWARD_BLOCK)

    @functools.cached_property
    def _project(self) -> Launch:
        from lib.render.gaussian.projection_kernels import EXACTLY, project_forward

        shared = self.clouds != self.images
        return Launch(project_forward, PROJECT_WARPS, EXACTLY, SHARED=shared, BLOCK=PROJECT_BLOCK, COLUMNS=COLUMNS, **self._tiled)

    @functools.cached_property
    def _project_backward(self) -> dict[bool, Launch]:
        from lib.render.gaussian.projection_kernels import EXACTLY, project_backward

        shared = self.clouds != self.images
        return {pose: Launch(project_backward, BACKWARD_WARPS, EXACTLY, SHARED=shared, POSE=pose, BLOCK=BACKWARD_BLOCK) for pose in (False, True)}

    @functools.cached_property
    def _scan(self) -> Launch:
        from lib.render.gaussian.binning_kernels import scan

        return Launch(scan, SCAN_WARPS, BLOCK=SCAN_BLOCK)

    @functools.cached_property
    def _list(self) -> tuple[Launch, Launch, Launch, Launch]:
        from lib.render.gaussian.binning_kernels import merge_runs, sort_lists, take, throw
        from lib.render.gaussian.projection_kernels import EXACTLY

        return (
            Launch(throw, PROJECT_WARPS, EXACTLY, BLOCK=PROJECT_BLOCK, COLUMNS=COLUMNS, **self._tiled), Launch(sort_lists, SORT_WARPS, RUN=RUN),
            Launch(merge_runs, MERGE_WARPS, RUN=RUN, STEPS=RUN.bit_length(), BLOCK=MERGE_BLOCK),
            Launch(take, TAKE_WARPS, TILE_X=self.tile[0], TILE_Y=self.tile[1], BLOCK=TAKE_BLOCK),
        )

    @functools.cached_property
    def _sums(self) -> dict[tuple[int, int], Launch]:
        return {}

    def _sum(self, block: int, parts: int) -> Launch:
        from lib.render.gaussian.binning_kernels import sum_rows
        from lib.render.gaussian.projection_kernels import EXACTLY

        if (block, parts) not in self._sums:
            self._sums[block, parts] = Launch(sum_rows, SUM_WARPS, EXACTLY, BLOCK=SUM_BLOCK, CHANNELS=block, PARTS=parts, **self._tiled)
        return self._sums[block, parts]

    def row_parts(self) -> Parts:
        """Of Rows, without the radii."""
        rows = self.images * self.count
        return {"geometry": ((rows, 8), torch.float32), "depths": ((rows,), torch.float32)}

    def list_parts(self, room: int) -> Parts:
        """Of Lists of so many pairs."""
        return {"members": ((room,), torch.int32), "ranges": ((self.tiles, 2), torch.int32)}

    def scratch_parts(self, key_room: int) -> Parts:
        """Of Scratch for so many keys."""
        return {"counts": ((2 + 2 * self.blocks,), torch.int64), "keys": ((key_room,), torch.int64), "words": ((key_room,), torch.int32)}

    def project(self, inputs: tuple[Tensor, ...], rows: Rows, scratch: Scratch, copy: Int[Tensor, "2"]) -> None:
        """Writes the rows and counts.

        The number of pairs, and of Gaussians in the lists of blocks (keys), are also written to `copy`, which may be pinned memory.
        """
        scratch.counts.zero_()
        if self.images * self.count:
            tensors = (*inputs, rows.geometry, rows.depths, rows.radii, scratch.counts)
            self._project(self._grid, tensors, (self.count, self.width, self.height))
        self._scan((1,), (scratch.counts, copy), (self.blocks,))

    def fill_lists(self, rows: Rows, scratch: Scratch, lists: Lists) -> None:
        """Lists the Gaussians of the tiles. What does not fit into the room is left out. Lengths in the counts are used up."""
        (counts, keys, words), room, key_room = vars(scratch).values(), lists.members.shape[0], scratch.keys.shape[0]
        if not room or not key_room:
            lists.ranges.zero_()
            return
        throw, sort_lists, merge_runs, take = self._list
        throw(self._grid, (rows.geometry, rows.radii, rows.depths, counts, keys), (self.count, key_room, self.width, self.height))
        sort_lists((self.blocks, SORT_PROGRAMS), (counts, keys, words), (key_room,))
        merge_runs((self.blocks, MERGE_PROGRAMS), (counts, keys, words), (key_room,))
        sizes = (room, key_room, self.tiles_x, self.tiles_per_image, self.blocks_x, self.blocks_per_image, self.blocks)
        take((self.tiles,), (counts, words, lists.members, lists.ranges), sizes)

    def listed(self, inputs: tuple[Tensor, ...], room: int = 0, key_room: int = 0) -> tuple[Rows, Lists, Int[Tensor, "2"]]:
        """Rows, lists as far as there is room, and the numbers of pairs and of keys: a drawing up to where blending begins."""
        radii = {"radii": ((self.images * self.count,), torch.int32)}
        rows, lists, scratch = (
            kind(**{name: inputs[0].new_empty(shape, dtype=dtype) for name, (shape, dtype) in parts.items()}) for kind, parts in (
                (Rows, self.row_parts() | radii), (Lists, self.list_parts(room)), (Scratch, self.scratch_parts(key_room))))
        total = torch.empty_like(scratch.counts[:2])
        self.project(inputs, rows, scratch, total)
        self.fill_lists(rows, scratch, lists)
        return rows, lists, total

    def sum_pairs(
        self, rows: Rows, lists: Lists, stops: Int[Tensor, "T"],
        pairs: tuple[Float[Tensor, "L 8"], Float[Tensor, "R C"]], sums: tuple[Float[Tensor, "M 8"], Float[Tensor, "M C"]],
    ) -> None:
        """Per Gaussian, sums of the rows of its pairs, of geometry and features, always in the same order. `stops`: how many of each list
        have rows."""
        room, channels = pairs[1].shape
        for values in sums:
            values.zero_()
        block = channel_block(channels)
        if self.count and room:
            self._sum(block, pairs[0].shape[0] // room)(
                (-(-self.count // SUM_BLOCK), self.images, max(-(-channels // block), 1)),
                (rows.geometry, rows.radii, rows.depths, lists.ranges, stops, lists.members, *pairs, *sums),
                (self.count, room, self.width, self.height, channels),
            )

    def project_backward(
        self, inputs: tuple[Tensor, ...], radii: Int[Tensor, "M"], d_geometry: Float[Tensor, "M 8"], gradients: tuple[Tensor, ...]
    ) -> None:
        """Writes gradients of means, quats_wxyz, scales, opacities, and if there is a fifth, (I, programs, 12), the parts of that of
        world_to_camera; always in the same order of summation.

        d_geometry: rows [m0, sx, sy, sxx, sxy, syy, -, -], sums over pixels of dL/dpower times 1, dx, dy, dx², dx dy, dy², where power
        is the natural logarithm of alpha before clamping and (dx, dy) = mean - pixel. Rows of culled Gaussians are not read.
        """
        pose = len(gradients) > 4
        if self.images * self.count:
            tensors = (*inputs, radii, d_geometry, *gradients, *(() if pose else (d_geometry,)))
            self._project_backward[pose]((self.programs, self.clouds), tensors, (self.count, self.images, self.width, self.height))

    def pose_gradient(self, parts: Float[Tensor, "I P 12"]) -> Float[Tensor, "I 3 4"]:
        """The gradient of world_to_camera."""
        sums = parts.sum(dim=1)
        return torch.cat([sums[:, :9].reshape(self.images, 3, 3), sums[:, 9:, None]], dim=2)


scene_of = functools.lru_cache(maxsize=256)(Scene)  # the same sizes share their launches
