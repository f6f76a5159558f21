"""Instance norm and ReLU together with what follows them: nothing, bilinear x2, or a 1x1 convolution and a sigmoid.

Each of the three functions has a twin in plain torch expressions, which is its definition and runs wherever its kernels do not. The kernels
(norm_kernels.py) want a CUDA device of compute capability 8.0 or more, or Triton's interpreter (TRITON_INTERPRET=1), and float32 or bfloat16.
Values are stored in the input's type and computed in float32. Means and variances are those of the stored values, without affine
parameters. What is kept for the backward pass is the input, two numbers per image and channel, and of `norm_relu_show` the picture.
Nothing waits for the device, so everything can be recorded in a CUDA graph; nothing is added in an order that changes, so the same input
gives the same bits.

Passes over memory. One pass over the input of a layer is S, pictures of three float32 planes are counted as 0.19 S each (32 channels of
bfloat16); one pass takes 268 MB at 2048² x 32 channels.
    forward    norm_relu: statistics 1, apply 2             grow: statistics 1, read 1, write 4       show: statistics 1, read 1, picture 0.19
    backward   sums 2, apply 3                              gather 4, read 1, write 1, apply 3        sums 1.37, apply 2.37
For the x4 network with capacity 32 and a picture of 2048² that is 12 passes of 268 MB forward and 19 backward: 8.3 GB, 1.7 ms at 4.8 TB/s.
Convolutions come on top. So the normalised small image is never written before it grows, nor the last normalised image, and neither is the
gradient of the latter.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.errors import InputError
from lib.kernels import runs_kernels

EPS = 1e-5  # of the variance, as nn.InstanceNorm2d has it
# Shapes of the programs: values per step, warps, steps. With 4 warps, 1024 values are one access of 16 bytes per thread in bfloat16.
SUM_TILE, SUM_WARPS, SUM_STEPS, SUM_STAGES = 4096, 4, 16, 3
APPLY_TILE, APPLY_WARPS = 2048, 4
GROW_TILE, GROW_WARPS, GROW_ROWS = 1024, 4, 16  # rows of the small image that one program goes down
SHOW_TILE, SHOW_WARPS = 2048, 4
SHOW_SUM_TILE, SHOW_SUM_WARPS, SHOW_SUM_STEPS, SHOW_SUM_STAGES = 4096, 4, 16, 1
MERGE_CHANNELS, MERGE_ROWS, MERGE_WARPS = 8, 512, 8
MAX_BLOCK = 128  # channels of a program
LEAST = 16  # channels and planes that matrix units want
MAX_PIXELS = 2**31 - 1


def norm_relu(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """ReLU of the values standardised per image and channel."""
    return _NormRelu.apply(_dense(x)) if _by_kernels(x) else norm_relu_twin(x)


def norm_relu_grow(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
    """The same, then bilinear x2 with align_corners=True."""
    return _NormReluGrow.apply(_dense(x)) if _by_kernels(x) else norm_relu_grow_twin(x)


def norm_relu_show(x: Float[Tensor, "B C H W"], weight: Float[Tensor, "O C"], bias: Float[Tensor, "O"]) -> Float[Tensor, "B O H W"]:
    """`norm_relu`, then a 1x1 convolution and a sigmoid: a picture of contiguous planes, float32 if x has less."""
    return _NormReluShow.apply(_dense(x), weight, bias) if _by_kernels(x) else norm_relu_show_twin(x, weight, bias)


def norm_relu_twin(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """`norm_relu` in torch."""
    return _standardized(x).relu().to(x.dtype)


def norm_relu_grow_twin(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
    """`norm_relu_grow` in torch."""
    return torch.nn.functional.interpolate(_standardized(x).relu(), scale_factor=2, mode="bilinear", align_corners=True).to(x.dtype)


def norm_relu_show_twin(x: Float[Tensor, "B C H W"], weight: Float[Tensor, "O C"], bias: Float[Tensor, "O"]) -> Float[Tensor, "B O H W"]:
    """`norm_relu_show` in torch."""
    hidden = _standardized(x).relu()
    return torch.einsum("bchw,oc->bohw", hidden, weight.to(hidden.dtype)).add(bias.to(hidden.dtype)[:, None, None]).sigmoid().contiguous()


def _by_kernels(x: Tensor) -> bool:
    return runs_kernels(x, torch.float32, torch.bfloat16)


def _standardized(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
    return (wide - mean) * (variance + EPS).rsqrt()


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _Layout:
    """How a channels-last image is cut into programs."""

    def __init__(self, x: Tensor, whole: bool = False) -> None:
        self.images, self.channels, self.height, self.width = x.shape
        self.pixels = self.height * self.width
        if 4 * self.pixels > MAX_PIXELS or not x.numel():
            raise InputError(f"super-resolution: an image of {self.images} x {self.channels} x {self.height} x {self.width} values; "
                             f"expected at least one, and at most {MAX_PIXELS // 4} pixels")
        block = max(LEAST, 1 << (self.channels - 1).bit_length())
        self.block = block if whole else min(block, MAX_BLOCK)
        self.parts = -(-self.channels // self.block)

    def rows(self, tile: int) -> int:
        """Pixels of a tile."""
        return max(LEAST, tile // self.block)

    def runs(self, length: int) -> int:
        """Runs of so many pixels."""
        return -(-self.pixels // length)

    def grid(self, length: int) -> tuple[int, int, int]:
        """Programs that each take a run of so many pixels."""
        return self.runs(length), self.images, self.parts

    def shape(self, rows: int) -> dict[str, int]:
        """Constants of the kernels."""
        return {"CHANNELS": self.channels, "BLOCK": self.block, "ROWS": rows}


def _statistics(x: Tensor) -> Float[Tensor, "B 2 C"]:
    """Means and reciprocals of standard deviations."""
    from lib.networks import norm_kernels as kernels

    layout = _Layout(x)
    rows = layout.rows(SUM_TILE)
    runs = layout.runs(rows * SUM_STEPS)
    partials = x.new_empty((layout.images, runs, 2, layout.channels), dtype=torch.float32)
    stats = x.new_empty((layout.images, 2, layout.channels), dtype=torch.float32)
    kernels.sum_values[layout.grid(rows * SUM_STEPS)](
        x, partials, layout.pixels, **layout.shape(rows), STEPS=SUM_STEPS, STAGES=SUM_STAGES, num_warps=SUM_WARPS)
    kernels.merge_runs[(-(-layout.channels // MERGE_CHANNELS), layout.images)](
        partials, stats, layout.pixels, runs, CHANNELS=layout.channels, BLOCK=MERGE_CHANNELS, ROWS=MERGE_ROWS, RUN=rows * SUM_STEPS, EPS=EPS,
        num_warps=MERGE_WARPS)
    return stats


def _apply_gradients(x: Tensor, stats: Tensor, upstream: Tensor, sums: Tensor, out: Tensor) -> Tensor:
    from lib.networks import norm_kernels as kernels

    layout = _Layout(x)
    rows = layout.rows(APPLY_TILE)
    kernels.apply_gradients[layout.grid(rows)](x, stats, upstream, sums, out, layout.pixels, **layout.shape(rows), num_warps=APPLY_WARPS)
    return out


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from lib.networks import norm_kernels as kernels

        layout = _Layout(x)
        rows = layout.rows(APPLY_TILE)
        out = torch.empty_like(x)
        with torch.cuda.device_of(x):
            stats = _statistics(x)
            kernels.apply[layout.grid(rows)](x, stats, out, layout.pixels, **layout.shape(rows), num_warps=APPLY_WARPS)
        ctx.save_for_backward(x, stats)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        from lib.networks import norm_kernels as kernels

        x, stats = ctx.saved_tensors
        layout, upstream = _Layout(x), _dense(upstream)
        rows = layout.rows(SUM_TILE)
        partials = x.new_empty((layout.images, layout.runs(rows * SUM_STEPS), 2, layout.channels), dtype=torch.float32)
        with torch.cuda.device_of(x):
            kernels.sum_gradients[layout.grid(rows * SUM_STEPS)](
                x, stats, upstream, partials, layout.pixels, **layout.shape(rows), STEPS=SUM_STEPS, STAGES=SUM_STAGES, num_warps=SUM_WARPS)
            return _apply_gradients(x, stats, upstream, partials.sum(dim=1), torch.empty_like(x))


class _NormReluGrow(torch.autograd.Function):
    @staticmethod
    def _grid(layout: _Layout) -> tuple[int, int, int]:
        return -(-layout.width // _columns(layout)), -(-layout.height // GROW_ROWS), layout.images * layout.parts

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from lib.networks import norm_kernels as kernels

        layout = _Layout(x)
        shape = (layout.images, layout.channels, 2 * layout.height, 2 * layout.width)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        with torch.cuda.device_of(x):
            stats = _statistics(x)
            kernels.grow[_NormReluGrow._grid(layout)](
                x, stats, out, layout.width, layout.height, **layout.shape(GROW_ROWS), COLUMNS=_columns(layout), num_warps=GROW_WARPS)
        ctx.save_for_backward(x, stats)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        from lib.networks import norm_kernels as kernels

        x, stats = ctx.saved_tensors
        layout, out, grid = _Layout(x), torch.empty_like(x), _NormReluGrow._grid(_Layout(x))
        partials = x.new_empty((layout.images, grid[0] * grid[1], 2, layout.channels), dtype=torch.float32)
        with torch.cuda.device_of(x):
            kernels.grow_gradients[grid](
                x, stats, _dense(upstream), out, partials, layout.width, layout.height, **layout.shape(GROW_ROWS), COLUMNS=_columns(layout),
                num_warps=GROW_WARPS)
            return _apply_gradients(x, stats, out, partials.sum(dim=1), out)


def _columns(layout: _Layout) -> int:
    return max(1, GROW_TILE // layout.block)


class _NormReluShow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from lib.networks import norm_kernels as kernels

        layout, outputs = _Layout(x, whole=True), len(weight)
        rows = layout.rows(SHOW_TILE)
        weight, bias = weight.float().contiguous(), bias.float().contiguous()
        picture = x.new_empty((layout.images, outputs, layout.height, layout.width), dtype=torch.float32)
        with torch.cuda.device_of(x):
            stats = _statistics(x)
            kernels.show[layout.grid(rows)](
                x, stats, weight, bias, picture, layout.pixels, **layout.shape(rows), OUTPUTS=outputs, num_warps=SHOW_WARPS)
        ctx.save_for_backward(x, stats, weight, picture)
        return picture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from lib.networks import norm_kernels as kernels

        x, stats, weight, picture = ctx.saved_tensors
        layout, outputs, upstream, out = _Layout(x, whole=True), len(weight), upstream.contiguous(), torch.empty_like(x)
        rows = layout.rows(SHOW_SUM_TILE)
        runs = layout.runs(rows * SHOW_SUM_STEPS)
        partials = x.new_empty((layout.images, runs, outputs, 2 * layout.channels + 1), dtype=torch.float32)
        with torch.cuda.device_of(x):
            kernels.sum_show_gradients[layout.grid(rows * SHOW_SUM_STEPS)](
                x, stats, picture, upstream, partials, layout.pixels, **layout.shape(rows), OUTPUTS=outputs,
                PLANES=max(LEAST, 1 << (outputs - 1).bit_length()), STEPS=SHOW_SUM_STEPS, STAGES=SHOW_SUM_STAGES, num_warps=SHOW_SUM_WARPS)
            sums = partials.sum(dim=1)
            rows = layout.rows(SHOW_TILE)
            kernels.show_gradients[layout.grid(rows)](
                x, stats, weight, picture, upstream, sums, out, layout.pixels, **layout.shape(rows), OUTPUTS=outputs, num_warps=SHOW_WARPS)
        of_parameters = sums.sum(dim=0)
        return out, of_parameters[:, :layout.channels], of_parameters[:, -1]
