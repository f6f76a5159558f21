"""Triton kernels that list the (tile, Gaussian) pairs. Imported by tiles.py only, inside functions.

Balanced over the pairs, not over the Gaussians: every program writes as many, whatever the sizes of the Gaussians. Nothing is written
outside of the picture or of the buffers, whatever the rows and counts hold.
"""

from typing import no_type_check

import triton
import triton.language as tl

from lib.render.gaussian.projection_kernels import load_row, row_span, tile_rows

SHORT_OFFSET = tl.constexpr(1 << 15)  # tile 0 has the least short key
LAST_SHORT, LAST_LONG = tl.constexpr((1 << 15) - 1), tl.constexpr((1 << 31) - 1)  # keys of no tile, sorted behind all others


@triton.jit(do_not_specialize=["gaussians", "per_image", "pairs", "steps", "width", "height"])
@no_type_check
def emit(
    geometry, radii, order, ends, keys, members, gaussians, per_image, pairs, steps, width, height,
    SHORT: tl.constexpr, CLIP: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, BLOCK: tl.constexpr,
):
    """Key of the tile and Gaussian of BLOCK pairs, ordered by depth, then row by row; `ends`: of each Gaussian's pairs in that order.

    `steps` halvings must be enough for `gaussians`. Room behind the last pair gets the key of no tile.
    """
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = slot < pairs
    # The first Gaussian that ends behind the slot.
    low = slot * 0
    high = low + gaussians
    step = 0
    while step < steps:
        middle = low + (high - low) // 2
        open_ = low < high
        before = tl.load(ends + middle, mask=open_ & exists, other=0) <= slot
        low, high = tl.where(open_ & before, middle + 1, low), tl.where(open_ & ~before, middle, high)
        step += 1
    searching = exists & (low < gaussians)
    left = slot - tl.load(ends + low - 1, mask=searching & (low > 0), other=0)
    gaussian = tl.load(order + low, mask=searching, other=0).to(tl.int32)

    x, y, qa, qb, qc, lo, hx, hy = load_row(geometry, gaussian.to(tl.int64), searching)
    radius = tl.load(radii + gaussian, mask=searching, other=0).to(tl.float32) if CLIP else 0.0
    row, rows = tile_rows(y, hy, radius, height, CLIP, TILE_Y)
    tiles_x, tiles_y = (width + TILE_X - 1) // TILE_X, (height + TILE_Y - 1) // TILE_Y
    end = row + rows
    tile = slot * 0 - 1
    searching = searching & (row < end)
    while tl.max(searching.to(tl.int32), 0) > 0:
        first, length = row_span(x, y, qa, qb, qc, lo, hx, hy, radius, row, width, height, CLIP, TILE_X, TILE_Y)
        here = searching & (left < length)
        tile = tl.where(here, row * tiles_x + first + left, tile)
        left -= length
        row += 1
        searching = searching & ~here & (row < end)

    found = tile >= 0
    key = gaussian // per_image * (tiles_x * tiles_y) + tile
    if SHORT:
        tl.store(keys + slot, tl.where(found, key - SHORT_OFFSET, LAST_SHORT).to(tl.int16), mask=exists)
    else:
        tl.store(keys + slot, tl.where(found, key, LAST_LONG), mask=exists)
    tl.store(members + slot, gaussian, mask=exists)


@triton.jit
@no_type_check
def load_tiles(keys, place, mask, tiles, SHORT: tl.constexpr):
    """Tiles of keys; `tiles`, which is none, where there is no key or that of no tile."""
    if SHORT:
        tile = tl.load(keys + place, mask=mask, other=LAST_SHORT).to(tl.int32) + SHORT_OFFSET
    else:
        tile = tl.load(keys + place, mask=mask, other=LAST_LONG)
    return tl.where((tile >= 0) & (tile < tiles), tile, tiles)


@triton.jit(do_not_specialize=["pairs", "tiles"])
@no_type_check
def gather_ranges(keys, slots, gaussians, members, ranges, pairs, tiles, SHORT: tl.constexpr, BLOCK: tl.constexpr):
    """Members in the order of sorted keys, and where each tile's begin and end; tiles without any keep what `ranges` holds."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = place < pairs
    slot = tl.load(slots + place, mask=exists, other=0)
    tl.store(members + place, tl.load(gaussians + slot, mask=exists, other=0), mask=exists)
    own = load_tiles(keys, place, exists, tiles, SHORT)
    before = load_tiles(keys, place - 1, exists & (place > 0), tiles, SHORT)
    turn = exists & (own != before)
    tl.store(ranges + own.to(tl.int64) * 2, place, mask=turn & (own < tiles))
    tl.store(ranges + before.to(tl.int64) * 2 + 1, place, mask=turn & (before < tiles))
    tl.store(ranges + own.to(tl.int64) * 2 + 1, place + 1, mask=(place == pairs - 1) & (own < tiles))
