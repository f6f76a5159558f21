"""Gluon kernels that blend Gaussians in small tiles on tensor cores, and the gradients. Imported by tiled.py only, inside functions.

One program blends one tile in one block of channels, CHUNK Gaussians at a time. Every thread owns pixels and walks the Gaussians of a
chunk in its registers, so that products along the ray cost no exchange between threads; blending and its gradients are matrix
products of (Gaussians x pixels) with features or gradients. The backward pass goes back to front from the transmittance that is left
at the end, with two numbers carried per pixel: transmittance, and what is behind, times its gradient, as all channels enter the
gradient of an alpha through features . gradient only. What the next chunk needs first is loaded one chunk ahead.
"""

from typing import no_type_check

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from lib.render.gaussian.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

MAX_ALPHA, MIN_ALPHA = gl.constexpr(ALPHA_MAX), gl.constexpr(ALPHA_MIN)
MIN_TRANSMITTANCE = gl.constexpr(TRANSMITTANCE_MIN)
NOTHING = gl.constexpr(-1e4)  # a log opacity that gives alpha 0
STOPPED = gl.constexpr(1 << 16)  # counts pixels that stop beside those that go on

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@gluon.jit
@no_type_check
def exp2(x):
    """2 to the power of x, to about 2 units in the last place."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
@no_type_check
def reciprocal(x):
    """1 / x, to about one unit in the last place."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
@no_type_check
def rounded(x):
    """To the nearest TF32 number; tensor cores would cut the digits off, which is biased."""
    return gl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
@no_type_check
def multiply_add(a, b, total, LA: gl.constexpr, LB: gl.constexpr, HIGHEST: gl.constexpr, EXACT: gl.constexpr):
    """total + a @ b. HIGHEST: from two TF32 parts of each number, without the product of the small ones. EXACT: b consists of TF32 numbers."""
    a_high = rounded(a)
    b_high = gl.convert_layout(b if EXACT else rounded(b), LB)
    if HIGHEST:
        total = mma_v2(gl.convert_layout(rounded(a - a_high), LA), b_high, total, input_precision="tf32")
        if not EXACT:
            total = mma_v2(gl.convert_layout(a_high, LA), gl.convert_layout(rounded(b - rounded(b)), LB), total, input_precision="tf32")
    return mma_v2(gl.convert_layout(a_high, LA), b_high, total, input_precision="tf32")


@gluon.jit
@no_type_check
def passed(through_1, seed_1, through_2, seed_2):
    """Combines (transmittance behind, transmittance in front) of two stretches of a ray."""
    return through_1 * through_2, through_1 * seed_2


@gluon.jit
@no_type_check
def plus(a, b):
    """Sum, for scans."""
    return a + b


@gluon.jit
@no_type_check
def load_rows(geometry, gaussian, valid, column):
    """Geometry rows of a chunk; those behind the end of the list are transparent."""
    row = gl.load(geometry + (gaussian * 8)[:, None] + column[None, :])
    return gl.where(valid[:, None] | (column[None, :] != 5), row, NOTHING)


@gluon.jit
@no_type_check
def feature_places(gaussian, channel, channels, feature_rows, SHARED: gl.constexpr, LONG: gl.constexpr):
    """(Gaussians x channels) of a chunk in the features. SHARED: one cloud in all images. LONG: places beyond 2³¹."""
    if SHARED:
        gaussian = gaussian % feature_rows
    if LONG:
        gaussian = gaussian.to(gl.int64)
    return (gaussian * channels)[:, None] + channel[None, :]


@gluon.jit
@no_type_check
def load_channels(place, channel, channels, FULL: gl.constexpr):
    """Values at places (Gaussians x channels); zero in channels that do not exist."""
    if FULL:
        return gl.load(place)
    else:
        return gl.load(place, mask=(channel < channels)[None, :], other=0.0)


@gluon.jit
@no_type_check
def alphas(rows, x, y, L: gl.constexpr):
    """Alphas (Gaussians x pixels) as they are blended, from transposed geometry rows in shared memory."""
    dx = rows.slice(0, 1, 0).permute((1, 0)).load(L) - x[None, :]
    dy = rows.slice(1, 1, 0).permute((1, 0)).load(L) - y[None, :]
    a = rows.slice(2, 1, 0).permute((1, 0)).load(L)
    b = rows.slice(3, 1, 0).permute((1, 0)).load(L)
    c = rows.slice(4, 1, 0).permute((1, 0)).load(L)
    opacity = rows.slice(5, 1, 0).permute((1, 0)).load(L)
    alpha = gl.minimum(exp2(dx * (a * dx + b * dy) + (c * (dy * dy) + opacity)), MAX_ALPHA)
    return gl.where(alpha >= MIN_ALPHA, alpha, 0.0)


@gluon.jit
@no_type_check
def transmittances(alpha, transmittance, k):
    """Behind and in front of every Gaussian of a chunk; what depends on k alone is known when the kernel is compiled."""
    through = 1.0 - alpha
    through = gl.where(k == 0, through * transmittance[None, :], through)
    return gl.associative_scan((through, gl.where(k == 0, transmittance[None, :], 1.0)), 0, passed)


@gluon.jit
@no_type_check
def last_of(values, k, CHUNK: gl.constexpr):
    """Per pixel, the value of the last Gaussian of a chunk."""
    return gl.sum(gl.where(k == CHUNK - 1, values, 0.0), axis=0)


@gluon.jit
@no_type_check
def one_of(values, column, COLUMN: gl.constexpr):
    """One column of (Gaussians x columns), as a column."""
    return gl.sum(gl.where(column == COLUMN, values, 0.0), axis=1)[:, None]


@gluon.jit(do_not_specialize=["room", "tiles_x", "tiles_per_image", "height", "feature_rows"])
@no_type_check
def blend_forward(
    ranges, total, members, geometry, features, background, image, alpha_image, left, lasts, stops, room,
    stride_b, stride_c, stride_y, stride_x, tiles_x, tiles_per_image, width, height, channels, feature_rows,
    TILE_X: gl.constexpr, TILE_Y: gl.constexpr, CHUNK: gl.constexpr, BLOCK: gl.constexpr, WARPS: gl.constexpr, HIGHEST: gl.constexpr,
    SAVE: gl.constexpr, SHARED: gl.constexpr, FULL: gl.constexpr, LONG: gl.constexpr,
):
    """Image over the background, and alpha; with SAVE what the backward pass needs. NaN if the lists did not fit into their room."""
    P: gl.constexpr = TILE_X * TILE_Y
    K: gl.constexpr = CHUNK
    L: gl.constexpr = gl.BlockedLayout([K, P // (32 * WARPS)], [1, 32], [1, WARPS], [0, 1])  # pixels in threads
    M: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, M, 1)
    B: gl.constexpr = gl.DotOperandLayout(1, M, 1)
    LF: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [WARPS, 1], [1, 0])  # loads features
    LG: gl.constexpr = gl.BlockedLayout([1, 4], [16, 2], [WARPS, 1], [1, 0])  # loads geometry
    tile = gl.program_id(0)
    block = gl.program_id(1)
    picture = (tile // tiles_per_image).to(gl.int64)
    within = tile % tiles_per_image
    west = within % tiles_x * TILE_X
    north = within // tiles_x * TILE_Y
    pixel = gl.arange(0, P, layout=gl.SliceLayout(0, L))
    column = west + pixel % TILE_X
    row = north + pixel // TILE_X
    inside = (column < width) & (row < height)
    x = column.to(gl.float32) + 0.5
    y = row.to(gl.float32) + 0.5
    start = gl.load(ranges + 2 * tile)
    count = gl.load(ranges + 2 * tile + 1)
    members += start

    transmittance = gl.where(inside, 1.0, 0.0)  # 0: the pixel has stopped
    end = gl.full([P], 1.0, gl.float32, layout=gl.SliceLayout(0, L))  # transmittance of pixels that have stopped
    last = gl.where(inside, count, 0)  # Gaussians that were blended or passed over
    blended = gl.zeros([P, BLOCK], gl.float32, layout=M)
    rows = gl.allocate_shared_memory(gl.float32, [8, K], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    k = gl.arange(0, K, layout=gl.SliceLayout(1, L))[:, None]
    kf = gl.arange(0, K, layout=gl.SliceLayout(1, LF))
    kg = gl.arange(0, K, layout=gl.SliceLayout(1, LG))
    channel = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LF))
    value = gl.arange(0, 8, layout=gl.SliceLayout(0, LG))
    seen = 0
    active = 1
    if count > 0:
        next_f = gl.load(members + gl.minimum(kf, count - 1))
        next_g = gl.load(members + gl.minimum(kg, count - 1))
        while (seen < count) & (active > 0):
            feature = load_channels(features + feature_places(next_f, channel, channels, feature_rows, SHARED, LONG), channel, channels, FULL)
            rows.store(gl.permute(load_rows(geometry, next_g, seen + kg < count, value), (1, 0)))
            next_f = gl.load(members + gl.minimum(seen + K + kf, count - 1))
            next_g = gl.load(members + gl.minimum(seen + K + kg, count - 1))
            alpha = alphas(rows, x, y, L)
            after, before = transmittances(alpha, transmittance, k)
            # A Gaussian that would bring the pixel below the minimum is not blended; `after` only falls, so none behind it is.
            weight = gl.where(after >= MIN_TRANSMITTANCE, alpha, 0.0) * before
            blended = multiply_add(gl.permute(weight, (1, 0)), feature, blended, A, B, HIGHEST, False)
            behind = last_of(after, k, K)
            goes_on = behind >= MIN_TRANSMITTANCE
            stops_here = (behind < MIN_TRANSMITTANCE) & (transmittance > 0.0)
            pixels = gl.sum(gl.where(goes_on, 1, gl.where(stops_here, STOPPED, 0)), axis=0)
            if pixels >= STOPPED:
                end = gl.where(stops_here, gl.min(gl.where(after >= MIN_TRANSMITTANCE, after, transmittance[None, :]), axis=0), end)
                last = gl.where(stops_here, seen + gl.sum((after >= MIN_TRANSMITTANCE).to(gl.int32), axis=0), last)
            transmittance = gl.where(goes_on, behind, 0.0)
            active = pixels % STOPPED
            seen += K
    end = gl.where(transmittance > 0.0, transmittance, end)

    channel = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, M))
    pixel_m = gl.arange(0, P, layout=gl.SliceLayout(1, M))
    behind = gl.load(background + channel, mask=channel < channels, other=0.0)
    blended += gl.convert_layout(end, gl.SliceLayout(1, M))[:, None] * behind[None, :]
    wrong = gl.where(gl.load(total) > room, float("nan"), 0.0)
    blended += wrong
    column_m = west + pixel_m % TILE_X
    row_m = north + pixel_m // TILE_X
    target = image + picture * stride_b + (row_m * stride_y + column_m * stride_x)[:, None] + (channel * stride_c)[None, :]
    exists = ((column_m < width) & (row_m < height))[:, None] & (channel < channels)[None, :]
    gl.store(target, blended.to(image.dtype.element_ty), mask=exists)
    if block == 0:
        place = picture * width * height + row * width + column
        gl.store(alpha_image + place, 1.0 - end + wrong, mask=inside)
        if SAVE:
            gl.store(left + place, end, mask=inside)
            gl.store(lasts + place, last, mask=inside)
            gl.store(stops + tile, gl.minimum(seen, count))


@gluon.jit(do_not_specialize=["room", "tiles_x", "tiles_per_image", "height", "feature_rows"])
@no_type_check
def blend_backward(
    ranges, stops, members, geometry, features, background, left, lasts, d_image, d_alpha_image, d_geometry, d_features, room,
    stride_b, stride_c, stride_y, stride_x, tiles_x, tiles_per_image, width, height, channels, feature_rows,
    TILE_X: gl.constexpr, TILE_Y: gl.constexpr, CHUNK: gl.constexpr, BLOCK: gl.constexpr, WARPS: gl.constexpr, HIGHEST: gl.constexpr,
    ALPHA: gl.constexpr, ROWS: gl.constexpr, PLANAR: gl.constexpr, SHARED: gl.constexpr, FULL: gl.constexpr, LONG: gl.constexpr,
):
    """Gradients of features, and of geometry the moments [v, v dx, v dy, v dx², v dx dy, v dy²], v = d loss / d log alpha, d = mean - pixel.

    Added up per Gaussian; with ROWS a row of each per pair, where the pair stands in the lists, and of geometry per block of channels.
    """
    P: gl.constexpr = TILE_X * TILE_Y
    K: gl.constexpr = CHUNK
    COLUMNS: gl.constexpr = 8 * WARPS  # of moments: six, and what a matrix product is filled up with
    L: gl.constexpr = gl.BlockedLayout([K, P // (32 * WARPS)], [1, 32], [1, WARPS], [0, 1])  # pixels in threads
    M: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, WARPS], instr_shape=[16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, M, 1)
    B: gl.constexpr = gl.DotOperandLayout(1, M, 1)
    LF: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [WARPS, 1], [1, 0])  # loads features
    LG: gl.constexpr = gl.BlockedLayout([1, 4], [16, 2], [WARPS, 1], [1, 0])  # loads geometry
    LP: gl.constexpr = gl.BlockedLayout([4, 1], [8, 4], [1, WARPS], [0, 1]) if PLANAR else LF  # loads gradients of pixels
    LR: gl.constexpr = gl.BlockedLayout([1, COLUMNS], [32, 1], [WARPS, 1], [1, 0])  # moments of a Gaussian in a thread
    tile = gl.program_id(0)
    block = gl.program_id(1)
    count = gl.load(stops + tile)
    if count > 0:
        picture = (tile // tiles_per_image).to(gl.int64)
        within = tile % tiles_per_image
        west = within % tiles_x * TILE_X
        north = within // tiles_x * TILE_Y
        pixel = gl.arange(0, P, layout=gl.SliceLayout(0, L))
        column = west + pixel % TILE_X
        row = north + pixel // TILE_X
        inside = (column < width) & (row < height)
        x = column.to(gl.float32) + 0.5
        y = row.to(gl.float32) + 0.5
        start = gl.load(ranges + 2 * tile)
        place = picture * width * height + row * width + column
        members += start

        pixel_p = gl.arange(0, P, layout=gl.SliceLayout(1, LP))
        channel = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LP))
        column_p = west + pixel_p % TILE_X
        row_p = north + pixel_p // TILE_X
        source = d_image + picture * stride_b + (row_p * stride_y + column_p * stride_x)[:, None] + (channel * stride_c)[None, :]
        exists = ((column_p < width) & (row_p < height))[:, None] & (channel < channels)[None, :]
        d_pixel = gl.load(source, mask=exists, other=0.0).to(gl.float32)
        behind = gl.load(background + channel, mask=channel < channels, other=0.0)
        d_end = gl.convert_layout(gl.sum(d_pixel * behind[None, :], axis=1), gl.SliceLayout(0, L))
        if ALPHA:
            if block == 0:
                d_end -= gl.load(d_alpha_image + place, mask=inside, other=0.0)
        transmittance = gl.load(left + place, mask=inside, other=0.0)
        last = gl.load(lasts + place, mask=inside, other=0)
        carried = transmittance * d_end  # everything behind, times its gradient
        if not HIGHEST:
            d_pixel = rounded(d_pixel)
        d_pixels = gl.allocate_shared_memory(gl.float32, [P, BLOCK], gl.SwizzledSharedLayout(4, 1, 8, [1, 0]), d_pixel)

        # What moments are made of, about the middle of the tile: exact in TF32.
        pixel_b = gl.arange(0, P, layout=gl.SliceLayout(1, B))
        which = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, B))[None, :]
        across = ((pixel_b % TILE_X).to(gl.float32) - (TILE_X - 1) * 0.5)[:, None]
        down = ((pixel_b // TILE_X).to(gl.float32) - (TILE_Y - 1) * 0.5)[:, None]
        basis = gl.where(which == 0, 1.0, gl.where(which == 1, across, gl.where(which == 2, down, 0.0)))
        basis += gl.where(which == 3, across * across, gl.where(which == 4, across * down, gl.where(which == 5, down * down, 0.0)))

        rows = gl.allocate_shared_memory(gl.float32, [8, K], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        k = gl.arange(0, K, layout=gl.SliceLayout(1, L))[:, None]
        kf = gl.arange(0, K, layout=gl.SliceLayout(1, LF))
        kg = gl.arange(0, K, layout=gl.SliceLayout(1, LG))
        km = gl.arange(0, K, layout=gl.SliceLayout(1, M))
        channel_f = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LF))
        channel_m = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, M))
        value = gl.arange(0, 8, layout=gl.SliceLayout(0, LG))
        moment = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LR))[None, :]
        first = (count - 1) // K * K
        next_f = gl.load(members + gl.minimum(first + kf, count - 1))
        next_g = gl.load(members + gl.minimum(first + kg, count - 1))
        next_m = gl.load(members + gl.minimum(first + km, count - 1))
        while first >= 0:
            gaussian_g = next_g
            gaussian_m = next_m
            feature = load_channels(features + feature_places(next_f, channel_f, channels, feature_rows, SHARED, LONG), channel_f, channels, FULL)
            rows.store(gl.permute(load_rows(geometry, gaussian_g, first + kg < count, value), (1, 0)))
            ahead = gl.maximum(first - K, 0)
            next_f = gl.load(members + gl.minimum(ahead + kf, count - 1))
            next_g = gl.load(members + gl.minimum(ahead + kg, count - 1))
            next_m = gl.load(members + gl.minimum(ahead + km, count - 1))
            nothing = gl.zeros([K, P], gl.float32, layout=M)
            along = gl.convert_layout(multiply_add(feature, d_pixels.permute((1, 0)).load(B), nothing, A, B, HIGHEST, not HIGHEST), L)
            alpha = alphas(rows, x, y, L)
            alpha = gl.where(k < (last - first)[None, :], alpha, 0.0)
            after, before = gl.associative_scan((1.0 - alpha, gl.full([K, P], 1.0, gl.float32, layout=L)), 0, passed)
            transmittance = transmittance / last_of(after, k, K)  # in front of the chunk
            weight = alpha * (before * transmittance[None, :])
            share = weight * along
            upto = gl.associative_scan(share, 0, plus)
            carried += last_of(upto, k, K)
            # At the clamp alpha does not depend on anything.
            d_power = gl.where(alpha < MAX_ALPHA, share - (alpha * reciprocal(1.0 - alpha)) * (carried[None, :] - upto), 0.0)

            d_feature = multiply_add(weight, d_pixels.load(B), gl.zeros([K, BLOCK], gl.float32, layout=M), A, B, HIGHEST, not HIGHEST)
            # Moments about the mean, from those about the middle of the tile.
            moments = gl.convert_layout(multiply_add(d_power, basis, gl.zeros([K, COLUMNS], gl.float32, layout=M), A, B, HIGHEST, True), LR)
            m0 = one_of(moments, moment, 0)
            m1 = one_of(moments, moment, 1)
            m2 = one_of(moments, moment, 2)
            from_x = rows.slice(0, 1, 0).permute((1, 0)).load(LR) - (west + TILE_X * 0.5)
            from_y = rows.slice(1, 1, 0).permute((1, 0)).load(LR) - (north + TILE_Y * 0.5)
            sx = from_x * m0 - m1
            sy = from_y * m0 - m2
            sxx = from_x * (sx - m1) + one_of(moments, moment, 3)
            sxy = from_y * sx - from_x * m2 + one_of(moments, moment, 4)
            syy = from_y * (sy - m2) + one_of(moments, moment, 5)
            place_r = gl.arange(0, 8, layout=gl.SliceLayout(0, LR))[None, :]
            d_row = gl.where(place_r == 0, m0, gl.where(place_r == 1, sx, gl.where(place_r == 2, sy, 0.0)))
            d_row += gl.where(place_r == 3, sxx, gl.where(place_r == 4, sxy, gl.where(place_r == 5, syy, 0.0)))
            d_row = gl.convert_layout(d_row, LG)
            valid_g = (first + kg < count)[:, None]
            valid_m = (first + km < count)[:, None]
            if not FULL:
                valid_m = valid_m & (channel_m < channels)[None, :]
            if ROWS:
                pair_g = block.to(gl.int64) * room + start + first + kg
                pair_m = (start + first + km).to(gl.int64)
                gl.store(d_geometry + (pair_g * 8)[:, None] + value[None, :], d_row, mask=valid_g)
                gl.store(d_features + (pair_m * channels)[:, None] + channel_m[None, :], d_feature, mask=valid_m)
            else:
                place_m = feature_places(gaussian_m, channel_m, channels, feature_rows, SHARED, LONG)
                gl.atomic_add(d_geometry + (gaussian_g * 8)[:, None] + value[None, :], d_row, mask=valid_g, sem="relaxed")
                gl.atomic_add(d_features + place_m, d_feature, mask=valid_m, sem="relaxed")
            first -= K
