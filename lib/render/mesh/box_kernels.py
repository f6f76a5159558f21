"""Triton kernels that draw triangles. Imported by boxed.py only, inside functions.

FACES faces of one image per program, CELLS pixels of each one's box at a time, until the largest box is done. The nearest face of a pixel
is found by an atomic minimum of (bits of depth, face), so that equal depths are won by the lower face. Every operation that decides what
is covered rounds as the reference does: launch with contraction off. Positions are int64 where images are many or large.
"""

from typing import no_type_check

import triton
import triton.language as tl

from lib.render.mesh import reference

NEAR, EPSILON = tl.constexpr(reference.NEAR), tl.constexpr(reference.SOFT_EPSILON)
MARGIN, SHARPNESS = tl.constexpr(reference.SOFT_MARGIN), tl.constexpr(reference.SOFT_SHARPNESS)
NOTHING = tl.constexpr((1 << 63) - 1)
LOW_WORD = tl.constexpr(0xFFFFFFFF)
INFINITY = tl.constexpr(float("inf"))

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def load_corner(faces, face, corner: tl.constexpr, first, pixels, exists):
    """Row of a corner among the vertices of all images, and where it is on the screen."""
    row = first + tl.load(faces + 3 * face.to(tl.int64) + corner, mask=exists, other=0)
    return row, tl.load(pixels + 2 * row, mask=exists, other=0.0), tl.load(pixels + 2 * row + 1, mask=exists, other=0.0)


@triton.jit
@no_type_check
def in_front(depth, row, x, y, exists):
    """Depth of a corner, and whether a face that has it may be drawn."""
    z = tl.load(depth + row, mask=exists, other=0.0)
    return z, (z > NEAR) & (tl.abs(x) < INFINITY) & (tl.abs(y) < INFINITY)


@triton.jit
@no_type_check
def span(low, high, size, draw):
    """From floats, the first cell and the number of cells of low <= cell <= high within the image; none if not drawn."""
    first = tl.minimum(tl.maximum(low, 0.0), size)
    last = tl.maximum(tl.minimum(high, size - 1.0), -1.0)
    return tl.where(draw, first, 0.0).to(tl.int32), tl.where(draw, tl.maximum(last - first + 1.0, 0.0), 0.0).to(tl.int32)


@triton.jit
@no_type_check
def cells_at(step, low_x, low_y, across, cells, CELLS: tl.constexpr):
    """Column and row of the cells of every box that a step looks at, and which of them exist: (FACES x CELLS)."""
    cell = step + tl.arange(0, CELLS)[None, :]
    width = tl.maximum(across, 1)[:, None]
    down = cell // width
    return low_x[:, None] + cell - down * width, low_y[:, None] + down, cell < cells[:, None]


@triton.jit(do_not_specialize=["points", "count", "width", "height"])
@no_type_check
def hit(pixels, depth, faces, keep, nearest, points, count, width, height, FACES: tl.constexpr, CELLS: tl.constexpr):
    """Lowers (depth, face) of every pixel centre that a face covers."""
    image = tl.program_id(1).to(tl.int64)
    face = tl.program_id(0) * FACES + tl.arange(0, FACES)
    exists = face < count
    exists = exists & (tl.load(keep + image * count + face, mask=exists, other=0) != 0)
    first = image * points
    a, ax, ay = load_corner(faces, face, 0, first, pixels, exists)
    b, bx, by = load_corner(faces, face, 1, first, pixels, exists)
    c, cx, cy = load_corner(faces, face, 2, first, pixels, exists)
    az, draw_a = in_front(depth, a, ax, ay, exists)
    bz, draw_b = in_front(depth, b, bx, by, exists)
    cz, draw_c = in_front(depth, c, cx, cy, exists)
    ux, uy, vx, vy = bx - ax, by - ay, cx - ax, cy - ay
    area = ux * vy - uy * vx
    draw = exists & draw_a & draw_b & draw_c & (area != 0.0)
    inverse = tl.div_rn(1.0, tl.where(draw, area, 1.0))
    low_x, across = span(
        tl.ceil(tl.minimum(tl.minimum(ax, bx), cx) - 0.5), tl.floor(tl.maximum(tl.maximum(ax, bx), cx) - 0.5), width.to(tl.float32), draw)
    low_y, down = span(
        tl.ceil(tl.minimum(tl.minimum(ay, by), cy) - 0.5), tl.floor(tl.maximum(tl.maximum(ay, by), cy) - 0.5), height.to(tl.float32), draw)
    cells = across * down
    most = tl.max(cells, 0)
    # Second and third barycentric coordinate as linear maps of pixel - first corner.
    second_x, second_y, third_x, third_y = vy * inverse, -vx * inverse, -uy * inverse, ux * inverse
    step = 0
    while step < most:
        column, row, here = cells_at(step, low_x, low_y, across, cells, CELLS)
        x = column.to(tl.float32) + 0.5 - ax[:, None]
        y = row.to(tl.float32) + 0.5 - ay[:, None]
        second = x * second_x[:, None] + y * second_y[:, None]
        third = x * third_x[:, None] + y * third_y[:, None]
        one = 1.0 - second - third
        covered = here & (one >= 0.0) & (second >= 0.0) & (third >= 0.0)
        z = one * az[:, None] + second * bz[:, None] + third * cz[:, None]
        key = (z.to(tl.int32, bitcast=True).to(tl.int64) << 32) | face[:, None].to(tl.int64)
        tl.atomic_min(nearest + (image * height + row) * width + column, key, mask=covered, sem="relaxed")
        step += CELLS


@triton.jit
@no_type_check
def barycentrics(column, row, ax, ay, bx, by, cx, cy):
    """Of pixel centres, and what they are made of."""
    ux, uy, vx, vy = bx - ax, by - ay, cx - ax, cy - ay
    x, y = column.to(tl.float32) + 0.5 - ax, row.to(tl.float32) + 0.5 - ay
    area = ux * vy - uy * vx
    area = tl.where(area == 0.0, INFINITY, area)
    second, third = tl.div_rn(x * vy - y * vx, area), tl.div_rn(ux * y - uy * x, area)
    return 1.0 - second - third, second, third, ux, uy, vx, vy, area


@triton.jit(do_not_specialize=["points", "channels", "width", "height"])
@no_type_check
def shade(
    nearest, pixels, depth, attributes, faces, face_image, image, depth_image, points, channels, width, height, BLOCK: tl.constexpr,
):
    """Nearest face, interpolated attributes and depth of BLOCK pixels; zeros where there is none."""
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < width * height
    place = picture * width * height + pixel
    key = tl.load(nearest + place, mask=inside, other=NOTHING)
    covered = key != NOTHING
    face = tl.where(covered, key & LOW_WORD, 0).to(tl.int32)
    tl.store(face_image + place, tl.where(covered, face, -1), mask=inside)
    first = picture * points
    a, ax, ay = load_corner(faces, face, 0, first, pixels, covered)
    b, bx, by = load_corner(faces, face, 1, first, pixels, covered)
    c, cx, cy = load_corner(faces, face, 2, first, pixels, covered)
    one, second, third, _, _, _, _, _ = barycentrics(pixel % width, pixel // width, ax, ay, bx, by, cx, cy)
    az = tl.load(depth + a, mask=covered, other=0.0)
    bz = tl.load(depth + b, mask=covered, other=0.0)
    cz = tl.load(depth + c, mask=covered, other=0.0)
    tl.store(depth_image + place, tl.where(covered, az * one + bz * second + cz * third, 0.0), mask=inside)
    target = image + picture * channels * width * height + pixel
    channel = 0
    while channel < channels:
        at_a = tl.load(attributes + a * channels + channel, mask=covered, other=0.0)
        at_b = tl.load(attributes + b * channels + channel, mask=covered, other=0.0)
        at_c = tl.load(attributes + c * channels + channel, mask=covered, other=0.0)
        tl.store(target, tl.where(covered, at_a * one + at_b * second + at_c * third, 0.0), mask=inside)
        target += width * height
        channel += 1


@triton.jit(do_not_specialize=["points", "channels", "width", "height"])
@no_type_check
def shade_backward(
    face_image, pixels, depth, attributes, faces, d_image, d_depth_image, d_pixels, d_depth, d_attributes, points, channels, width, height,
    BLOCK: tl.constexpr,
):
    """Adds up gradients of attributes, depths and, through barycentric coordinates w, of corners: dw_i / dcorner_j = -w_j dw_i / dpixel."""
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < width * height
    place = picture * width * height + pixel
    face = tl.load(face_image + place, mask=inside, other=-1)
    covered = face >= 0
    if tl.max(covered.to(tl.int32), 0) > 0:
        first = picture * points
        a, ax, ay = load_corner(faces, face, 0, first, pixels, covered)
        b, bx, by = load_corner(faces, face, 1, first, pixels, covered)
        c, cx, cy = load_corner(faces, face, 2, first, pixels, covered)
        one, second, third, ux, uy, vx, vy, area = barycentrics(pixel % width, pixel // width, ax, ay, bx, by, cx, cy)
        upstream = tl.load(d_depth_image + place, mask=covered, other=0.0)
        d_one = upstream * tl.load(depth + a, mask=covered, other=0.0)
        d_second = upstream * tl.load(depth + b, mask=covered, other=0.0)
        d_third = upstream * tl.load(depth + c, mask=covered, other=0.0)
        some = covered & (upstream != 0.0)
        tl.atomic_add(d_depth + a, upstream * one, mask=some, sem="relaxed")
        tl.atomic_add(d_depth + b, upstream * second, mask=some, sem="relaxed")
        tl.atomic_add(d_depth + c, upstream * third, mask=some, sem="relaxed")
        source = d_image + picture * channels * width * height + pixel
        channel = 0
        while channel < channels:
            upstream = tl.load(source, mask=covered, other=0.0)
            d_one += upstream * tl.load(attributes + a * channels + channel, mask=covered, other=0.0)
            d_second += upstream * tl.load(attributes + b * channels + channel, mask=covered, other=0.0)
            d_third += upstream * tl.load(attributes + c * channels + channel, mask=covered, other=0.0)
            some = covered & (upstream != 0.0)
            tl.atomic_add(d_attributes + a * channels + channel, upstream * one, mask=some, sem="relaxed")
            tl.atomic_add(d_attributes + b * channels + channel, upstream * second, mask=some, sem="relaxed")
            tl.atomic_add(d_attributes + c * channels + channel, upstream * third, mask=some, sem="relaxed")
            source += width * height
            channel += 1
        d_second -= d_one
        d_third -= d_one
        along_x = tl.div_rn(d_second * vy - d_third * uy, area)  # gradient of the pixel's place
        along_y = tl.div_rn(d_third * ux - d_second * vx, area)
        some = covered & ((along_x != 0.0) | (along_y != 0.0))
        add_place(d_pixels, a, -one * along_x, -one * along_y, some)
        add_place(d_pixels, b, -second * along_x, -second * along_y, some)
        add_place(d_pixels, c, -third * along_x, -third * along_y, some)


@triton.jit
@no_type_check
def add_place(d_pixels, row, x, y, some):
    """Adds to the gradient of a corner's place on the screen."""
    tl.atomic_add(d_pixels + 2 * row, x, mask=some, sem="relaxed")
    tl.atomic_add(d_pixels + 2 * row + 1, y, mask=some, sem="relaxed")


@triton.jit
@no_type_check
def to_square(pixel, size):
    """Pixels to [-1, 1]."""
    return tl.div_rn(2.0 * pixel, size) - 1.0


@triton.jit
@no_type_check
def soft_span(a, b, c, size, draw):
    """Cells of a side of the box enlarged by MARGIN, whose centres (2 i + 1) / size - 1 are in [low, high)."""
    low = tl.ceil(((tl.minimum(tl.minimum(a, b), c) - MARGIN + 1.0) * size - 1.0) / 2.0)
    high = tl.ceil(((tl.maximum(tl.maximum(a, b), c) + MARGIN + 1.0) * size - 1.0) / 2.0)
    return span(low, high - 1.0, size, draw)


@triton.jit
@no_type_check
def soft_faces(pixels, depth, faces, points, count, width, height, FACES: tl.constexpr):
    """Corners of FACES faces, in [-1, 1], and their enlarged boxes."""
    first = tl.program_id(1).to(tl.int64) * points
    face = tl.program_id(0) * FACES + tl.arange(0, FACES)
    exists = face < count
    a, ax, ay = load_corner(faces, face, 0, first, pixels, exists)
    b, bx, by = load_corner(faces, face, 1, first, pixels, exists)
    c, cx, cy = load_corner(faces, face, 2, first, pixels, exists)
    _, draw_a = in_front(depth, a, ax, ay, exists)
    _, draw_b = in_front(depth, b, bx, by, exists)
    _, draw_c = in_front(depth, c, cx, cy, exists)
    draw = exists & draw_a & draw_b & draw_c
    across, down = width.to(tl.float32), height.to(tl.float32)
    ax, bx, cx = to_square(ax, across), to_square(bx, across), to_square(cx, across)
    ay, by, cy = to_square(ay, down), to_square(by, down), to_square(cy, down)
    low_x, cells_x = soft_span(ax, bx, cx, across, draw)
    low_y, cells_y = soft_span(ay, by, cy, down, draw)
    return a, b, c, ax, ay, bx, by, cx, cy, low_x, low_y, cells_x, cells_x * cells_y


@triton.jit
@no_type_check
def to_edge(x, y, sx, sy, ex, ey):
    """Squared distance of a point to the segment from s to e; where the nearest point is, before clamping; and 1 / squared length."""
    along_x, along_y = ex - sx, ey - sy
    off_x, off_y = x - sx, y - sy
    length = tl.maximum(along_x * along_x + along_y * along_y, EPSILON)
    position = tl.div_rn(off_x * along_x + off_y * along_y, length)
    clamped = tl.minimum(tl.maximum(position, 0.0), 1.0)
    rest_x, rest_y = off_x - clamped * along_x, off_y - clamped * along_y
    return rest_x * rest_x + rest_y * rest_y, position


@triton.jit
@no_type_check
def from_edge(upstream, position, x, y, sx, sy, ex, ey):
    """Gradients of s and e from that of the squared distance of a point to the segment."""
    along_x, along_y = ex - sx, ey - sy
    off_x, off_y = x - sx, y - sy
    squared = along_x * along_x + along_y * along_y
    clamped = tl.minimum(tl.maximum(position, 0.0), 1.0)
    rest_x, rest_y = 2.0 * upstream * (off_x - clamped * along_x), 2.0 * upstream * (off_y - clamped * along_y)
    # Of the position on the segment; it is not the best one where the segment is shorter than EPSILON allows.
    free = (position >= 0.0) & (position <= 1.0)
    d_position = tl.where(free, -(rest_x * along_x + rest_y * along_y), 0.0) / tl.maximum(squared, EPSILON)
    d_squared = tl.where(squared >= EPSILON, -d_position * position, 0.0)
    d_along_x = -clamped * rest_x + d_position * off_x + 2.0 * d_squared * along_x
    d_along_y = -clamped * rest_y + d_position * off_y + 2.0 * d_squared * along_y
    d_off_x, d_off_y = rest_x + d_position * along_x, rest_y + d_position * along_y
    return -d_off_x - d_along_x, -d_off_y - d_along_y, d_along_x, d_along_y


@triton.jit
@no_type_check
def far(squared):
    """1 - exp(-SHARPNESS squared), also where that is small."""
    x = SHARPNESS * squared
    series = x * (1.0 - x * (1.0 / 2.0) * (1.0 - x * (1.0 / 3.0) * (1.0 - x * (1.0 / 4.0) * (1.0 - x * (1.0 / 5.0)))))
    return tl.where(x < 0.1, series, 1.0 - tl.exp(-x))


@triton.jit(do_not_specialize=["points", "count", "width", "height"])
@no_type_check
def soften(
    pixels, depth, faces, face_image, log_outside, points, count, width, height, FACES: tl.constexpr, CELLS: tl.constexpr,
):
    """Adds log(1 - exp(-SHARPNESS d²)) to the pixels without a face in the enlarged boxes, d being the distance to the triangle."""
    _, _, _, ax, ay, bx, by, cx, cy, low_x, low_y, across, cells = soft_faces(pixels, depth, faces, points, count, width, height, FACES)
    first = tl.program_id(1).to(tl.int64) * width * height
    most = tl.max(cells, 0)
    step = 0
    while step < most:
        column, row, here = cells_at(step, low_x, low_y, across, cells, CELLS)
        place = first + row * width + column
        free = here & (tl.load(face_image + place, mask=here, other=0) < 0)
        if tl.max(tl.max(free.to(tl.int32), 1), 0) > 0:
            x = tl.div_rn((2 * column + 1).to(tl.float32), width.to(tl.float32)) - 1.0
            y = tl.div_rn((2 * row + 1).to(tl.float32), height.to(tl.float32)) - 1.0
            first_edge, at_first = to_edge(x, y, ax[:, None], ay[:, None], bx[:, None], by[:, None])
            second_edge, at_second = to_edge(x, y, bx[:, None], by[:, None], cx[:, None], cy[:, None])
            third_edge, at_third = to_edge(x, y, cx[:, None], cy[:, None], ax[:, None], ay[:, None])
            outside = far(tl.minimum(tl.minimum(first_edge, second_edge), third_edge))
            tl.atomic_add(log_outside + place, tl.log(tl.maximum(outside, EPSILON)), mask=free, sem="relaxed")
        step += CELLS


@triton.jit(do_not_specialize=["points", "count", "width", "height"])
@no_type_check
def soften_backward(
    pixels, depth, faces, d_log, d_pixels, points, count, width, height, FACES: tl.constexpr, CELLS: tl.constexpr,
):
    """Adds the gradients of corners from those of the logarithms; equally near edges share theirs."""
    a, b, c, ax, ay, bx, by, cx, cy, low_x, low_y, across, cells = soft_faces(pixels, depth, faces, points, count, width, height, FACES)
    first = tl.program_id(1).to(tl.int64) * width * height
    most = tl.max(cells, 0)
    dax = tl.zeros([FACES, CELLS], tl.float32)
    day, dbx, dby, dcx, dcy = dax, dax, dax, dax, dax
    step = 0
    while step < most:
        column, row, here = cells_at(step, low_x, low_y, across, cells, CELLS)
        upstream = tl.load(d_log + first + row * width + column, mask=here, other=0.0)
        if tl.max(tl.max((upstream != 0.0).to(tl.int32), 1), 0) > 0:
            x = tl.div_rn((2 * column + 1).to(tl.float32), width.to(tl.float32)) - 1.0
            y = tl.div_rn((2 * row + 1).to(tl.float32), height.to(tl.float32)) - 1.0
            first_edge, at_first = to_edge(x, y, ax[:, None], ay[:, None], bx[:, None], by[:, None])
            second_edge, at_second = to_edge(x, y, bx[:, None], by[:, None], cx[:, None], cy[:, None])
            third_edge, at_third = to_edge(x, y, cx[:, None], cy[:, None], ax[:, None], ay[:, None])
            squared = tl.minimum(tl.minimum(first_edge, second_edge), third_edge)
            outside = far(squared)
            slope = tl.where(outside >= EPSILON, SHARPNESS * (1.0 - outside) / tl.maximum(outside, EPSILON), 0.0)
            ties = (first_edge == squared).to(tl.float32) + (second_edge == squared).to(tl.float32) + (third_edge == squared).to(tl.float32)
            share = upstream * slope / tl.maximum(ties, 1.0)
            sx, sy, ex, ey = from_edge(
                tl.where(first_edge == squared, share, 0.0), at_first, x, y, ax[:, None], ay[:, None], bx[:, None], by[:, None])
            dax, day, dbx, dby = dax + sx, day + sy, dbx + ex, dby + ey
            sx, sy, ex, ey = from_edge(
                tl.where(second_edge == squared, share, 0.0), at_second, x, y, bx[:, None], by[:, None], cx[:, None], cy[:, None])
            dbx, dby, dcx, dcy = dbx + sx, dby + sy, dcx + ex, dcy + ey
            sx, sy, ex, ey = from_edge(
                tl.where(third_edge == squared, share, 0.0), at_third, x, y, cx[:, None], cy[:, None], ax[:, None], ay[:, None])
            dcx, dcy, dax, day = dcx + sx, dcy + sy, dax + ex, day + ey
        step += CELLS
    # From [-1, 1] to pixels.
    add_sum(d_pixels, a, dax, day, width, height)
    add_sum(d_pixels, b, dbx, dby, width, height)
    add_sum(d_pixels, c, dcx, dcy, width, height)


@triton.jit
@no_type_check
def add_sum(d_pixels, row, in_x, in_y, width, height):
    """Adds what all cells of a face give a corner."""
    x, y = tl.sum(in_x, 1) * 2.0 / width, tl.sum(in_y, 1) * 2.0 / height
    add_place(d_pixels, row, x, y, (x != 0.0) | (y != 0.0))
