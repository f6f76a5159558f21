"""Triton kernels of augmentation.py: the zoom and its gradient, one pass over memory each. Imported there only, in functions.

Nearest resampling takes zoomed pixel p of `size` from pixel floor(p count / size) of `count`. So pixel s has become the zoomed pixels from
ceil(s size / count) on, up to that of s + 1: at most two each way where size <= 2 count. Gradients are gathered, so the same input gives the
same bits: those of adding up columns, then rows.
"""

from typing import no_type_check

import triton
import triton.language as tl

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def load_window(windows, picture):
    """First row, first column, and size of the zoomed picture, in pixels."""
    return tl.load(windows + picture * 3), tl.load(windows + picture * 3 + 1), tl.load(windows + picture * 3 + 2)


@triton.jit
@no_type_check
def zoom(image, windows, out, count, PADDING: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """out = the window of the zoomed image, PADDING where there is none; BLOCK pixels of all channels of a picture."""
    picture = tl.program_id(1)
    top, left, size = load_window(windows, picture)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // count + top, pixel % count + left
    exists = pixel < count * count
    inside = exists & (row >= 0) & (row < size) & (column >= 0) & (column < size)
    row, column = tl.where(inside, row, 0), tl.where(inside, column, 0)
    source = (row * count // size) * count + column * count // size
    plane = picture.to(tl.int64) * CHANNELS * count * count
    for _ in range(CHANNELS):
        value = tl.load(image + plane + source, mask=inside, other=PADDING)
        tl.store(out + plane + pixel, value, mask=exists)
        plane += count * count


@triton.jit
@no_type_check
def zoom_gradients(upstream, windows, out, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """out = what each pixel of the image gets from the at most two by two that are made of it."""
    picture = tl.program_id(1)
    top, left, size = load_window(windows, picture)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // count, pixel % count
    exists = pixel < count * count
    upper, lower = (row * size + (count - 1)) // count, ((row + 1) * size + (count - 1)) // count
    first, last = (column * size + (count - 1)) // count, ((column + 1) * size + (count - 1)) // count
    upper, lower, first, last = upper - top, tl.minimum(lower - top, count), first - left, tl.minimum(last - left, count)
    in_upper, in_lower = exists & (upper >= 0) & (upper < lower), exists & (upper + 1 >= 0) & (upper + 1 < lower)
    in_first, in_last = (first >= 0) & (first < last), (first + 1 >= 0) & (first + 1 < last)
    target = upper * count + first
    plane = picture.to(tl.int64) * CHANNELS * count * count
    for _ in range(CHANNELS):
        source = upstream + plane + target
        above = tl.load(source, mask=in_upper & in_first, other=0.0) + tl.load(source + 1, mask=in_upper & in_last, other=0.0)
        source += count
        below = tl.load(source, mask=in_lower & in_first, other=0.0) + tl.load(source + 1, mask=in_lower & in_last, other=0.0)
        tl.store(out + plane + pixel, above + below, mask=exists)
        plane += count * count
