"""Triton kernels that blend Gaussians in tiles, and the gradients. Imported by tiled.py only, inside functions.

The same arguments and results as gluon_kernels.py, for Triton without Gluon and for its interpreter. One program blends one tile in
one block of channels: chunks of Gaussians front to back, (Gaussians x pixels) at a time. The backward pass walks the chunks back to
front from the transmittance that is left at the end, with two numbers carried per pixel: transmittance, and what is behind, times its
gradient, as all channels enter the gradient of an alpha through features . gradient only.
"""

from typing import no_type_check

import triton
import triton.language as tl

from lib.render.gaussian.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

MAX_ALPHA, MIN_ALPHA = tl.constexpr(ALPHA_MAX), tl.constexpr(ALPHA_MIN)
MIN_TRANSMITTANCE = tl.constexpr(TRANSMITTANCE_MIN)
NOTHING = tl.constexpr(-1e4)  # a log opacity that gives alpha 0
PRECISION = tl.constexpr("ieee")  # float32 products, whatever precision is asked for: tensor cores would not make these kernels faster

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def tile_pixels(tile, tiles_x, tiles_per_image, width, height, TILE_X: tl.constexpr, TILE_Y: tl.constexpr):
    """Image, column and row of the pixels of a tile, and which of them exist."""
    image = (tile // tiles_per_image).to(tl.int64)  # so that no place in an image of the batch overflows
    within = tile % tiles_per_image
    pixel = tl.arange(0, TILE_X * TILE_Y)
    column = within % tiles_x * TILE_X + pixel % TILE_X
    row = within // tiles_x * TILE_Y + pixel // TILE_X
    return image, column, row, (column < width) & (row < height)


@triton.jit
@no_type_check
def load_alphas(geometry, gaussian, valid, column, row):
    """Offsets from the pixels to the means, and unclamped alphas: (Gaussians x pixels) from rows [x, y, qa, qb, qc, log2 opacity, -, -]."""
    rows = geometry + gaussian * 8
    x = tl.load(rows, mask=valid, other=0.0)
    y = tl.load(rows + 1, mask=valid, other=0.0)
    a = tl.load(rows + 2, mask=valid, other=0.0)
    b = tl.load(rows + 3, mask=valid, other=0.0)
    c = tl.load(rows + 4, mask=valid, other=0.0)
    opacity = tl.load(rows + 5, mask=valid, other=NOTHING)
    dx = x[:, None] - (column.to(tl.float32) + 0.5)[None, :]
    dy = y[:, None] - (row.to(tl.float32) + 0.5)[None, :]
    return dx, dy, tl.exp2(dx * (a[:, None] * dx + b[:, None] * dy) + (c[:, None] * (dy * dy) + opacity[:, None]))


@triton.jit
@no_type_check
def cut(raw):
    """Alphas as they are blended."""
    return tl.where(raw >= MIN_ALPHA, tl.minimum(raw, MAX_ALPHA), 0.0)


@triton.jit(do_not_specialize=["room", "tiles_x", "tiles_per_image", "height", "feature_rows"])
@no_type_check
def blend_forward(
    ranges, total, members, geometry, features, background, image, alpha_image, left, lasts, stops, room,
    stride_b, stride_c, stride_y, stride_x, tiles_x, tiles_per_image, width, height, channels, feature_rows,
    TILE_X: tl.constexpr, TILE_Y: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, HIGHEST: tl.constexpr,
    SAVE: tl.constexpr, SHARED: tl.constexpr, FULL: tl.constexpr, LONG: tl.constexpr,
):
    """Image over the background, and alpha; with SAVE what the backward pass needs. NaN if the lists did not fit into their room."""
    tile = tl.program_id(0)
    block = tl.program_id(1)
    picture, column, row, inside = tile_pixels(tile, tiles_x, tiles_per_image, width, height, TILE_X, TILE_Y)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    start, count = tl.load(ranges + 2 * tile), tl.load(ranges + 2 * tile + 1)
    transmittance = tl.where(inside, 1.0, 0.0)  # 0: the pixel has stopped
    end = tl.full([TILE_X * TILE_Y], 1.0, tl.float32)
    last = tl.zeros([TILE_X * TILE_Y], tl.int32)  # Gaussians that were blended or passed over
    blended = tl.zeros([BLOCK, TILE_X * TILE_Y], tl.float32)
    seen = 0
    active = 1
    while (seen < count) & (active > 0):
        member = seen + tl.arange(0, CHUNK)
        valid = member < count
        gaussian = tl.load(members + start + member, mask=valid, other=0).to(tl.int64)
        _, _, raw = load_alphas(geometry, gaussian, valid, column, row)
        alpha = cut(raw)
        after = tl.cumprod(1.0 - alpha, 0) * transmittance[None, :]
        # A Gaussian that would bring the pixel below the minimum is not blended; `after` only falls, so none behind it is.
        blend = after >= MIN_TRANSMITTANCE
        weight = tl.where(blend, alpha * (after / (1.0 - alpha)), 0.0)
        mask = (channel < channels)[:, None] & valid[None, :]
        feature = tl.load(features + (gaussian % feature_rows)[None, :] * channels + channel[:, None], mask=mask, other=0.0)
        blended += tl.dot(feature, weight, input_precision=PRECISION)
        end = tl.minimum(end, tl.min(tl.where(blend, after, 1.0), 0))
        last += tl.sum(blend.to(tl.int32), 0)
        behind = tl.min(after, 0)
        transmittance = tl.where(behind >= MIN_TRANSMITTANCE, behind, 0.0)
        active = tl.max((transmittance > 0.0).to(tl.int32), 0)
        seen += CHUNK

    blended += tl.load(background + channel, mask=channel < channels, other=0.0)[:, None] * end[None, :]
    wrong = tl.where(tl.load(total) > room, float("nan"), 0.0)
    blended += wrong
    target = image + picture * stride_b + (row * stride_y + column * stride_x)[None, :] + (channel * stride_c)[:, None]
    tl.store(target, blended.to(image.dtype.element_ty), mask=(channel < channels)[:, None] & inside[None, :])
    if block == 0:
        place = picture * height * width + row * width + column
        tl.store(alpha_image + place, 1.0 - end + wrong, mask=inside)
        if SAVE:
            tl.store(left + place, end, mask=inside)
            tl.store(lasts + place, last, mask=inside)
            tl.store(stops + tile, tl.minimum(seen, count))


@triton.jit(do_not_specialize=["room", "tiles_x", "tiles_per_image", "height", "feature_rows"])
@no_type_check
def blend_backward(
    ranges, stops, members, geometry, features, background, left, lasts, d_image, d_alpha_image, d_geometry, d_features, room,
    stride_b, stride_c, stride_y, stride_x, tiles_x, tiles_per_image, width, height, channels, feature_rows,
    TILE_X: tl.constexpr, TILE_Y: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr, HIGHEST: tl.constexpr,
    ALPHA: tl.constexpr, ROWS: tl.constexpr, PLANAR: tl.constexpr, SHARED: tl.constexpr, FULL: tl.constexpr, LONG: tl.constexpr,
):
    """Gradients of features, and of geometry the moments [v, v dx, v dy, v dx², v dx dy, v dy²], v = d loss / d log alpha, d = mean - pixel.

    Added up per Gaussian; with ROWS a row of each per pair, where the pair stands in the lists, and of geometry per block of channels.
    """
    tile = tl.program_id(0)
    block = tl.program_id(1)
    picture, column, row, inside = tile_pixels(tile, tiles_x, tiles_per_image, width, height, TILE_X, TILE_Y)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(ranges + 2 * tile)
    count = tl.load(stops + tile)

    place = picture * height * width + row * width + column
    source = d_image + picture * stride_b + (row * stride_y + column * stride_x)[None, :] + (channel * stride_c)[:, None]
    d_pixel = tl.load(source, mask=(channel < channels)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    d_end = tl.sum(d_pixel * tl.load(background + channel, mask=channel < channels, other=0.0)[:, None], 0)
    if ALPHA:  # belongs to the first block
        d_end -= tl.load(d_alpha_image + place, mask=inside & (block == 0), other=0.0)
    transmittance = tl.load(left + place, mask=inside, other=0.0)
    last = tl.load(lasts + place, mask=inside, other=0)
    carried = transmittance * d_end  # everything behind, times its gradient
    first = (count + CHUNK - 1) // CHUNK * CHUNK
    while first > 0:
        first -= CHUNK
        member = first + tl.arange(0, CHUNK)
        valid = member < count
        gaussian = tl.load(members + start + member, mask=valid, other=0).to(tl.int64)
        dx, dy, raw = load_alphas(geometry, gaussian, valid, column, row)
        alpha = tl.where(member[:, None] < last[None, :], cut(raw), 0.0)
        inverse = 1.0 / (1.0 - alpha)
        after = tl.cumprod(1.0 - alpha, 0)
        transmittance = transmittance / tl.min(after, 0)  # in front of the chunk
        weight = alpha * (after * inverse * transmittance[None, :])

        mask = valid[:, None] & (channel < channels)[None, :]
        place_f = (gaussian % feature_rows)[:, None] * channels + channel[None, :]
        feature = tl.load(features + place_f, mask=mask, other=0.0)
        along = tl.dot(feature, d_pixel, input_precision=PRECISION)
        d_feature = tl.dot(weight, tl.trans(d_pixel), input_precision=PRECISION)

        share = weight * along
        total = carried + tl.sum(share, 0)
        behind = total[None, :] - tl.cumsum(share, 0)
        carried = total
        # At the clamp alpha does not depend on anything.
        d_power = tl.where(raw <= MAX_ALPHA, share - alpha * inverse * behind, 0.0)
        if ROWS:
            place_g = block.to(tl.int64) * room + start + member
            place_f = (start + member).to(tl.int64)[:, None] * channels + channel[None, :]
            tl.store(d_features + place_f, d_feature, mask=mask)
        else:
            place_g = gaussian
            tl.atomic_add(d_features + place_f, d_feature, mask=mask, sem="relaxed")
        target = d_geometry + place_g * 8
        put(target, d_power, valid, ROWS)
        put(target + 1, d_power * dx, valid, ROWS)
        put(target + 2, d_power * dy, valid, ROWS)
        put(target + 3, d_power * dx * dx, valid, ROWS)
        put(target + 4, d_power * dx * dy, valid, ROWS)
        put(target + 5, d_power * dy * dy, valid, ROWS)


@triton.jit
@no_type_check
def put(target, values, valid, ROWS: tl.constexpr):
    """Sums over pixels, to a row of their own or added."""
    if ROWS:
        tl.store(target, tl.sum(values, 1), mask=valid)
    else:
        tl.atomic_add(target, tl.sum(values, 1), mask=valid, sem="relaxed")
