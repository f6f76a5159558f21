"""Triton kernels that project Gaussians, count the tiles of their ellipses, and take gradients back. Imported by tiles.py only, in functions.

A Gaussian on the image plane is a row [x, y, qa, qb, qc, lo, hx, hy], so that alpha = 2^(lo + qa dx² + qb dx dy + qc dy²) at an offset
(dx, dy) from the mean (x, y), and hx, hy are the half extents of the ellipse in which alpha reaches 1/255. What has no tile is a row that
gives alpha 0, whatever was wrong with its inputs. Tiles are found row by row of tiles, not tile by tile: a Gaussian over the whole picture
costs as many steps as the picture has rows of tiles.

Kernels that count and kernels that list must find the same tiles to the bit: both call `tile_rows` and `row_span` on the stored values,
round divisions and roots correctly, and are launched with the options EXACTLY, as contraction would differ from kernel to kernel.
"""

import math
from typing import no_type_check

import triton
import triton.language as tl

from lib.render.gaussian.projection import ALPHA_MIN, CLIP_BLOCK, FRUSTUM_MARGIN, LOW_PASS, NEAR

EXACTLY = (("enable_fp_fusion", False),)
SLACK = 0.01  # of the squared Mahalanobis distance at which a Gaussian ends: what rounding may add before a tile is left out
LOG2_E = math.log2(math.e)

MIN_DEPTH, MIN_ALPHA, BLUR, MARGIN = tl.constexpr(NEAR), tl.constexpr(ALPHA_MIN), tl.constexpr(LOW_PASS), tl.constexpr(0.5 * FRUSTUM_MARGIN)
BLOCK_SIDE = tl.constexpr(CLIP_BLOCK)
HALF_BITS = tl.constexpr(0.5 * LOG2_E)  # from squared Mahalanobis distances to exponents of 2
REACH = tl.constexpr(math.log2(1.0 / ALPHA_MIN) + 0.5 * SLACK * LOG2_E)  # of the exponent from opacity 1 to the end of the ellipse
SQUARED = tl.constexpr(2.0 / LOG2_E)  # and back
ROUNDING = tl.constexpr(1e-6)  # relative to the coordinates: matters for thin ones and for means far outside of the picture
NOTHING = tl.constexpr(-1e4)  # a log opacity that gives alpha 0
RADIUS_MAX = tl.constexpr(float(1 << 24))  # pixels; still exact in float32
FLAT = tl.constexpr(1e-30)  # a smaller conic is that of a Gaussian beyond all measure
FIRST_BIT = tl.constexpr(1)
LENGTHS = tl.constexpr(2)  # where lengths begin in counts: behind the number of pairs, and how many of them are listed
INFINITY = tl.constexpr(float("inf"))

# A constexpr stands to the right of a tensor: to its left the interpreter would make a constexpr of the result.
# Loops are `while`: the interpreter of Triton 3.6 cannot take the end of a range from the device with recent NumPy.
# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def dot(a, b):
    """Of vectors: tuples of three."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
@no_type_check
def cross(a, b):
    """Of vectors: tuples of three."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@triton.jit
@no_type_check
def load3(place, mask):
    """A vector per lane, zero where masked."""
    return tl.load(place, mask=mask, other=0.0), tl.load(place + 1, mask=mask, other=0.0), tl.load(place + 2, mask=mask, other=0.0)


@triton.jit
@no_type_check
def store3(place, vector, mask):
    """A vector per lane."""
    tl.store(place, vector[0], mask=mask)
    tl.store(place + 1, vector[1], mask=mask)
    tl.store(place + 2, vector[2], mask=mask)


@triton.jit
@no_type_check
def load4(place, mask):
    """A quaternion (w, x, y, z) per lane, zero where masked."""
    return (
        tl.load(place, mask=mask, other=0.0), tl.load(place + 1, mask=mask, other=0.0),
        tl.load(place + 2, mask=mask, other=0.0), tl.load(place + 3, mask=mask, other=0.0),
    )


@triton.jit
@no_type_check
def load_camera(world_to_camera, intrinsics, image):
    """Rows of the rotation, translation, and (fx, fy, cx, cy) of one camera."""
    pose, lens = world_to_camera + image * 12, intrinsics + image * 9
    row0 = (tl.load(pose), tl.load(pose + 1), tl.load(pose + 2))
    row1 = (tl.load(pose + 4), tl.load(pose + 5), tl.load(pose + 6))
    row2 = (tl.load(pose + 8), tl.load(pose + 9), tl.load(pose + 10))
    shift = (tl.load(pose + 3), tl.load(pose + 7), tl.load(pose + 11))
    return row0, row1, row2, shift, (tl.load(lens), tl.load(lens + 4), tl.load(lens + 2), tl.load(lens + 5))


@triton.jit
@no_type_check
def rotation(quat):
    """Columns of the rotation matrix; the quaternion is not normalised."""
    w, x, y, z = quat[0], quat[1], quat[2], quat[3]
    column0 = (x * x - y * y - z * z + w * w, 2.0 * (x * y + z * w), 2.0 * (x * z - y * w))
    column1 = (2.0 * (x * y - z * w), y * y - x * x - z * z + w * w, 2.0 * (y * z + x * w))
    column2 = (2.0 * (x * z + y * w), 2.0 * (y * z - x * w), z * z - x * x - y * y + w * w)
    return column0, column1, column2


@triton.jit
@no_type_check
def scaled(vector, factor):
    """A vector times a number."""
    return vector[0] * factor, vector[1] * factor, vector[2] * factor


@triton.jit
@no_type_check
def slopes(point, lens, width, height):
    """Depth (1 where too near), x/z and y/z, the same limited to where the Jacobian is taken, and where the limit does nothing."""
    z = tl.where(point[2] > MIN_DEPTH, point[2], 1.0)
    u, v = tl.div_rn(point[0], z), tl.div_rn(point[1], z)
    fx, fy, cx, cy = lens[0], lens[1], lens[2], lens[3]
    margin_x, margin_y = width.to(tl.float32) * MARGIN / fx, height.to(tl.float32) * MARGIN / fy
    low_u, high_u = -cx / fx - margin_x, (width.to(tl.float32) - cx) / fx + margin_x
    low_v, high_v = -cy / fy - margin_y, (height.to(tl.float32) - cy) / fy + margin_y
    free_u, free_v = (u >= low_u) & (u <= high_u), (v >= low_v) & (v <= high_v)
    limited_u = tl.where(free_u, u, tl.where(u < low_u, low_u, high_u))
    limited_v = tl.where(free_v, v, tl.where(v < low_v, low_v, high_v))
    return z, u, v, limited_u, limited_v, free_u, free_v


@triton.jit
@no_type_check
def covariance(spread_x, spread_y):
    """(a, b, c) of the blurred ellipse of two rows J W R S, its determinant, and the rows' cross product."""
    a, b, c = dot(spread_x, spread_x) + BLUR, dot(spread_x, spread_y), dot(spread_y, spread_y) + BLUR
    # a c - b², by Lagrange's identity: the difference loses all digits of thin and long Gaussians, and its sign.
    normal = cross(spread_x, spread_y)
    return a, b, c, dot(normal, normal) + (a + c - BLUR) * BLUR, normal


@triton.jit
@no_type_check
def limit(value, low, high):
    """Between low and high, low where it is NaN: may then become an integer."""
    value = tl.where(value > low, value, low)
    return tl.where(value < high, value, high)


@triton.jit
@no_type_check
def clip_range(mean, radius):
    """First and last pixel of the blocks that meet three standard deviations."""
    low = tl.floor((mean - radius - 0.5) * (1.0 / BLOCK_SIDE)) * BLOCK_SIDE
    return low, tl.floor((mean + radius - 0.5 + (BLOCK_SIDE - 1)) * (1.0 / BLOCK_SIDE)) * BLOCK_SIDE - 1.0


@triton.jit
@no_type_check
def tile_rows(y, hy, radius, height, CLIP: tl.constexpr, TILE_Y: tl.constexpr):
    """First row of tiles whose pixel centres the ellipse may reach, and how many there are: always within the picture."""
    spare = (tl.abs(y) + hy) * ROUNDING
    low, high = tl.ceil(y - hy - spare - 0.5), tl.floor(y + hy + spare - 0.5)
    if CLIP:
        block_low, block_high = clip_range(y, radius)
        low, high = tl.maximum(low, block_low), tl.minimum(high, block_high)
    end = height.to(tl.float32)
    first, last = limit(low, 0.0, end).to(tl.int32), limit(high, -1.0, end - 1.0).to(tl.int32)
    return first // TILE_Y, tl.where((hy > 0.0) & (first <= last), last // TILE_Y - first // TILE_Y + 1, 0)


@triton.jit
@no_type_check
def row_span(
    x, y, qa, qb, qc, lo, hx, hy, radius, row, width, height, CLIP: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr,
):
    """First tile column in a row of tiles that the ellipse of alpha >= 1/255 meets, and how many follow each other: within the picture.

    Between the first and the last line of pixel centres the ellipse is convex, so its columns are an interval, whose ends are at the
    ellipse's own outermost points or, where those lie outside, at the nearer line. The half width of a line is in terms of the height,
    and not of a c - b², which cancels for thin ones.
    """
    low = (row * TILE_Y).to(tl.float32)
    high = tl.minimum(row * TILE_Y + (TILE_Y - 1), height - 1).to(tl.float32)
    if CLIP:
        block_low, block_high = clip_range(y, radius)
        low, high = tl.maximum(low, block_low), tl.minimum(high, block_high)
    spare = (tl.abs(y) + hy) * ROUNDING
    top, bottom = low + 0.5 - y - spare, high + 0.5 - y + spare
    meets = (low <= high) & (top <= hy) & (bottom >= -hy)
    top, bottom = tl.maximum(top, -hy), tl.minimum(bottom, hy)

    at_right = -tl.div_rn(0.5 * qb, qc) * hx  # where the ellipse is rightmost; leftmost at the opposite point
    slope, widest, inverse = tl.div_rn(0.5 * qb, qa), tl.div_rn(lo + REACH, -qa), tl.div_rn(hx * 0.0 + 1.0, hy)
    right_y, left_y = tl.minimum(tl.maximum(at_right, top), bottom), tl.minimum(tl.maximum(-at_right, top), bottom)
    right_part, left_part = right_y * inverse, left_y * inverse
    right = tl.sqrt_rn(widest * tl.maximum(1.0 - right_part * right_part, 0.0)) - slope * right_y
    left = -tl.sqrt_rn(widest * tl.maximum(1.0 - left_part * left_part, 0.0)) - slope * left_y

    spare = (tl.abs(x) + hx) * ROUNDING
    left, right = tl.ceil(x + left - spare - 0.5), tl.floor(x + right + spare - 0.5)
    if CLIP:
        block_low, block_high = clip_range(x, radius)
        left, right = tl.maximum(left, block_low), tl.minimum(right, block_high)
    end = width.to(tl.float32)
    first, last = limit(left, 0.0, end).to(tl.int32), limit(right, -1.0, end - 1.0).to(tl.int32)
    return first // TILE_X, tl.where(meets & (first <= last), last // TILE_X - first // TILE_X + 1, 0)


@triton.jit
@no_type_check
def block_columns(x, hx, width):
    """First column of blocks of tiles that an ellipse may reach, and how many there are: always within the picture."""
    end = width.to(tl.float32)
    first = limit(tl.floor(x - hx - 1.0), 0.0, end - 1.0).to(tl.int32) // BLOCK_SIDE
    return first, limit(tl.ceil(x + hx + 1.0), 0.0, end - 1.0).to(tl.int32) // BLOCK_SIDE - first + 1


@triton.jit
@no_type_check
def tiles_of_blocks(
    x, y, qa, qb, qc, lo, hx, hy, radius, row, columns, width, height, CLIP: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr,
):
    """Which tiles of the blocks (row, columns) the ellipses reach, as bits: (Gaussians x columns)."""
    bits = columns * 0
    for down in tl.static_range(BLOCK_SIDE // TILE_Y):
        tile_row = row * (BLOCK_SIDE // TILE_Y) + down
        first, length = row_span(x, y, qa, qb, qc, lo, hx, hy, radius, tile_row, width, height, CLIP, TILE_X, TILE_Y)
        for across in tl.static_range(BLOCK_SIDE // TILE_X):
            tile = columns * (BLOCK_SIDE // TILE_X) + across - first[:, None]
            bits |= tl.where((tile >= 0) & (tile < length[:, None]), FIRST_BIT << (down * (BLOCK_SIDE // TILE_X) + across), 0)
    return bits


@triton.jit
@no_type_check
def ones_in(bits):
    """How many of 8 bits are set."""
    bits -= (bits >> 1) & 0x55
    bits = (bits & 0x33) + ((bits >> 2) & 0x33)
    return (bits + (bits >> 4)) & 0x0F


@triton.jit
@no_type_check
def load_row(geometry, gaussian, mask):
    """A row [x, y, qa, qb, qc, lo, hx, hy] per lane; what is masked has no tile."""
    place = geometry + gaussian * 8
    return (
        tl.load(place, mask=mask, other=0.0), tl.load(place + 1, mask=mask, other=0.0), tl.load(place + 2, mask=mask, other=-1.0),
        tl.load(place + 3, mask=mask, other=0.0), tl.load(place + 4, mask=mask, other=-1.0), tl.load(place + 5, mask=mask, other=NOTHING),
        tl.load(place + 6, mask=mask, other=-1.0), tl.load(place + 7, mask=mask, other=-1.0),
    )


@triton.jit(do_not_specialize=["count", "width", "height"])
@no_type_check
def project_forward(
    means, quats, scales, opacities, world_to_camera, intrinsics, geometry, depths, radii, counts, count, width, height,
    SHARED: tl.constexpr, CLIP: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Rows, camera depths and radii (0 where culled) of BLOCK Gaussians in one image; counts them in blocks of tiles, and their tiles."""
    image = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = lane < count
    target = image * count + lane
    source = lane.to(tl.int64) if SHARED else target
    mean, quat, scale = load3(means + source * 3, exists), load4(quats + source * 4, exists), load3(scales + source * 3, exists)
    opacity = tl.load(opacities + source, mask=exists, other=0.0)
    view0, view1, view2, shift, lens = load_camera(world_to_camera, intrinsics, image)

    point = (dot(view0, mean) + shift[0], dot(view1, mean) + shift[1], dot(view2, mean) + shift[2])
    z, u, v, limited_u, limited_v, _, _ = slopes(point, lens, width, height)
    column0, column1, column2 = rotation(quat)
    axis0, axis1, axis2 = scaled(column0, scale[0]), scaled(column1, scale[1]), scaled(column2, scale[2])
    axes_z = (dot(view2, axis0), dot(view2, axis1), dot(view2, axis2))
    per_x, per_y = tl.div_rn(lens[0] + z * 0.0, z), tl.div_rn(lens[1] + z * 0.0, z)
    spread_x = (
        per_x * (dot(view0, axis0) - limited_u * axes_z[0]), per_x * (dot(view0, axis1) - limited_u * axes_z[1]),
        per_x * (dot(view0, axis2) - limited_u * axes_z[2]),
    )
    spread_y = (
        per_y * (dot(view1, axis0) - limited_v * axes_z[0]), per_y * (dot(view1, axis1) - limited_v * axes_z[1]),
        per_y * (dot(view1, axis2) - limited_v * axes_z[2]),
    )
    a, b, c, determinant, _ = covariance(spread_x, spread_y)
    half_difference = 0.5 * (a - c)
    longest = 0.5 * (a + c) + tl.sqrt_rn(tl.maximum(half_difference * half_difference + b * b, 0.1))
    radius = tl.ceil(3.0 * tl.sqrt_rn(longest))

    x, y = lens[0] * u + lens[2], lens[1] * v + lens[3]
    qa, qb, qc = tl.div_rn(c * -HALF_BITS, determinant), tl.div_rn(b * (2.0 * HALF_BITS), determinant), tl.div_rn(a * -HALF_BITS, determinant)
    lo = tl.log2(tl.where(opacity >= MIN_ALPHA, opacity, 1.0))
    reach = (lo + REACH) * SQUARED
    hx, hy = tl.sqrt_rn(reach * a), tl.sqrt_rn(reach * c)

    # Infinite or NaN if any of them is, and then not less than infinity.
    finite = tl.abs(x) + tl.abs(y) + tl.abs(point[2]) + tl.abs(lo) + hx + hy + tl.abs(b) + determinant + radius
    drawn = exists & (point[2] > MIN_DEPTH) & (opacity >= MIN_ALPHA) & (finite < INFINITY) & (qa < -FLAT) & (qc < -FLAT)
    radius = limit(radius, 0.0, RADIUS_MAX)
    blocks_x, blocks_y = (width + BLOCK_SIDE - 1) // BLOCK_SIDE, (height + BLOCK_SIDE - 1) // BLOCK_SIDE
    first_row, rows = tile_rows(y, tl.where(drawn, hy, -1.0), radius, height, CLIP, BLOCK_SIDE)
    first_column, columns = block_columns(x, hx, width)
    tiles = rows * 0
    most_rows = tl.max(rows, 0)
    most_columns = tl.max(tl.where(rows > 0, columns, 0), 0)
    step = 0
    while step < most_rows:
        place = counts + LENGTHS + image * blocks_x * blocks_y + (first_row + step) * blocks_x + first_column
        column = 0
        while column < most_columns:
            which = column + tl.arange(0, COLUMNS)[None, :]
            bits = tiles_of_blocks(
                x, y, qa, qb, qc, lo, hx, hy, radius, first_row + step, first_column[:, None] + which, width, height, CLIP, TILE_X, TILE_Y)
            bits = tl.where((step < rows)[:, None] & (which < columns[:, None]), bits, 0)
            tiles += tl.sum(ones_in(bits), 1)
            tl.atomic_add(place[:, None] + which, which.to(tl.int64) * 0 + 1, mask=bits != 0, sem="relaxed")
            column += COLUMNS
        step += 1
    tl.atomic_add(counts, tl.sum(tiles.to(tl.int64), 0), sem="relaxed")
    drawn = tiles > 0
    row = geometry + target * 8
    tl.store(row, tl.where(drawn, x, 0.0), mask=exists)
    tl.store(row + 1, tl.where(drawn, y, 0.0), mask=exists)
    tl.store(row + 2, tl.where(drawn, qa, -1.0), mask=exists)
    tl.store(row + 3, tl.where(drawn, qb, 0.0), mask=exists)
    tl.store(row + 4, tl.where(drawn, qc, -1.0), mask=exists)
    tl.store(row + 5, tl.where(drawn, lo, NOTHING), mask=exists)
    tl.store(row + 6, tl.where(drawn, hx, -1.0), mask=exists)
    tl.store(row + 7, tl.where(drawn, hy, -1.0), mask=exists)
    tl.store(depths + target, tl.where(drawn, point[2], INFINITY), mask=exists)
    tl.store(radii + target, tl.where(drawn, radius, 0.0).to(tl.int32), mask=exists)


@triton.jit
@no_type_check
def store_sums(place, vector):
    """Sums of a vector over the lanes."""
    tl.store(place, tl.sum(vector[0], 0))
    tl.store(place + 1, tl.sum(vector[1], 0))
    tl.store(place + 2, tl.sum(vector[2], 0))


@triton.jit
@no_type_check
def kept(live, vector):
    """The vector, zero where nothing was drawn."""
    return tl.where(live, vector[0], 0.0), tl.where(live, vector[1], 0.0), tl.where(live, vector[2], 0.0)


@triton.jit
@no_type_check
def plus(a, b):
    """Sum of vectors."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit(do_not_specialize=["count", "images", "width", "height"])
@no_type_check
def project_backward(
    means, quats, scales, opacities, world_to_camera, intrinsics, radii, d_geometry, d_means, d_quats, d_scales, d_opacities, d_poses,
    count, images, width, height, SHARED: tl.constexpr, POSE: tl.constexpr, BLOCK: tl.constexpr,
):
    """Gradients of BLOCK Gaussians of one cloud, summed over all images if SHARED; with POSE also each program's part of the cameras'.

    Of every Gaussian and image a row [m0, sx, sy, sxx, sxy, syy, -, -]: sums over pixels of dL/dpower times 1, dx, dy, dx², dx dy, dy²,
    where the power is the natural logarithm of alpha, and (dx, dy) from the pixel to the mean.
    """
    program = tl.program_id(0)
    cloud = tl.program_id(1).to(tl.int64)
    lane = program * BLOCK + tl.arange(0, BLOCK)
    exists = lane < count
    source = cloud * count + lane
    mean, quat, scale = load3(means + source * 3, exists), load4(quats + source * 4, exists), load3(scales + source * 3, exists)
    column0, column1, column2 = rotation(quat)
    axis0, axis1, axis2 = scaled(column0, scale[0]), scaled(column1, scale[1]), scaled(column2, scale[2])

    zero = tl.zeros([BLOCK], tl.float32)
    d_mean = (zero, zero, zero)
    d_axis0 = (zero, zero, zero)
    d_axis1 = (zero, zero, zero)
    d_axis2 = (zero, zero, zero)
    d_log_opacity = zero
    seen = lane < 0
    image = cloud
    end = cloud + (images if SHARED else 1)
    while image < end:
        target = image * count + lane
        live = exists & (tl.load(radii + target, mask=exists, other=0) > 0)
        moments = d_geometry + target * 8
        m0, sx, sy = load3(moments, live)
        sxx, sxy, syy = load3(moments + 3, live)
        view0, view1, view2, shift, lens = load_camera(world_to_camera, intrinsics, image)

        point = (dot(view0, mean) + shift[0], dot(view1, mean) + shift[1], dot(view2, mean) + shift[2])
        z, u, v, limited_u, limited_v, free_u, free_v = slopes(point, lens, width, height)
        inverse_z = tl.div_rn(z * 0.0 + 1.0, z)
        per_x, per_y = lens[0] * inverse_z, lens[1] * inverse_z
        axes_x = (dot(view0, axis0), dot(view0, axis1), dot(view0, axis2))
        axes_y = (dot(view1, axis0), dot(view1, axis1), dot(view1, axis2))
        axes_z = (dot(view2, axis0), dot(view2, axis1), dot(view2, axis2))
        spread_x = scaled(plus(axes_x, scaled(axes_z, -limited_u)), per_x)
        spread_y = scaled(plus(axes_y, scaled(axes_z, -limited_v)), per_y)
        a, b, c, determinant, normal = covariance(spread_x, spread_y)
        inverse = tl.div_rn(z * 0.0 + 1.0, determinant)
        conic_a, conic_b, conic_c = c * inverse, -b * inverse, a * inverse
        # Conic times spread. Of thin and long ones the sums of products would cancel.
        across_x = scaled(plus(cross(spread_y, normal), scaled(spread_x, BLUR)), inverse)
        across_y = scaled(plus(cross(normal, spread_x), scaled(spread_y, BLUR)), inverse)

        d_x, d_y = -(conic_a * sx + conic_b * sy), -(conic_b * sx + conic_c * sy)
        # d covariance = -K G K, and d spread = 2 d covariance spread, where -2 G is [[sxx, sxy], [sxy, syy]].
        turned_x = plus(scaled(across_x, sxx), scaled(across_y, sxy))
        turned_y = plus(scaled(across_x, sxy), scaled(across_y, syy))
        d_spread_x = plus(scaled(turned_x, conic_a), scaled(turned_y, conic_b))
        d_spread_y = plus(scaled(turned_x, conic_b), scaled(turned_y, conic_c))

        d_axes_x, d_axes_y = scaled(d_spread_x, per_x), scaled(d_spread_y, per_y)  # also of the Jacobian's rows, but for the axes
        d_axes_z = plus(scaled(d_axes_x, -limited_u), scaled(d_axes_y, -limited_v))
        d_u = lens[0] * d_x - tl.where(free_u, dot(d_axes_x, axes_z), 0.0)
        d_v = lens[1] * d_y - tl.where(free_v, dot(d_axes_y, axes_z), 0.0)
        d_z = -(d_u * u + d_v * v + dot(d_spread_x, spread_x) + dot(d_spread_y, spread_y))
        d_point = kept(live, (d_u * inverse_z, d_v * inverse_z, d_z * inverse_z))

        seen = seen | live
        d_log_opacity += m0
        # Cameras and Gaussians that are not finite draw nothing, and must not get into the sums as 0 times NaN.
        d_mean = plus(d_mean, kept(live, (
            view0[0] * d_point[0] + view1[0] * d_point[1] + view2[0] * d_point[2],
            view0[1] * d_point[0] + view1[1] * d_point[1] + view2[1] * d_point[2],
            view0[2] * d_point[0] + view1[2] * d_point[1] + view2[2] * d_point[2],
        )))
        d_axis0 = plus(d_axis0, kept(live, plus(plus(
            scaled(view0, d_axes_x[0]), scaled(view1, d_axes_y[0])), scaled(view2, d_axes_z[0]))))
        d_axis1 = plus(d_axis1, kept(live, plus(plus(
            scaled(view0, d_axes_x[1]), scaled(view1, d_axes_y[1])), scaled(view2, d_axes_z[1]))))
        d_axis2 = plus(d_axis2, kept(live, plus(plus(
            scaled(view0, d_axes_x[2]), scaled(view1, d_axes_y[2])), scaled(view2, d_axes_z[2]))))
        if POSE:
            part = d_poses + (image * tl.num_programs(0) + program) * 12
            store_sums(part, kept(live, plus(scaled(mean, d_point[0]), plus(
                scaled(axis0, d_axes_x[0]), plus(scaled(axis1, d_axes_x[1]), scaled(axis2, d_axes_x[2]))))))
            store_sums(part + 3, kept(live, plus(scaled(mean, d_point[1]), plus(
                scaled(axis0, d_axes_y[0]), plus(scaled(axis1, d_axes_y[1]), scaled(axis2, d_axes_y[2]))))))
            store_sums(part + 6, kept(live, plus(scaled(mean, d_point[2]), plus(
                scaled(axis0, d_axes_z[0]), plus(scaled(axis1, d_axes_z[1]), scaled(axis2, d_axes_z[2]))))))
            store_sums(part + 9, d_point)
        image += 1

    d_scale = (dot(d_axis0, column0), dot(d_axis1, column1), dot(d_axis2, column2))
    g0, g1, g2 = scaled(d_axis0, scale[0]), scaled(d_axis1, scale[1]), scaled(d_axis2, scale[2])  # of the columns
    w, x, y, z = quat[0], quat[1], quat[2], quat[3]
    d_w = w * (g0[0] + g1[1] + g2[2]) + x * (g1[2] - g2[1]) + y * (g2[0] - g0[2]) + z * (g0[1] - g1[0])
    d_i = x * (g0[0] - g1[1] - g2[2]) + y * (g1[0] + g0[1]) + z * (g2[0] + g0[2]) + w * (g1[2] - g2[1])
    d_j = y * (g1[1] - g0[0] - g2[2]) + x * (g1[0] + g0[1]) + z * (g2[1] + g1[2]) + w * (g2[0] - g0[2])
    d_k = z * (g2[2] - g0[0] - g1[1]) + x * (g2[0] + g0[2]) + y * (g2[1] + g1[2]) + w * (g0[1] - g1[0])
    opacity = tl.load(opacities + source, mask=exists, other=1.0)
    store3(d_means + source * 3, d_mean, exists)
    tl.store(d_opacities + source, tl.where(seen, tl.div_rn(d_log_opacity, opacity), 0.0), mask=exists)
    store3(d_scales + source * 3, kept(seen, d_scale), exists)
    tl.store(d_quats + source * 4, tl.where(seen, 2.0 * d_w, 0.0), mask=exists)
    store3(d_quats + source * 4 + 1, kept(seen, (2.0 * d_i, 2.0 * d_j, 2.0 * d_k)), exists)
