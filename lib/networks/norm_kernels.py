"""Triton kernels of norm_layers.py: instance norm and ReLU with what follows it. Imported there only, inside functions.

Images are channels-last: pixel after pixel, CHANNELS values each. A program takes BLOCK channels (a power of two) of a run of pixels, so that
a thread reads 16 bytes at a time. Arithmetic is float32 whatever is stored. There are no atomics: sums are partial sums in memory, added in a
fixed order, and gradients are gathered, so the same input gives the same bits.

`stats` holds per image the means of all channels, then the reciprocals of their standard deviations.

Bilinear x2 with align_corners=True maps output i of 2n to input i (n - 1) / (2n - 1). So output 2k lies k / (2n - 1) before input k, output
2k + 1 lies (n - 1 - k) / (2n - 1) behind it, and the weights of the neighbours beyond the border are zero:
    out[2k] = x[k] + before(k) (x[k - 1] - x[k])        out[2k + 1] = x[k] + behind(k) (x[k + 1] - x[k])
and the gradient of x[k] takes exactly the outputs 2k - 1 to 2k + 2.
"""

from typing import no_type_check

import triton
import triton.language as tl

# A constexpr stands to the right of a tensor: to its left the interpreter would make a constexpr of the result.
# Loops to an end that is known on the device only are `while`: the interpreter of Triton 3.6 cannot take it with recent NumPy.
# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def load_stats(stats, image, channel, CHANNELS: tl.constexpr):
    """Means and reciprocal standard deviations."""
    mean = tl.load(stats + image * (2 * CHANNELS) + channel, mask=channel < CHANNELS, other=0.0)
    return mean, tl.load(stats + image * (2 * CHANNELS) + CHANNELS + channel, mask=channel < CHANNELS, other=0.0)


@triton.jit
@no_type_check
def normalized(x, mean, inverse):
    """Of stored values."""
    return (x.to(tl.float32) - mean[None, :]) * inverse[None, :]


@triton.jit
@no_type_check
def relu(value):
    """NaN stays NaN, as in torch."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def sum_values(x, partials, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr):
    """Of a run of ROWS * STEPS pixels: mean, and sum of squared distances from it.

    Summed around the mean of the first ROWS pixels: large means do not cancel.
    """
    run, image = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    first = run * (ROWS * STEPS)
    count = tl.minimum(pixels - first, ROWS * STEPS)
    source = x + (image.to(tl.int64) * pixels + first) * CHANNELS + (row[:, None] * CHANNELS + channel[None, :])
    exists = (channel < CHANNELS)[None, :]
    head = tl.load(source, mask=(row < count)[:, None] & exists, other=0.0).to(tl.float32)
    shift = tl.sum(head, 0) / tl.minimum(count, ROWS).to(tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    squared = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        here = (row + step * ROWS < count)[:, None] & exists
        value = tl.load(source + step * (ROWS * CHANNELS), mask=here, other=0.0).to(tl.float32)
        value = tl.where(here, value - shift[None, :], 0.0)
        total += value
        squared += value * value
    size = count.to(tl.float32)
    mean = tl.sum(total, 0) / size
    target = partials + (image.to(tl.int64) * tl.num_programs(0) + run) * (2 * CHANNELS) + channel
    tl.store(target, shift + mean, mask=channel < CHANNELS)
    tl.store(target + CHANNELS, tl.maximum(tl.sum(squared, 0) - mean * mean * size, 0.0), mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["pixels", "runs"])
@no_type_check
def merge_runs(partials, stats, pixels, runs, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, RUN: tl.constexpr, EPS: tl.constexpr):
    """Of BLOCK channels of an image, out of the means and squares of its runs of RUN pixels."""
    image = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    source = partials + (image.to(tl.int64) * runs + row[:, None]) * (2 * CHANNELS) + channel[None, :]
    size = pixels.to(tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    first = 0
    while first < runs:
        here = (row + first < runs)[:, None] & (channel < CHANNELS)[None, :]
        share = tl.minimum(tl.maximum(pixels - (row + first) * RUN, 0), RUN).to(tl.float32) / size
        total += tl.load(source + first * (2 * CHANNELS), mask=here, other=0.0) * share[:, None]
        first += ROWS
    mean = tl.sum(total, 0)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    first = 0
    while first < runs:
        here = (row + first < runs)[:, None] & (channel < CHANNELS)[None, :]
        count = tl.minimum(tl.maximum(pixels - (row + first) * RUN, 0), RUN).to(tl.float32)
        distance = tl.load(source + first * (2 * CHANNELS), mask=here, other=0.0) - mean[None, :]
        squares = tl.load(source + first * (2 * CHANNELS) + CHANNELS, mask=here, other=0.0)
        total += tl.where(here, squares + distance * distance * count[:, None], 0.0)
        first += ROWS
    target = stats + image * (2 * CHANNELS) + channel
    tl.store(target, mean, mask=channel < CHANNELS)
    tl.store(target + CHANNELS, 1.0 / tl.sqrt(tl.sum(total, 0) / size + EPS), mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def apply(x, stats, out, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """ReLU of the normalised values of ROWS pixels."""
    image = tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = (row < pixels)[:, None] & (channel < CHANNELS)[None, :]
    start = (image.to(tl.int64) * pixels + tl.program_id(0) * ROWS) * CHANNELS
    place = tl.arange(0, ROWS)[:, None] * CHANNELS + channel[None, :]
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    value = normalized(tl.load(x + start + place, mask=here, other=0.0), mean, inverse)
    tl.store(out + start + place, relu(value).to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def sum_gradients(
    x, stats, upstream, partials, pixels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):
    """Of a run of ROWS * STEPS pixels: the gradient behind the ReLU summed, and summed times the normalised values."""
    run, image = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    first = run * (ROWS * STEPS)
    count = tl.minimum(pixels - first, ROWS * STEPS)
    start = (image.to(tl.int64) * pixels + first) * CHANNELS
    place = row[:, None] * CHANNELS + channel[None, :]
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    product = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        here = (row + step * ROWS < count)[:, None] & (channel < CHANNELS)[None, :]
        value = normalized(tl.load(x + start + place + step * (ROWS * CHANNELS), mask=here, other=0.0), mean, inverse)
        gradient = tl.load(upstream + start + place + step * (ROWS * CHANNELS), mask=here, other=0.0).to(tl.float32)
        gradient = tl.where(value > 0.0, gradient, 0.0)
        total += gradient
        product += gradient * value
    target = partials + (image.to(tl.int64) * tl.num_programs(0) + run) * (2 * CHANNELS) + channel
    tl.store(target, tl.sum(total, 0), mask=channel < CHANNELS)
    tl.store(target + CHANNELS, tl.sum(product, 0), mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def apply_gradients(x, stats, upstream, sums, out, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Of ROWS pixels before the norm, out of the gradient behind the ReLU and its two sums. `out` may be `upstream`."""
    image = tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = (row < pixels)[:, None] & (channel < CHANNELS)[None, :]
    start = (image.to(tl.int64) * pixels + tl.program_id(0) * ROWS) * CHANNELS
    place = tl.arange(0, ROWS)[:, None] * CHANNELS + channel[None, :]
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    total, product = load_stats(sums, image, channel, CHANNELS)
    size = pixels.to(tl.float32)
    value = normalized(tl.load(x + start + place, mask=here, other=0.0), mean, inverse)
    gradient = tl.load(upstream + start + place, mask=here, other=0.0).to(tl.float32)
    gradient = tl.where(value > 0.0, gradient, 0.0)
    gradient = (gradient - (total / size)[None, :] - value * (product / size)[None, :]) * inverse[None, :]
    tl.store(out + start + place, gradient.to(out.dtype.element_ty), mask=here)


@triton.jit
@no_type_check
def before(index, size):
    """How far output 2 * index lies before input `index`; 0 for the first."""
    return index.to(tl.float32) / (2 * size - 1).to(tl.float32)


@triton.jit
@no_type_check
def behind(index, size):
    """How far output 2 * index + 1 lies behind input `index`; 0 for the last."""
    return (size - 1 - index).to(tl.float32) / (2 * size - 1).to(tl.float32)


@triton.jit
@no_type_check
def widened(x, mean, inverse, here, columns, width, CHANNELS: tl.constexpr):
    """The even and the odd columns that a row of inputs gives; `x` points at the channels of the row's first column."""
    value = relu(normalized(tl.load(x + columns[:, None] * CHANNELS, mask=here, other=0.0), mean, inverse))
    left = tl.load(x + tl.maximum(columns - 1, 0)[:, None] * CHANNELS, mask=here, other=0.0)
    left = relu(normalized(left, mean, inverse))
    right = tl.load(x + tl.minimum(columns + 1, width - 1)[:, None] * CHANNELS, mask=here, other=0.0)
    right = relu(normalized(right, mean, inverse))
    return value + before(columns, width)[:, None] * (left - value), value + behind(columns, width)[:, None] * (right - value)


@triton.jit(do_not_specialize=["width", "height"])
@no_type_check
def grow(x, stats, out, width, height, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Bilinear x2 of the ReLU of the normalised values: outputs of COLUMNS by ROWS inputs. A row is read and widened once."""
    parts: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    image = tl.program_id(2) // parts
    channel = tl.program_id(2) % parts * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    here = (columns < width)[:, None] & (channel < CHANNELS)[None, :]
    columns = tl.minimum(columns, width - 1)
    row = tl.program_id(1) * ROWS
    end = tl.minimum(row + ROWS, height)
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    stride = width.to(tl.int64) * CHANNELS
    source = x + image.to(tl.int64) * height * stride + channel[None, :]
    start = (image.to(tl.int64) * height + row) * (4 * stride)
    place = 2 * columns[:, None] * CHANNELS + channel[None, :]
    above_even, above_odd = widened(source + tl.maximum(row - 1, 0) * stride, mean, inverse, here, columns, width, CHANNELS)
    even, odd = widened(source + row * stride, mean, inverse, here, columns, width, CHANNELS)
    while row < end:
        below_even, below_odd = widened(source + tl.minimum(row + 1, height - 1) * stride, mean, inverse, here, columns, width, CHANNELS)
        up, down = before(row, height), behind(row, height)
        tl.store(out + start + place, (even + up * (above_even - even)).to(out.dtype.element_ty), mask=here)
        tl.store(out + start + CHANNELS + place, (odd + up * (above_odd - odd)).to(out.dtype.element_ty), mask=here)
        tl.store(out + start + 2 * stride + place, (even + down * (below_even - even)).to(out.dtype.element_ty), mask=here)
        tl.store(out + start + 2 * stride + CHANNELS + place, (odd + down * (below_odd - odd)).to(out.dtype.element_ty), mask=here)
        above_even, above_odd, even, odd = even, odd, below_even, below_odd
        start += 4 * stride
        row += 1


@triton.jit
@no_type_check
def narrowed(upstream, here, columns, width, CHANNELS: tl.constexpr):
    """What the columns of one row of outputs give to each input; `upstream` points at the channels of the row's first column."""
    left = tl.load(upstream + tl.maximum(2 * columns - 1, 0)[:, None] * CHANNELS, mask=here, other=0.0).to(tl.float32)
    even = tl.load(upstream + 2 * columns[:, None] * CHANNELS, mask=here, other=0.0).to(tl.float32)
    odd = tl.load(upstream + (2 * columns + 1)[:, None] * CHANNELS, mask=here, other=0.0).to(tl.float32)
    right = tl.load(upstream + tl.minimum(2 * columns + 2, 2 * width - 1)[:, None] * CHANNELS, mask=here, other=0.0).to(tl.float32)
    result = even * (1.0 - before(columns, width))[:, None] + odd * (1.0 - behind(columns, width))[:, None]
    result += left * tl.where(columns > 0, behind(columns - 1, width), 0.0)[:, None]
    return result + right * tl.where(columns < width - 1, before(columns + 1, width), 0.0)[:, None]


@triton.jit(do_not_specialize=["width", "height"])
@no_type_check
def grow_gradients(
    x, stats, upstream, out, partials, width, height, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    """Gradient behind the ReLU of COLUMNS by ROWS inputs, and the sums of `sum_gradients`."""
    parts: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    image = tl.program_id(2) // parts
    channel = tl.program_id(2) % parts * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    here = (columns < width)[:, None] & (channel < CHANNELS)[None, :]
    columns = tl.minimum(columns, width - 1)
    row = tl.program_id(1) * ROWS
    end = tl.minimum(row + ROWS, height)
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    stride = width.to(tl.int64) * CHANNELS
    start = (image.to(tl.int64) * height + row) * stride
    place = columns[:, None] * CHANNELS + channel[None, :]
    source = upstream + image.to(tl.int64) * height * (4 * stride) + channel[None, :]
    total = tl.zeros([COLUMNS, BLOCK], tl.float32)
    product = tl.zeros([COLUMNS, BLOCK], tl.float32)
    above = narrowed(source + tl.maximum(2 * row - 1, 0) * (2 * stride), here, columns, width, CHANNELS)
    even = narrowed(source + 2 * row * (2 * stride), here, columns, width, CHANNELS)
    while row < end:
        odd = narrowed(source + (2 * row + 1) * (2 * stride), here, columns, width, CHANNELS)
        below = narrowed(source + tl.minimum(2 * row + 2, 2 * height - 1) * (2 * stride), here, columns, width, CHANNELS)
        gradient = even * (1.0 - before(row, height)) + odd * (1.0 - behind(row, height))
        gradient += above * tl.where(row > 0, behind(row - 1, height), 0.0)
        gradient += below * tl.where(row < height - 1, before(row + 1, height), 0.0)
        value = normalized(tl.load(x + start + place, mask=here, other=0.0), mean, inverse)
        gradient = tl.where(here & (value > 0.0), gradient, 0.0)
        tl.store(out + start + place, gradient.to(out.dtype.element_ty), mask=here)
        total += gradient
        product += gradient * value
        above, even = odd, below
        start += stride
        row += 1
    program = (image * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    target = partials + program.to(tl.int64) * (2 * CHANNELS) + channel
    tl.store(target, tl.sum(total, 0), mask=channel < CHANNELS)
    tl.store(target + CHANNELS, tl.sum(product, 0), mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def show(
    x, stats, weight, bias, picture, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr
):
    """1x1 convolution of the ReLU of the normalised values, and sigmoid: OUTPUTS planes."""
    image = tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = (image.to(tl.int64) * pixels + tl.program_id(0) * ROWS) * CHANNELS
    place = tl.arange(0, ROWS)[:, None] * CHANNELS + channel[None, :]
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    value = tl.load(x + start + place, mask=(row < pixels)[:, None] & exists[None, :], other=0.0)
    value = relu(normalized(value, mean, inverse))
    for output in tl.static_range(OUTPUTS):
        factor = tl.load(weight + output * CHANNELS + channel, mask=exists, other=0.0)
        logit = tl.sum(value * factor[None, :], 1) + tl.load(bias + output)
        plane = picture + (image.to(tl.int64) * OUTPUTS + output) * pixels
        tl.store(plane + row, 1.0 / (1.0 + tl.exp(-logit)), mask=row < pixels)


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def sum_show_gradients(
    x, stats, picture, upstream, partials, pixels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Of a run of ROWS * STEPS pixels, for every output: gradient of the logit times the ReLU, times where it is open, and alone, summed.

    PLANES (a power of two, at least 16 as matrix units want) is OUTPUTS and nothing.
    """
    run, image = tl.program_id(0), tl.program_id(1)
    channel, plane = tl.arange(0, BLOCK), tl.arange(0, PLANES)
    exists = channel < CHANNELS
    row = tl.arange(0, ROWS)
    first = run * (ROWS * STEPS)
    count = tl.minimum(pixels - first, ROWS * STEPS)
    start = (image.to(tl.int64) * pixels + first) * CHANNELS
    place = row[:, None] * CHANNELS + channel[None, :]
    planes = (image.to(tl.int64) * OUTPUTS + plane[:, None]) * pixels + first + row[None, :]
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    products = tl.zeros([PLANES, BLOCK], tl.float32)
    opened = tl.zeros([PLANES, BLOCK], tl.float32)
    alone = tl.zeros([PLANES, ROWS], tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        inside = row + step * ROWS < count
        seen = (plane < OUTPUTS)[:, None] & inside[None, :]
        color = tl.load(picture + planes + step * ROWS, mask=seen, other=0.0)
        gradient = tl.load(upstream + planes + step * ROWS, mask=seen, other=0.0) * color * (1.0 - color)
        value = tl.load(x + start + place + step * (ROWS * CHANNELS), mask=inside[:, None] & exists[None, :], other=0.0)
        value = normalized(value, mean, inverse)
        products = tl.dot(gradient, relu(value), products)
        opened = tl.dot(gradient, (value > 0.0).to(tl.float32), opened)
        alone += gradient
    target = partials + (image.to(tl.int64) * tl.num_programs(0) + run) * (OUTPUTS * (2 * CHANNELS + 1)) + plane * (2 * CHANNELS + 1)
    mask = (plane < OUTPUTS)[:, None] & exists[None, :]
    tl.store(target[:, None] + channel[None, :], products, mask=mask)
    tl.store(target[:, None] + CHANNELS + channel[None, :], opened, mask=mask)
    tl.store(target + 2 * CHANNELS, tl.sum(alone, 1), mask=plane < OUTPUTS)


@triton.jit(do_not_specialize=["pixels"])
@no_type_check
def show_gradients(
    x, stats, weight, picture, upstream, sums, out, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr
):
    """Of ROWS pixels before the norm. The two sums of the gradient behind the ReLU follow from those of `sum_show_gradients`."""
    image = tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < CHANNELS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = (row < pixels)[:, None] & exists[None, :]
    start = (image.to(tl.int64) * pixels + tl.program_id(0) * ROWS) * CHANNELS
    place = tl.arange(0, ROWS)[:, None] * CHANNELS + channel[None, :]
    mean, inverse = load_stats(stats, image, channel, CHANNELS)
    value = normalized(tl.load(x + start + place, mask=here, other=0.0), mean, inverse)
    gradient = tl.zeros([ROWS, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    product = tl.zeros([BLOCK], tl.float32)
    for output in tl.static_range(OUTPUTS):
        factor = tl.load(weight + output * CHANNELS + channel, mask=exists, other=0.0)
        line = sums + (image * OUTPUTS + output) * (2 * CHANNELS + 1) + channel
        product += factor * tl.load(line, mask=exists, other=0.0)
        total += factor * tl.load(line + CHANNELS, mask=exists, other=0.0)
        plane = (image.to(tl.int64) * OUTPUTS + output) * pixels
        color = tl.load(picture + plane + row, mask=row < pixels, other=0.0)
        slope = tl.load(upstream + plane + row, mask=row < pixels, other=0.0) * color * (1.0 - color)
        gradient += slope[:, None] * factor[None, :]
    size = pixels.to(tl.float32)
    gradient = tl.where(value > 0.0, gradient, 0.0)
    gradient = (gradient - (total / size)[None, :] - value * (product / size)[None, :]) * inverse[None, :]
    tl.store(out + start + place, gradient.to(out.dtype.element_ty), mask=here)
