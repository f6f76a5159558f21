"""Triton kernels that blend Gaussians in square tiles, and the gradients. Imported by triton.py only, inside functions.

One program blends one tile in one block of channels: chunks of Gaussians front to back, (Gaussians x pixels) at a time. The
backward pass walks the chunks back to front from the transmittances that the forward pass stored at every chunk's start, with
one number carried per pixel, as all channels enter the gradient of an alpha through features . gradient only. Its results go to one
row per (tile, Gaussian) pair: no atomics, so the same inputs give the same bits.
"""

from typing import no_type_check

import triton
import triton.language as tl

from lib.render.gaussian.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

MAX_ALPHA, MIN_ALPHA = tl.constexpr(ALPHA_MAX), tl.constexpr(ALPHA_MIN)
MIN_TRANSMITTANCE = tl.constexpr(TRANSMITTANCE_MIN)
NOTHING = tl.constexpr(-1e4)  # a log opacity that gives alpha 0

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def tile_pixels(tile, tiles_x, tiles_per_image, width, height, SIDE: tl.constexpr):
    """Image, column and row of the pixels of a tile, and which of them exist."""
    image = (tile // tiles_per_image).to(tl.int64)  # so that no place in an image of the batch overflows
    within = tile % tiles_per_image
    pixel = tl.arange(0, SIDE * SIDE)
    column = within % tiles_x * SIDE + pixel % SIDE
    row = within // tiles_x * SIDE + pixel // SIDE
    return image, column, row, (column < width) & (row < height)


@triton.jit
@no_type_check
def load_alphas(geometry, gaussian, valid, column, row):
    """Offsets from the means, conics and unclamped alphas: (Gaussians x pixels) from rows [x, y, a, b, c, log opacity, -, -]."""
    rows = geometry + gaussian * 8
    x = tl.load(rows, mask=valid, other=0.0)
    y = tl.load(rows + 1, mask=valid, other=0.0)
    a = tl.load(rows + 2, mask=valid, other=0.0)
    b = tl.load(rows + 3, mask=valid, other=0.0)
    c = tl.load(rows + 4, mask=valid, other=0.0)
    log_opacity = tl.load(rows + 5, mask=valid, other=NOTHING)
    dx = (column.to(tl.float32) + 0.5)[None, :] - x[:, None]
    dy = (row.to(tl.float32) + 0.5)[None, :] - y[:, None]
    power = log_opacity[:, None] - dx * (0.5 * a[:, None] * dx + b[:, None] * dy) - 0.5 * c[:, None] * dy * dy
    return dx, dy, a, b, c, tl.exp(power)


@triton.jit
@no_type_check
def cut(raw):
    """Alphas as they are blended."""
    return tl.where(raw >= MIN_ALPHA, tl.minimum(raw, MAX_ALPHA), 0.0)


@triton.jit
@no_type_check
def blend_forward(
    starts, chunk_starts, gaussians, geometry, features, image, alpha_image, checkpoints, stops,
    tiles_x, tiles_per_image, width, height, channels,
    SIDE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
):
    """Blended features and alpha; with SAVE also the transmittance at the start of every chunk and how many Gaussians were seen."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    picture, column, row, inside = tile_pixels(tile, tiles_x, tiles_per_image, width, height, SIDE)
    pixel = tl.arange(0, SIDE * SIDE)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(starts + tile)
    count = tl.load(starts + tile + 1) - start
    checkpoint = checkpoints + tl.load(chunk_starts + tile).to(tl.int64) * (SIDE * SIDE)

    transmittance = tl.where(inside, 1.0, 0.0)  # 0: the pixel has stopped
    left = tl.full([SIDE * SIDE], 1.0, tl.float32)
    blended = tl.zeros([BLOCK, SIDE * SIDE], tl.float32)
    seen = 0
    active = 1
    while (seen < count) & (active > 0):
        if SAVE:  # every block of channels writes the same numbers
            tl.store(checkpoint + (seen // CHUNK) * (SIDE * SIDE) + pixel, transmittance)
        member = seen + tl.arange(0, CHUNK)
        valid = member < count
        gaussian = tl.load(gaussians + start + member, mask=valid, other=0).to(tl.int64)
        _, _, _, _, _, raw = load_alphas(geometry, gaussian, valid, column, row)
        alpha = cut(raw)
        after = tl.cumprod(1.0 - alpha, 0) * transmittance[None, :]
        # A Gaussian that would bring the pixel below the minimum is not blended; `after` only falls, so none behind it is.
        blend = after >= MIN_TRANSMITTANCE
        weight = tl.where(blend, alpha * (after / (1.0 - alpha)), 0.0)
        mask = (channel < channels)[:, None] & valid[None, :]
        feature = tl.load(features + gaussian[None, :] * channels + channel[:, None], mask=mask, other=0.0)
        blended += tl.dot(feature, weight, input_precision=PRECISION)
        left = tl.minimum(left, tl.min(tl.where(blend, after, 1.0), 0))
        last = tl.min(after, 0)
        transmittance = tl.where(last >= MIN_TRANSMITTANCE, last, 0.0)
        active = tl.max((transmittance > 0.0).to(tl.int32), 0)
        seen += CHUNK

    if SAVE:
        tl.store(stops + tile, tl.minimum(seen, count))
    place = row * width + column
    target = image + (picture * channels + channel)[:, None] * height * width + place[None, :]
    tl.store(target, blended, mask=(channel < channels)[:, None] & inside[None, :])
    if block == 0:
        tl.store(alpha_image + picture * height * width + place, 1.0 - left, mask=inside)


@triton.jit(do_not_specialize=["pairs"])  # it differs at every call
@no_type_check
def blend_backward(
    starts, chunk_starts, stops, gaussians, slots, geometry, features, checkpoints, d_image, d_alpha_image, d_geometry, d_features,
    pairs, tiles_x, tiles_per_image, width, height, channels,
    SIDE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):
    """Gradients of geometry, a row of 8 per channel block and pair, and of features, a row per pair; pair i has row slots[i]."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    picture, column, row, inside = tile_pixels(tile, tiles_x, tiles_per_image, width, height, SIDE)
    pixel = tl.arange(0, SIDE * SIDE)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(starts + tile)
    count = tl.load(stops + tile)
    checkpoint = checkpoints + tl.load(chunk_starts + tile).to(tl.int64) * (SIDE * SIDE)

    place = row * width + column
    source = d_image + (picture * channels + channel)[:, None] * height * width + place[None, :]
    d_pixel = tl.load(source, mask=(channel < channels)[:, None] & inside[None, :], other=0.0)
    # Alpha is one more channel, of feature 1, that belongs to the first block.
    d_alpha_pixel = tl.load(d_alpha_image + picture * height * width + place, mask=inside & (block == 0), other=0.0)

    carried = tl.zeros([SIDE * SIDE], tl.float32)  # sum of weight * (feature . d_pixel) of everything behind
    first = (count + CHUNK - 1) // CHUNK * CHUNK
    while first > 0:
        first -= CHUNK
        member = first + tl.arange(0, CHUNK)
        valid = member < count
        gaussian = tl.load(gaussians + start + member, mask=valid, other=0).to(tl.int64)
        transmittance = tl.load(checkpoint + (first // CHUNK) * (SIDE * SIDE) + pixel)
        dx, dy, a, b, c, raw = load_alphas(geometry, gaussian, valid, column, row)
        alpha = cut(raw)
        inverse = 1.0 / (1.0 - alpha)
        after = tl.cumprod(1.0 - alpha, 0) * transmittance[None, :]
        before = after * inverse
        blend = after >= MIN_TRANSMITTANCE
        weight = tl.where(blend, alpha * before, 0.0)

        mask = valid[:, None] & (channel < channels)[None, :]
        feature = tl.load(features + gaussian[:, None] * channels + channel[None, :], mask=mask, other=0.0)
        along = tl.dot(feature, d_pixel, input_precision=PRECISION) + d_alpha_pixel[None, :]
        slot = tl.load(slots + start + member, mask=valid, other=0).to(tl.int64)
        d_feature = tl.dot(weight, tl.trans(d_pixel), input_precision=PRECISION)
        tl.store(d_features + slot[:, None] * channels + channel[None, :], d_feature, mask=mask)

        share = weight * along
        total = carried + tl.sum(share, 0)
        behind = total[None, :] - tl.cumsum(share, 0)
        carried = total
        # At the clamp alpha does not depend on anything.
        d_power = tl.where(blend & (raw <= MAX_ALPHA), alpha * (before * along - behind * inverse), 0.0)
        sum_x = tl.sum(d_power * dx, 1)
        sum_y = tl.sum(d_power * dy, 1)
        target = d_geometry + (block.to(tl.int64) * pairs + slot) * 8
        tl.store(target, a * sum_x + b * sum_y, mask=valid)
        tl.store(target + 1, b * sum_x + c * sum_y, mask=valid)
        tl.store(target + 2, -0.5 * tl.sum(d_power * dx * dx, 1), mask=valid)
        tl.store(target + 3, -tl.sum(d_power * dx * dy, 1), mask=valid)
        tl.store(target + 4, -0.5 * tl.sum(d_power * dy * dy, 1), mask=valid)
        tl.store(target + 5, tl.sum(d_power, 1), mask=valid)
