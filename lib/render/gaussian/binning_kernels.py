"""Triton kernels that list the Gaussians of every tile, front to back, and sum rows of gradients in the order of tiles.

Imported by tiles.py only, inside functions. Pairs are thrown into their tile's part of one buffer, in any order, as keys of depth and
index; then every list is sorted by itself. So the order does not depend on who came first, there is no sort over all pairs, and
nothing waits for the host. Nothing is written outside of the buffers, whatever the rows hold.
"""

from typing import no_type_check

import triton
import triton.language as tl

from lib.render.gaussian.projection_kernels import load_row, row_span, tile_rows

LAST = tl.constexpr((1 << 63) - 1)  # a key behind all others
MANY = tl.constexpr(2048)  # longer lists are not sorted in registers
SLICE = tl.constexpr(1024)  # of a long list, compared at once with PART others
PART = tl.constexpr(32)


@triton.jit
@no_type_check
def tile_range(ends, tile, room):
    """Where a tile's list begins, and how long it is."""
    start = tl.minimum(tl.load(ends + tile - 1, mask=tile > 0, other=0), room).to(tl.int32)
    return start, tl.minimum(tl.load(ends + tile), room).to(tl.int32) - start


@triton.jit(do_not_specialize=["count", "room", "width", "height"])
@no_type_check
def throw(
    geometry, radii, depths, left, ends, keys, count, room, width, height,
    CLIP: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Writes the keys of BLOCK Gaussians of one image into the lists of all their tiles; `left` counts down how many each still expects."""
    image = tl.program_id(1)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < count
    gaussian = image * count + lane
    x, y, qa, qb, qc, lo, hx, hy = load_row(geometry, gaussian.to(tl.int64), exists)
    radius = tl.load(radii + gaussian, mask=exists, other=0).to(tl.float32) if CLIP else 0.0
    # Positive floats are ordered like their bits.
    depth = tl.load(depths + gaussian, mask=exists, other=0.0).to(tl.int32, bitcast=True).to(tl.int64)
    key = (depth << 32) | gaussian.to(tl.int64)
    tiles_x, tiles_y = (width + TILE_X - 1) // TILE_X, (height + TILE_Y - 1) // TILE_Y
    first_row, rows = tile_rows(y, hy, radius, height, CLIP, TILE_Y)
    most = tl.max(rows, 0)
    step = 0
    while step < most:
        first, length = row_span(x, y, qa, qb, qc, lo, hx, hy, radius, first_row + step, width, height, CLIP, TILE_X, TILE_Y)
        length = tl.where(step < rows, length, 0)
        tile = image * tiles_x * tiles_y + (first_row + step) * tiles_x + first
        most_columns = tl.max(length, 0)
        column = 0
        while column < most_columns:
            which = column + tl.arange(0, COLUMNS)[None, :]
            here = which < length[:, None]
            place = tl.load(ends + tile[:, None] + which, mask=here, other=0)
            place -= tl.atomic_add(left + tile[:, None] + which, which * 0 - 1, mask=here, sem="relaxed")
            tl.store(keys + place, key[:, None] + which.to(tl.int64) * 0, mask=here & (place >= 0) & (place < room))
            column += COLUMNS
        step += 1


@triton.jit
@no_type_check
def sort_into(keys, members, start, length, SIZE: tl.constexpr):
    """Sorts a list of at most SIZE keys, and keeps the indices."""
    place = tl.arange(0, SIZE)
    key = tl.sort(tl.load(keys + start + place, mask=place < length, other=LAST))
    tl.store(members + start + place, key.to(tl.int32), mask=place < length)


@triton.jit(do_not_specialize=["room"])
@no_type_check
def sort_short(ends, keys, members, room, LIMIT: tl.constexpr):
    """Sorts the list of one tile if it is not longer than LIMIT."""
    start, length = tile_range(ends, tl.program_id(0), room)
    if (length > 0) & (length <= LIMIT):
        if length <= 64:
            sort_into(keys, members, start, length, 64)
        elif length <= 128:
            sort_into(keys, members, start, length, 128)
        elif length <= 256:
            sort_into(keys, members, start, length, 256)
        else:
            sort_into(keys, members, start, length, LIMIT)


@triton.jit(do_not_specialize=["room"])
@no_type_check
def sort_long(ends, keys, members, room, LIMIT: tl.constexpr):
    """Sorts the list of one tile if it is longer than LIMIT; very long ones by counting for each key how many are less."""
    start, length = tile_range(ends, tl.program_id(0), room)
    if length > LIMIT:
        if length <= 1024:
            sort_into(keys, members, start, length, 1024)
        elif length <= MANY:
            sort_into(keys, members, start, length, MANY)
        else:
            first = 0
            while first < length:
                place = first + tl.arange(0, SLICE)
                key = tl.load(keys + start + place, mask=place < length, other=LAST)
                rank = place * 0
                other = 0
                while other < length:
                    others = other + tl.arange(0, PART)
                    against = tl.load(keys + start + others, mask=others < length, other=LAST)
                    rank += tl.sum((against[None, :] < key[:, None]).to(tl.int32), 1)
                    other += PART
                tl.store(members + start + rank, key.to(tl.int32), mask=place < length)
                first += SLICE


@triton.jit(do_not_specialize=["count", "room", "width", "height", "channels"])
@no_type_check
def sum_rows(
    geometry, radii, depths, ends, stops, members, pair_geometry, pair_features, d_geometry, d_features,
    count, room, width, height, channels,
    CLIP: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr,
):
    """Sums the rows of the pairs of BLOCK Gaussians, of CHANNELS features and in the first program also of geometry, tile by tile.

    A pair is found again in its tile's list, which is ordered by depth and index; behind the stop of its tile it has no row.
    """
    image = tl.program_id(1)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < count
    gaussian = image * count + lane
    x, y, qa, qb, qc, lo, hx, hy = load_row(geometry, gaussian.to(tl.int64), exists)
    radius = tl.load(radii + gaussian, mask=exists, other=0).to(tl.float32) if CLIP else 0.0
    depth = tl.load(depths + gaussian, mask=exists, other=0.0)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    value = tl.arange(0, 8)
    moments = tl.zeros([BLOCK, 8], tl.float32)
    features = tl.zeros([BLOCK, CHANNELS], tl.float32)
    tiles_x, tiles_y = (width + TILE_X - 1) // TILE_X, (height + TILE_Y - 1) // TILE_Y
    first_row, rows = tile_rows(y, hy, radius, height, CLIP, TILE_Y)
    most = tl.max(rows, 0)
    step = 0
    while step < most:
        first, length = row_span(x, y, qa, qb, qc, lo, hx, hy, radius, first_row + step, width, height, CLIP, TILE_X, TILE_Y)
        length = tl.where(step < rows, length, 0)
        most_columns = tl.max(length, 0)
        column = 0
        while column < most_columns:
            here = column < length
            tile = tl.where(here, image * tiles_x * tiles_y + (first_row + step) * tiles_x + first + column, 0)
            start = tl.minimum(tl.load(ends + tile - 1, mask=here & (tile > 0), other=0), room).to(tl.int32)
            low = start
            high = start + tl.load(stops + tile, mask=here, other=0)
            end = high
            while tl.max((low < high).to(tl.int32), 0) > 0:
                middle = low + (high - low) // 2
                open_ = low < high
                member = tl.load(members + middle, mask=open_, other=0)
                far = tl.load(depths + member, mask=open_, other=0.0)
                before = (far < depth) | ((far == depth) & (member < gaussian))
                low, high = tl.where(open_ & before, middle + 1, low), tl.where(open_ & ~before, middle, high)
            here = here & (low < end)
            here = here & (tl.load(members + low, mask=here, other=-1) == gaussian)
            place = low.to(tl.int64)
            mask = here[:, None] & (channel < channels)[None, :]
            features += tl.load(pair_features + place[:, None] * channels + channel[None, :], mask=mask, other=0.0)
            if tl.program_id(2) == 0:
                part = 0
                while part < PARTS:
                    row = pair_geometry + (place[:, None] + part * room.to(tl.int64)) * 8
                    moments += tl.load(row + value[None, :], mask=here[:, None], other=0.0)
                    part += 1
            column += 1
        step += 1
    target = gaussian.to(tl.int64)[:, None]
    tl.store(d_features + target * channels + channel[None, :], features, mask=exists[:, None] & (channel < channels)[None, :])
    if tl.program_id(2) == 0:
        tl.store(d_geometry + target * 8 + value[None, :], moments, mask=exists[:, None])
