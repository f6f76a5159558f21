"""Triton kernels that list the Gaussians of every tile, front to back, and sum rows of gradients in the order of tiles.

Imported by tiles.py only, inside functions. Gaussians are thrown into the lists of blocks of tiles, in any order, as keys of depth,
index, and a bit for every tile of the block that they reach; every list is sorted by itself, and each tile takes its own out of its
block's. So the order does not depend on who came first, there is no sort over all pairs, and nothing waits for the host. Nothing is
written outside of the buffers, whatever the rows hold.
"""

from typing import no_type_check

import triton
import triton.language as tl

from lib.render.gaussian.projection_kernels import BLOCK_SIDE, LENGTHS, block_columns, load_row, row_span, tile_rows, tiles_of_blocks

LAST = tl.constexpr((1 << 63) - 1)  # a key behind all others


@triton.jit
@no_type_check
def list_range(counts, block, blocks, room):
    """Where the list of a block begins, and how long it is. Ends stand behind the lengths, which are counted down to zero by now."""
    ends = counts + LENGTHS + blocks
    start = tl.minimum(tl.load(ends + block - 1, mask=block > 0, other=0), room).to(tl.int32)
    return start, tl.minimum(tl.load(ends + block), room).to(tl.int32) - start


@triton.jit(do_not_specialize=["blocks"])
@no_type_check
def scan(counts, copy, blocks, BLOCK: tl.constexpr):
    """Sums of the lengths up to every block of tiles, by one program: there are few. Copies the numbers of pairs and of keys."""
    before = tl.load(counts) * 0
    lengths = counts + LENGTHS
    first = 0
    while first < blocks:
        place = first + tl.arange(0, BLOCK)
        length = tl.load(lengths + place, mask=place < blocks, other=0)
        tl.store(lengths + blocks + place, before + tl.cumsum(length, 0), mask=place < blocks)
        before += tl.sum(length, 0)
        first += BLOCK
    # Through to the memory of the host, if it is there.
    tl.store(copy + 1, before, cache_modifier=".wt")
    tl.store(copy, tl.load(counts), cache_modifier=".wt")


@triton.jit(do_not_specialize=["count", "room", "width", "height"])
@no_type_check
def throw(
    geometry, radii, depths, counts, keys, count, room, width, height,
    CLIP: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Writes the keys of BLOCK Gaussians of one image into the lists of blocks, whose lengths count down what they still expect."""
    image = tl.program_id(1)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < count
    gaussian = image * count + lane
    x, y, qa, qb, qc, lo, hx, hy = load_row(geometry, gaussian.to(tl.int64), exists)
    radius = tl.load(radii + gaussian, mask=exists, other=0).to(tl.float32) if CLIP else 0.0
    # Positive floats are ordered like their bits.
    depth = tl.load(depths + gaussian, mask=exists, other=0.0).to(tl.int32, bitcast=True).to(tl.int64)
    key = (depth << 32) | (gaussian.to(tl.int64) << 8)
    blocks_x, blocks_y = (width + BLOCK_SIDE - 1) // BLOCK_SIDE, (height + BLOCK_SIDE - 1) // BLOCK_SIDE
    lengths = counts + LENGTHS
    ends = lengths + tl.num_programs(1) * blocks_x * blocks_y
    first_row, rows = tile_rows(y, hy, radius, height, CLIP, BLOCK_SIDE)
    first_column, columns = block_columns(x, hx, width)
    most_rows = tl.max(rows, 0)
    most_columns = tl.max(tl.where(rows > 0, columns, 0), 0)
    step = 0
    while step < most_rows:
        block = image * blocks_x * blocks_y + (first_row + step) * blocks_x + first_column
        column = 0
        while column < most_columns:
            which = column + tl.arange(0, COLUMNS)[None, :]
            bits = tiles_of_blocks(
                x, y, qa, qb, qc, lo, hx, hy, radius, first_row + step, first_column[:, None] + which, width, height, CLIP, TILE_X, TILE_Y)
            here = (step < rows)[:, None] & (which < columns[:, None]) & (bits != 0)
            place = tl.load(ends + block[:, None] + which, mask=here, other=0)
            place -= tl.atomic_add(lengths + block[:, None] + which, which.to(tl.int64) * 0 - 1, mask=here, sem="relaxed")
            tl.store(keys + place, key[:, None] | bits.to(tl.int64), mask=here & (place >= 0) & (place < room))
            column += COLUMNS
        step += 1


@triton.jit
@no_type_check
def sort_into(keys, words, start, length, SIZE: tl.constexpr):
    """Sorts a list of at most SIZE keys, and keeps what is below the depth."""
    place = tl.arange(0, SIZE)
    key = tl.sort(tl.load(keys + start + place, mask=place < length, other=LAST))
    tl.store(words + start + place, key.to(tl.int32), mask=place < length)


@triton.jit(do_not_specialize=["room"])
@no_type_check
def sort_lists(counts, keys, words, room, RUN: tl.constexpr):
    """Sorts the list of one block; of one longer than RUN every run of RUN keys, in place, by all the programs of the block."""
    start, length = list_range(counts, tl.program_id(0), tl.num_programs(0), room)
    first = tl.program_id(1) * RUN
    if first < length:
        if length <= RUN:
            if length <= RUN // 4:
                sort_into(keys, words, start, length, RUN // 4)
            elif length <= RUN // 2:
                sort_into(keys, words, start, length, RUN // 2)
            else:
                sort_into(keys, words, start, length, RUN)
        else:
            while first < length:
                place = first + tl.arange(0, RUN)
                key = tl.sort(tl.load(keys + start + place, mask=place < length, other=LAST))
                tl.store(keys + start + place, key, mask=place < length)
                first += RUN * tl.num_programs(1)


@triton.jit(do_not_specialize=["room"])
@no_type_check
def merge_runs(counts, keys, words, room, RUN: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Puts the sorted runs of a list longer than RUN together: the place of a key is how many of all runs are less.

    STEPS halvings must be enough for RUN. Keys are all different.
    """
    start, length = list_range(counts, tl.program_id(0), tl.num_programs(0), room)
    first = tl.program_id(1) * BLOCK
    if length > RUN:
        while first < length:
            place = first + tl.arange(0, BLOCK)
            exists = place < length
            key = tl.load(keys + start + place, mask=exists, other=LAST)
            rank = place * 0
            run = 0
            while run < length:
                low = rank * 0 + run
                high = tl.minimum(low + RUN, length)
                step = 0
                while step < STEPS:
                    middle = low + (high - low) // 2
                    open_ = (low < high) & exists
                    less = tl.load(keys + start + middle, mask=open_, other=LAST) < key
                    low, high = tl.where(open_ & less, middle + 1, low), tl.where(open_ & ~less, middle, high)
                    step += 1
                rank += low - run
                run += RUN
            tl.store(words + start + rank, key.to(tl.int32), mask=exists)
            first += BLOCK * tl.num_programs(1)


@triton.jit(do_not_specialize=["room", "key_room", "tiles_x", "tiles_per_image", "blocks_x", "blocks_per_image", "blocks"])
@no_type_check
def take(
    counts, words, members, ranges, room, key_room, tiles_x, tiles_per_image, blocks_x, blocks_per_image, blocks,
    TILE_X: tl.constexpr, TILE_Y: tl.constexpr, BLOCK: tl.constexpr,
):
    """The list of one tile: those of its block's that have its bit, in any order of tiles; from where, and how many."""
    tile = tl.program_id(0)
    image = tile // tiles_per_image
    column, row = tile % tiles_per_image % tiles_x, tile % tiles_per_image // tiles_x
    block = image * blocks_per_image + row // (BLOCK_SIDE // TILE_Y) * blocks_x + column // (BLOCK_SIDE // TILE_X)
    bit = row % (BLOCK_SIDE // TILE_Y) * (BLOCK_SIDE // TILE_X) + column % (BLOCK_SIDE // TILE_X)
    start, length = list_range(counts, block, blocks, key_room)
    place = tl.arange(0, BLOCK)
    count = 0
    first = 0
    while first < length:
        word = tl.load(words + start + first + place, mask=first + place < length, other=0)
        count += tl.sum((word >> bit) & 1, 0)
        first += BLOCK
    begin = tl.minimum(tl.atomic_add(counts + 1, count.to(tl.int64), sem="relaxed"), room).to(tl.int32)
    count = tl.minimum(count, room - begin)
    tl.store(ranges + 2 * tile, begin)
    tl.store(ranges + 2 * tile + 1, count)
    target = begin
    end = begin + count
    first = 0
    while first < length:
        word = tl.load(words + start + first + place, mask=first + place < length, other=0)
        mine = (word >> bit) & 1
        slot = target + tl.cumsum(mine, 0) - 1
        tl.store(members + slot, (word >> 8) & 0xFFFFFF, mask=(mine > 0) & (slot < end))
        target += tl.sum(mine, 0)
        first += BLOCK


@triton.jit(do_not_specialize=["count", "room", "width", "height", "channels"])
@no_type_check
def sum_rows(
    geometry, radii, depths, ranges, stops, members, pair_geometry, pair_features, d_geometry, d_features,
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
            start = tl.load(ranges + 2 * tile, mask=here, other=0)
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
                    moments += tl.load(row + value[None, :], mask=here[:, None] & (value < 6)[None, :], other=0.0)
                    part += 1
            column += 1
        step += 1
    target = gaussian.to(tl.int64)[:, None]
    tl.store(d_features + target * channels + channel[None, :], features, mask=exists[:, None] & (channel < channels)[None, :])
    if tl.program_id(2) == 0:
        tl.store(d_geometry + target * 8 + value[None, :], moments, mask=exists[:, None])
