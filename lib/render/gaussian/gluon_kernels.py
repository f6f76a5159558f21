"""Gluon kernels that blend Gaussians in small tiles on tensor cores, and the gradients. Imported by gluon.py only, inside functions.

One program blends one tile in one block of channels, CHUNK Gaussians at a time. Every thread owns pixels and walks the Gaussians of a
chunk in its registers, so that products along the ray cost no exchange between threads; blending and its gradients are matrix
products of (Gaussians x pixels) with features or gradients. The backward pass goes back to front from the transmittances that the
forward pass kept at every chunk's start, with one number carried per pixel: all channels enter the gradient of an alpha through
features . gradient only.
"""

from typing import no_type_check

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from lib.render.gaussian.projection import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

MAX_ALPHA, MIN_ALPHA = gl.constexpr(ALPHA_MAX), gl.constexpr(ALPHA_MIN)
MIN_TRANSMITTANCE = gl.constexpr(TRANSMITTANCE_MIN)
TF32 = gl.constexpr("tf32")
NOTHING = gl.constexpr(-1e4)  # a log opacity that gives alpha 0

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@gluon.jit
@no_type_check
def exp2(x):
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
@no_type_check
def reciprocal(x):
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
@no_type_check
def rounded(x):
    """To the nearest TF32 number; tensor cores would cut the digits off, which is biased."""
    return gl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
@no_type_check
def product(a, b, total, LA: gl.constexpr, LB: gl.constexpr, HIGHEST: gl.constexpr):
    """total + a @ b. HIGHEST: from two TF32 parts of each number, without the product of the small ones."""
    a_high, b_high = rounded(a), rounded(b)
    if HIGHEST:
        a_low = gl.convert_layout(rounded(a - a_high), LA)
        b_low = gl.convert_layout(rounded(b - b_high), LB)
        a_high, b_high = gl.convert_layout(a_high, LA), gl.convert_layout(b_high, LB)
        total = mma_v2(a_low, b_high, total, input_precision=TF32)
        total = mma_v2(a_high, b_low, total, input_precision=TF32)
        return mma_v2(a_high, b_high, total, input_precision=TF32)
    return mma_v2(gl.convert_layout(a_high, LA), gl.convert_layout(b_high, LB), total, input_precision=TF32)


@gluon.jit
@no_type_check
def multiply_add(one_1, other_1, one_2, other_2):
    """Combines (product up to here, product before here) of two stretches."""
    return one_1 * one_2, one_1 * other_2


@gluon.jit
@no_type_check
def plus(a, b):
    return a + b


@gluon.jit
@no_type_check
def alphas(rows, column, row, L: gl.constexpr):
    """Unclamped alphas (Gaussians x pixels) from geometry rows in shared memory, transposed; and the means."""
    x = rows.slice(0, 1, 0).permute((1, 0)).load(L)
    y = rows.slice(1, 1, 0).permute((1, 0)).load(L)
    a = rows.slice(2, 1, 0).permute((1, 0)).load(L)
    b = rows.slice(3, 1, 0).permute((1, 0)).load(L)
    c = rows.slice(4, 1, 0).permute((1, 0)).load(L)
    opacity = rows.slice(5, 1, 0).permute((1, 0)).load(L)
    dx = x - column[None, :]
    dy = y - row[None, :]
    return exp2(dx * (a * dx + b * dy) + (c * (dy * dy) + opacity))


@gluon.jit
@no_type_check
def load_rows(geometry, gaussian, valid, column):
    """Geometry rows of a chunk; those behind the end of the list are transparent."""
    row = gl.load(geometry + (gaussian * 8)[:, None] + column[None, :])
    return gl.where((valid[:, None]) | (column[None, :] != 5), row, NOTHING)


@gluon.jit
@no_type_check
def load_features(features, gaussian, channel, channels, feature_rows, SHARED: gl.constexpr, FULL: gl.constexpr, LONG: gl.constexpr):
    """Features of a chunk (Gaussians x channels)."""
    if SHARED:
        gaussian = gaussian % feature_rows
    if LONG:
        gaussian = gaussian.to(gl.int64)
    place = features + (gaussian * channels)[:, None] + channel[None, :]
    if FULL:
        return gl.load(place)
    else:
        return gl.load(place, mask=(channel < channels)[None, :], other=0.0)


@gluon.jit
@no_type_check
def cut(raw):
    """Alphas as they are blended."""
    alpha = gl.minimum(raw, MAX_ALPHA)
    return gl.where(alpha >= MIN_ALPHA, alpha, 0.0)


@gluon.jit
@no_type_check
def operand(x, LAYOUT: gl.constexpr, HALF: gl.constexpr):
    if HALF:
        return gl.convert_layout(x.to(gl.float16), LAYOUT)
    else:
        return gl.convert_layout(rounded(x), LAYOUT)


@gluon.jit
@no_type_check
def mma(a, b, total, LA: gl.constexpr, LB: gl.constexpr, MODE: gl.constexpr):
    """total + a @ b of float32 tensors."""
    if MODE == 2:
        return product(a, b, total, LA, LB, True)
    else:
        return mma_v2(operand(a, LA, MODE == 0), operand(b, LB, MODE == 0), total, input_precision=TF32 if MODE != 0 else None)


@gluon.jit
@no_type_check
def blend_forward(
    ranges, members, geometry, features, background, image, alpha_image, final, checkpoints, stops, total, room,
    stride_b, stride_c, stride_y, stride_x, tiles_x, tiles_per_image, width, height, channels, feature_rows,
    TILE_X: gl.constexpr, TILE_Y: gl.constexpr, CHUNK: gl.constexpr, BLOCK: gl.constexpr, WARPS: gl.constexpr, MODE: gl.constexpr,
    SAVE: gl.constexpr, ROOM: gl.constexpr, SHARED: gl.constexpr, FULL: gl.constexpr, LONG: gl.constexpr, DIRECT: gl.constexpr, PREFETCH: gl.constexpr,
):
    """Image over the background, and alpha; with SAVE what the backward pass needs."""
    P: gl.constexpr = TILE_X * TILE_Y
    K: gl.constexpr = CHUNK
    WIDTH: gl.constexpr = 2 if MODE == 0 else 1
    L: gl.constexpr = gl.BlockedLayout([K, P // (32 * WARPS)], [1, 32], [1, WARPS], [0, 1])
    M: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, M, WIDTH)
    B: gl.constexpr = gl.DotOperandLayout(1, M, WIDTH)
    LF: gl.constexpr = B if DIRECT else gl.BlockedLayout([1, 4], [4, 8], [WARPS, 1], [1, 0])
    LG: gl.constexpr = gl.BlockedLayout([1, 4], [16, 2], [WARPS, 1], [1, 0])
    tile = gl.program_id(0)
    block = gl.program_id(1)
    picture = (tile // tiles_per_image).to(gl.int64)
    within = tile % tiles_per_image
    left = within % tiles_x * TILE_X
    top = within // tiles_x * TILE_Y
    pixel = gl.arange(0, P, layout=gl.SliceLayout(0, L))
    column = left + pixel % TILE_X
    row = top + pixel // TILE_X
    inside = (column < width) & (row < height)
    x = column.to(gl.float32) + 0.5
    y = row.to(gl.float32) + 0.5
    start = gl.load(ranges + 2 * tile)
    count = gl.load(ranges + 2 * tile + 1) - start
    checkpoint = checkpoints + (start // K + tile).to(gl.int64) * P + pixel
    members += start

    transmittance = gl.where(inside, 1.0, 0.0)  # 0: the pixel has stopped
    end = gl.full([P], 1.0, gl.float32, layout=gl.SliceLayout(0, L))
    blended = gl.zeros([P, BLOCK], gl.float32, layout=M)
    rows = gl.allocate_shared_memory(gl.float32, [8, K], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    k = gl.arange(0, K, layout=gl.SliceLayout(1, L))[:, None]
    kf = gl.arange(0, K, layout=gl.SliceLayout(1, LF))
    cf = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LF))
    kg = gl.arange(0, K, layout=gl.SliceLayout(1, LG))
    qg = gl.arange(0, 8, layout=gl.SliceLayout(0, LG))
    seen = 0
    active = 1
    if count > 0:
        if PREFETCH > 0:
            next_g = gl.load(members + gl.minimum(kg, count - 1))
            next_f = gl.load(members + gl.minimum(kf, count - 1))
        if PREFETCH > 1:
            next_row = load_rows(geometry, next_g, kg < count, qg)
            next_feature = load_features(features, next_f, cf, channels, feature_rows, SHARED, FULL, LONG)
        while (seen < count) & (active > 0):
            if SAVE:
                gl.store(checkpoint + seen // K * P, transmittance)
            if PREFETCH > 1:
                rows.store(gl.permute(next_row, (1, 0)))
                feature = next_feature
            else:
                if PREFETCH == 0:
                    next_g = gl.load(members + gl.minimum(seen + kg, count - 1))
                    next_f = gl.load(members + gl.minimum(seen + kf, count - 1))
                geo = load_rows(geometry, next_g, seen + kg < count, qg)
                feature = load_features(features, next_f, cf, channels, feature_rows, SHARED, FULL, LONG)
                rows.store(gl.permute(geo, (1, 0)))
            if PREFETCH > 0:
                next_g = gl.load(members + gl.minimum(seen + K + kg, count - 1))
                next_f = gl.load(members + gl.minimum(seen + K + kf, count - 1))
            if PREFETCH > 1:
                next_row = load_rows(geometry, next_g, seen + K + kg < count, qg)
                next_feature = load_features(features, next_f, cf, channels, feature_rows, SHARED, FULL, LONG)
            alpha = cut(alphas(rows, x, y, L))
            through = 1.0 - alpha
            # All Gaussians of the chunk are in one thread: what depends on k alone is known when the kernel is compiled.
            after, before = gl.associative_scan(
                (gl.where(k == 0, through * transmittance[None, :], through), gl.where(k == 0, transmittance[None, :], 1.0)), 0, multiply_add)
            # A Gaussian that would bring the pixel below the minimum is not blended; `after` only falls, so none behind it is.
            weight = gl.where(after >= MIN_TRANSMITTANCE, alpha, 0.0) * before
            blended = mma(gl.permute(weight, (1, 0)), feature, blended, A, B, MODE)
            last = gl.sum(gl.where(k == K - 1, after, 0.0), axis=0)
            goes_on = last >= MIN_TRANSMITTANCE
            state = gl.sum(gl.where(goes_on, 1, gl.where(transmittance > 0.0, 65536, 0)), axis=0)
            if state >= 65536:  # some pixel stops here
                end = gl.where(goes_on, end, gl.minimum(end, gl.min(gl.where(after >= MIN_TRANSMITTANCE, after, gl.where(transmittance > 0.0, transmittance, 1.0)[None, :]), axis=0)))
            transmittance = gl.where(goes_on, last, 0.0)
            active = state & 65535
            seen += K
    end = gl.where(transmittance > 0.0, transmittance, end)

    cm = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, M))
    pm = gl.arange(0, P, layout=gl.SliceLayout(1, M))
    behind = gl.load(background + cm, mask=cm < channels, other=0.0)
    blended += gl.convert_layout(end, gl.SliceLayout(1, M))[:, None] * behind[None, :]
    if ROOM:  # lists that did not fit: nobody may take this for a picture
        blended += gl.where(gl.load(total) > room, float("nan"), 0.0)
    cx = left + pm % TILE_X
    cy = top + pm // TILE_X
    target = image + picture * stride_b + (cy * stride_y + cx * stride_x)[:, None] + (cm * stride_c)[None, :]
    gl.store(target, blended.to(image.dtype.element_ty), mask=((cx < width) & (cy < height))[:, None] & (cm < channels)[None, :])
    if block == 0:
        place = picture * width * height + row * width + column
        gl.store(alpha_image + place, 1.0 - end, mask=inside)
        if SAVE:
            gl.store(final + place, end, mask=inside)
            gl.store(stops + tile, gl.minimum(seen, count))


@gluon.jit
@no_type_check
def blend_backward(
    ranges, stops, members, slots, geometry, features, background, final, checkpoints, d_image, d_alpha_image, d_geometry, d_features,
    stride_b, stride_c, stride_y, stride_x, tiles_x, tiles_per_image, width, height, channels, feature_rows, pairs,
    TILE_X: gl.constexpr, TILE_Y: gl.constexpr, CHUNK: gl.constexpr, BLOCK: gl.constexpr, WARPS: gl.constexpr, MODE: gl.constexpr,
    ALPHA: gl.constexpr, ROWS: gl.constexpr, PLANAR: gl.constexpr, SHARED: gl.constexpr, FULL: gl.constexpr, LONG: gl.constexpr,
    DIRECT: gl.constexpr, PREFETCH: gl.constexpr,
):
    """Gradients of features, and of geometry the moments [v, v dx, v dy, v dx², v dx dy, v dy²], v = d loss / d log alpha, d = mean - pixel."""
    P: gl.constexpr = TILE_X * TILE_Y
    K: gl.constexpr = CHUNK
    WIDTH: gl.constexpr = 2 if MODE == 0 else 1
    L: gl.constexpr = gl.BlockedLayout([K, P // (32 * WARPS)], [1, 32], [1, WARPS], [0, 1])
    M: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, WARPS], instr_shape=[16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, M, WIDTH)
    B: gl.constexpr = gl.DotOperandLayout(1, M, WIDTH)
    LF: gl.constexpr = A if DIRECT else gl.BlockedLayout([1, 4], [4, 8], [WARPS, 1], [1, 0])
    LG: gl.constexpr = gl.BlockedLayout([1, 4], [16, 2], [WARPS, 1], [1, 0])
    LO: gl.constexpr = gl.BlockedLayout([4, 1], [8, 4], [1, WARPS], [0, 1]) if PLANAR else gl.BlockedLayout([1, 4], [4, 8], [WARPS, 1], [1, 0])
    LR: gl.constexpr = gl.BlockedLayout([1, 8 * WARPS], [32, 1], [WARPS, 1], [1, 0])
    tile = gl.program_id(0)
    block = gl.program_id(1)
    count = gl.load(stops + tile)
    if count > 0:
        picture = (tile // tiles_per_image).to(gl.int64)
        within = tile % tiles_per_image
        left = within % tiles_x * TILE_X
        top = within // tiles_x * TILE_Y
        pixel = gl.arange(0, P, layout=gl.SliceLayout(0, L))
        column = left + pixel % TILE_X
        row = top + pixel // TILE_X
        inside = (column < width) & (row < height)
        x = column.to(gl.float32) + 0.5
        y = row.to(gl.float32) + 0.5
        start = gl.load(ranges + 2 * tile)
        checkpoint = checkpoints + (start // K + tile).to(gl.int64) * P + pixel
        place = picture * width * height + row * width + column
        members += start

        po = gl.arange(0, P, layout=gl.SliceLayout(1, LO))
        co = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LO))
        ox = left + po % TILE_X
        oy = top + po // TILE_X
        source = d_image + picture * stride_b + (oy * stride_y + ox * stride_x)[:, None] + (co * stride_c)[None, :]
        d_pixel = gl.load(source, mask=((ox < width) & (oy < height))[:, None] & (co < channels)[None, :], other=0.0).to(gl.float32)
        behind = gl.load(background + co, mask=co < channels, other=0.0)
        d_end = gl.convert_layout(gl.sum(d_pixel * behind[None, :], axis=1), gl.SliceLayout(0, L))
        if ALPHA:
            if block == 0:
                d_end -= gl.load(d_alpha_image + place, mask=inside, other=0.0)
        carried = gl.load(final + place, mask=inside, other=0.0) * d_end  # everything behind, times its gradient
        if MODE == 0:
            # An exact power of two brings the largest gradient of the tile to 1/8 .. 1/4: half floats end at 6e-8 and at 65504.
            largest = gl.max(gl.max(gl.abs(d_pixel), axis=1), axis=0)
            exponent = gl.minimum(gl.maximum((largest.to(gl.int32, bitcast=True) >> 23) & 255, 20), 230)
            d_pixel = d_pixel * ((251 - exponent) << 23).to(gl.float32, bitcast=True)
            carried = carried * ((251 - exponent) << 23).to(gl.float32, bitcast=True)
            unscale = ((exponent + 3) << 23).to(gl.float32, bitcast=True)
            held = gl.allocate_shared_memory(gl.float16, [P, BLOCK], gl.SwizzledSharedLayout(8, 1, 4, [1, 0]), d_pixel.to(gl.float16))
        else:
            held = gl.allocate_shared_memory(gl.float32, [P, BLOCK], gl.SwizzledSharedLayout(4, 1, 8, [1, 0]), rounded(d_pixel) if MODE == 1 else d_pixel)
        # What moments are made of, about the middle of the tile.
        pb = gl.arange(0, P, layout=gl.SliceLayout(1, B))
        qb = gl.arange(0, 8 * WARPS, layout=gl.SliceLayout(0, B))[None, :]
        lx = ((pb % TILE_X).to(gl.float32) - (TILE_X - 1) * 0.5)[:, None]
        ly = ((pb // TILE_X).to(gl.float32) - (TILE_Y - 1) * 0.5)[:, None]
        one = gl.where(qb == 0, 1.0, gl.where(qb == 1, lx, gl.where(qb == 2, ly, 0.0)))
        basis = one + gl.where(qb == 3, lx * lx, gl.where(qb == 4, lx * ly, gl.where(qb == 5, ly * ly, 0.0)))
        if MODE == 0:
            basis = basis.to(gl.float16)

        rows = gl.allocate_shared_memory(gl.float32, [8, K], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        k = gl.arange(0, K, layout=gl.SliceLayout(1, L))[:, None]
        kf = gl.arange(0, K, layout=gl.SliceLayout(1, LF))
        cf = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, LF))
        kg = gl.arange(0, K, layout=gl.SliceLayout(1, LG))
        qg = gl.arange(0, 8, layout=gl.SliceLayout(0, LG))
        km = gl.arange(0, K, layout=gl.SliceLayout(1, M))
        cm = block * BLOCK + gl.arange(0, BLOCK, layout=gl.SliceLayout(0, M))
        qr = gl.arange(0, 8 * WARPS, layout=gl.SliceLayout(0, LR))[None, :]
        first = (count - 1) // K * K
        if PREFETCH > 0:
            next_g = gl.load(members + gl.minimum(first + kg, count - 1))
            next_f = gl.load(members + gl.minimum(first + kf, count - 1))
            next_m = gl.load(members + gl.minimum(first + km, count - 1))
            next_t = gl.load(checkpoint + first // K * P)
        if PREFETCH > 1:
            next_row = load_rows(geometry, next_g, first + kg < count, qg)
            next_feature = load_features(features, next_f, cf, channels, feature_rows, SHARED, FULL, LONG)
        while first >= 0:
            if PREFETCH == 0:
                next_g = gl.load(members + gl.minimum(first + kg, count - 1))
                next_f = gl.load(members + gl.minimum(first + kf, count - 1))
                next_m = gl.load(members + gl.minimum(first + km, count - 1))
                next_t = gl.load(checkpoint + first // K * P)
            transmittance = next_t
            gaussian_g = next_g
            gaussian_m = next_m
            if PREFETCH > 1:
                rows.store(gl.permute(next_row, (1, 0)))
                feature = next_feature
            else:
                geo = load_rows(geometry, next_g, first + kg < count, qg)
                feature = load_features(features, next_f, cf, channels, feature_rows, SHARED, FULL, LONG)
                rows.store(gl.permute(geo, (1, 0)))
            if PREFETCH > 0:
                ahead = gl.maximum(first - K, 0)
                next_g = gl.load(members + gl.minimum(ahead + kg, count - 1))
                next_f = gl.load(members + gl.minimum(ahead + kf, count - 1))
                next_m = gl.load(members + gl.minimum(ahead + km, count - 1))
                next_t = gl.load(checkpoint + ahead // K * P)
            if PREFETCH > 1:
                next_row = load_rows(geometry, next_g, ahead + kg < count, qg)
                next_feature = load_features(features, next_f, cf, channels, feature_rows, SHARED, FULL, LONG)
            nothing = gl.zeros([K, P], gl.float32, layout=M)
            if MODE == 2:
                along = product(feature, held.permute((1, 0)).load(B), nothing, A, B, True)
            else:
                along = mma_v2(operand(feature, A, MODE == 0), held.permute((1, 0)).load(B), nothing, input_precision=TF32 if MODE != 0 else None)
            along = gl.convert_layout(along, L)
            alpha = cut(alphas(rows, x, y, L))
            through = 1.0 - alpha
            after, before = gl.associative_scan(
                (gl.where(k == 0, through * transmittance[None, :], through), gl.where(k == 0, transmittance[None, :], 1.0)), 0, multiply_add)
            alpha = gl.where(after >= MIN_TRANSMITTANCE, alpha, 0.0)
            weight = alpha * before
            share = weight * along
            upto = gl.associative_scan(share, 0, plus)
            carried += gl.sum(gl.where(k == K - 1, upto, 0.0), axis=0)
            # At the clamp alpha does not depend on anything.
            d_power = gl.where(alpha < MAX_ALPHA, share - (alpha * reciprocal(1.0 - alpha)) * (carried[None, :] - upto), 0.0)

            nothing = gl.zeros([K, BLOCK], gl.float32, layout=M)
            if MODE == 2:
                d_feature = product(weight, held.load(B), nothing, A, B, True)
            else:
                d_feature = mma_v2(operand(weight, A, MODE == 0), held.load(B), nothing, input_precision=TF32 if MODE != 0 else None)
            nothing = gl.zeros([K, 8 * WARPS], gl.float32, layout=M)
            if MODE == 2:
                high = rounded(d_power)
                moments = mma_v2(operand(d_power - high, A, False), basis, nothing, input_precision=TF32)
                moments = mma_v2(gl.convert_layout(high, A), basis, moments, input_precision=TF32)
            else:
                moments = mma_v2(operand(d_power, A, MODE == 0), basis, nothing, input_precision=TF32 if MODE != 0 else None)

            # Moments about the mean, from those about the middle of the tile.
            moments = gl.convert_layout(moments, LR)
            m0 = gl.sum(gl.where(qr == 0, moments, 0.0), axis=1)[:, None]
            m1 = gl.sum(gl.where(qr == 1, moments, 0.0), axis=1)[:, None]
            m2 = gl.sum(gl.where(qr == 2, moments, 0.0), axis=1)[:, None]
            m3 = gl.sum(gl.where(qr == 3, moments, 0.0), axis=1)[:, None]
            m4 = gl.sum(gl.where(qr == 4, moments, 0.0), axis=1)[:, None]
            m5 = gl.sum(gl.where(qr == 5, moments, 0.0), axis=1)[:, None]
            ux = rows.slice(0, 1, 0).permute((1, 0)).load(LR) - (left + TILE_X * 0.5)
            uy = rows.slice(1, 1, 0).permute((1, 0)).load(LR) - (top + TILE_Y * 0.5)
            sx = ux * m0 - m1
            sy = uy * m0 - m2
            sxx = ux * (sx - m1) + m3
            sxy = uy * sx - ux * m2 + m4
            syy = uy * (sy - m2) + m5
            q8 = gl.arange(0, 8, layout=gl.SliceLayout(0, LR))[None, :]
            d_row = gl.where(q8 == 0, m0, gl.where(q8 == 1, sx, gl.where(q8 == 2, sy, gl.where(q8 == 3, sxx, gl.where(q8 == 4, sxy, gl.where(q8 == 5, syy, 0.0))))))
            if MODE == 0:
                d_row = d_row * unscale
                d_feature = d_feature * unscale
            d_row = gl.convert_layout(d_row, LG)
            valid_g = (first + kg < count)[:, None]
            valid_m = (first + km < count)[:, None]
            if not FULL:
                valid_m = valid_m & (cm < channels)[None, :]
            if ROWS:
                slot = gl.load(slots + start + gl.minimum(first + kg, count - 1))
                gl.store(d_geometry + ((block.to(gl.int64) * pairs + slot) * 8)[:, None] + qg[None, :], d_row, mask=valid_g)
                slot = gl.load(slots + start + gl.minimum(first + km, count - 1))
                gl.store(d_features + (slot * channels)[:, None] + cm[None, :], d_feature, mask=valid_m)
            else:
                if SHARED:
                    gaussian_m = gaussian_m % feature_rows
                if LONG:
                    gaussian_m = gaussian_m.to(gl.int64)
                gl.atomic_add(d_geometry + (gaussian_g * 8)[:, None] + qg[None, :], d_row, mask=valid_g, sem="relaxed")
                gl.atomic_add(d_features + (gaussian_m * channels)[:, None] + cm[None, :], d_feature, mask=valid_m, sem="relaxed")
            first -= K
