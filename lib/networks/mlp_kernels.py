"""Triton kernel of frozen_mlp.py: one layer of an MLP at many points, with all that stands around its product. Imported there only, in functions."""

from typing import no_type_check

import triton
import triton.language as tl

# @no_type_check: the annotations are Triton's; the type checker of the tests must not wrap what Triton compiles.


@triton.jit
@no_type_check
def leaky(x, SLOPE: tl.constexpr):
    """Leaky ReLU."""
    return tl.where(x > 0.0, x, x * SLOPE)


@triton.jit
@no_type_check
def layer(
    hidden, code, weight, bias, points, out, rows, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, FIRST: tl.constexpr, POINTS: tl.constexpr,
    LAST: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):
    """out = leaky(hidden weight^T + bias + points), not leaky if LAST. FIRST: hidden is what the points give the first layer, and what the
    code gives it is still to be added. POINTS: this layer sees the points too."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, BLOCK_IN)
    o = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside, wanted = row[:, None] < rows, o < OUTPUTS
    total = tl.zeros((BLOCK, BLOCK_OUT), tl.float32)
    for start in range(0, INPUTS, BLOCK_IN):
        x = tl.load(hidden + row[:, None] * INPUTS + (start + k)[None, :], mask=inside, other=0.0)
        if FIRST:
            x = leaky(x.to(tl.float32) + tl.load(code + start + k)[None, :], SLOPE).to(x.dtype)
        w = tl.load(weight + o[None, :] * INPUTS + (start + k)[:, None], mask=wanted[None, :], other=0.0)
        total = tl.dot(x, w, total)
    total += tl.load(bias + o, mask=wanted, other=0.0)[None, :]
    place, shown = row[:, None] * OUTPUTS + o[None, :], inside & wanted[None, :]
    if POINTS:
        total += tl.load(points + place, mask=shown, other=0.0).to(tl.float32)
    if not LAST:
        total = leaky(total, SLOPE)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=shown)
