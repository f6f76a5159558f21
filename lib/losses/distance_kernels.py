"""Triton kernels of `unit_distance` (perceptual.py). Imported there only, inside functions.

Images are channels-last: pixel after pixel, CHANNELS values each. A program takes ROWS pixels with all their channels (BLOCK, a power of two),
so that lengths are sums over a row of its tile. Arithmetic is float32 whatever is stored. There are no atomics: a program writes the sum of its
pixels, and the sums are added in a fixed order, so the same input gives the same bits.
"""

from typing import no_type_check

import triton
import triton.language as tl

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def load_pixels(x, offset, inside, EPSILON: tl.constexpr):
    """Feature vectors, their lengths, and what multiplies them to make their length 1; nothing where there is no pixel or channel."""
    values = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, axis=1))
    return values, length, 1.0 / (length + EPSILON)


@triton.jit
@no_type_check
def load_pair(a, b, weight, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EPSILON: tl.constexpr):
    """Of a program: both vectors of each pixel with lengths and factors, the weights, and where the pixels are stored."""
    channel, row = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    first = tl.program_id(0) * ROWS
    offset = (tl.program_id(1).to(tl.int64) * pixels + first) * CHANNELS + (row[:, None] * CHANNELS + channel[None, :])
    inside = (row < pixels - first)[:, None] & (channel < CHANNELS)[None, :]
    own, length, factor = load_pixels(a, offset, inside, EPSILON)
    other, _, other_factor = load_pixels(b, offset, inside, EPSILON)
    weights = tl.load(weight + channel, mask=channel < CHANNELS, other=0.0)
    return own, length, factor, own * factor[:, None] - other * other_factor[:, None], weights[None, :], offset, inside


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def sum_distances(a, b, weight, partials, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EPSILON: tl.constexpr):
    """What the pixels of a program add to the mean of their image."""
    _, _, _, difference, weights, _, _ = load_pair(a, b, weight, pixels, CHANNELS, BLOCK, ROWS, EPSILON)
    total = tl.sum(tl.sum(weights * difference * difference, axis=1), axis=0)
    tl.store(partials + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), total / pixels)


@triton.jit(do_not_specialize=["pixels", "step"])
@no_type_check
def distance_gradients(
    a, b, weight, upstream, out, pixels, step, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EPSILON: tl.constexpr,
):
    """Of the values of `a`. `upstream` has one value per image, `step` apart."""
    own, length, factor, difference, weights, offset, inside = load_pair(a, b, weight, pixels, CHANNELS, BLOCK, ROWS, EPSILON)
    scale = 2.0 * tl.load(upstream + tl.program_id(1).to(tl.int64) * step) / pixels
    of_unit = weights * difference * scale
    # The length of a zero vector has the gradient 0.
    direction = own * (1.0 / tl.where(length > 0.0, length, 1.0))[:, None]
    along = tl.sum(of_unit * own, axis=1) * factor
    gradient = factor[:, None] * (of_unit - along[:, None] * direction)
    tl.store(out + offset, gradient.to(out.dtype.element_ty), mask=inside)
