"""Random zoom between rasterization and super-resolution, so that the network does not learn one scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.kernels import runs_kernels

SMALLEST, SPREAD = 0.8, 0.45
PADDING, PIXEL_PADDING = 1.0, 255  # of features; of pixels: white and visible
BLOCK, WARPS = 1024, 4  # pixels of a program of the kernels
MOST_PIXELS = 32000  # across: the kernels count to twice its square in 32 bits


@dataclass(frozen=True)
class Zoom:
    """Per picture: the new size in coarse pixels, and where in the zoomed picture the window of the old size starts."""

    size: Int[Tensor, "B"]
    left: Int[Tensor, "B"]
    top: Int[Tensor, "B"]
    window: int

    def apply(self, image: Shaped[Tensor, "B C W W"], scale: int) -> Shaped[Tensor, "B C W W"]:
        """Nearest resampling, then cropping or padding with 1 (pixels: 255) to the old size; `scale` = pixels per coarse pixel.

        Raises ValueError for pictures of another number or size than this zoom was made for.
        """
        windows = scale * torch.stack([self.top, self.left, self.size], dim=1)
        count = self.window * scale
        if (len(image), *image.shape[-2:]) != (len(windows), count, count):
            raise ValueError(f"pictures of shape {tuple(image.shape)}; this zoom is for {len(windows)} of {count} x {count} pixels")
        if runs_kernels(image, torch.float32, torch.uint8) and int(windows[:, 2].max()) <= 2 * count and count <= MOST_PIXELS:
            return _Zoomed.apply(image.contiguous(), windows.to(image.device, torch.int32, non_blocking=True))
        return zoom_twin(image, windows)


def zoom_twin(image: Shaped[Tensor, "B C W W"], windows: Int[Tensor, "B 3"]) -> Shaped[Tensor, "B C W W"]:
    """`Zoom.apply` in torch: its definition, and what runs where its kernels do not. A window is its first row, first column, and the size
    of the zoomed picture, in pixels."""
    pictures, inside = [], []
    for picture, (top, left, size) in zip(image.split(1), windows.tolist(), strict=True):
        (row, row_inside), (column, column_inside) = (_source(start, size, image.shape[-1], image.device) for start in (top, left))
        # One direction after the other: unlike that of indexing, the gradient of index_select needs no sorting.
        pictures.append(picture.index_select(2, row).index_select(3, column))
        inside.append(row_inside[:, None] & column_inside)
    return torch.where(torch.stack(inside)[:, None], torch.cat(pictures), _padding(image))


class _Zoomed(torch.autograd.Function):
    """The same by kernels: one pass over memory each way."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, windows: Tensor) -> Tensor:
        from lib.avatars.gaussian_head_avatar import zoom_kernels as kernels

        ctx.save_for_backward(windows)
        out = torch.empty_like(image)
        count, channels = image.shape[-1], image.shape[1]
        with torch.cuda.device_of(image):
            kernels.zoom[_grid(image)](
                image, windows, out, count, PADDING=_padding(image), CHANNELS=channels, BLOCK=BLOCK, num_warps=WARPS)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        from lib.avatars.gaussian_head_avatar import zoom_kernels as kernels

        windows, = ctx.saved_tensors
        upstream = upstream.contiguous()
        out = torch.empty_like(upstream)
        with torch.cuda.device_of(upstream):
            kernels.zoom_gradients[_grid(upstream)](
                upstream, windows, out, upstream.shape[-1], CHANNELS=upstream.shape[1], BLOCK=BLOCK, num_warps=WARPS)
        return out, None


def _grid(image: Tensor) -> tuple[int, int]:
    return -(-image.shape[-1] ** 2 // BLOCK), len(image)


def _padding(image: Tensor) -> float | int:
    return PADDING if image.is_floating_point() else PIXEL_PADDING


def _source(start: int, size: int, count: int, device: torch.device) -> tuple[Int[Tensor, "W"], Bool[Tensor, "W"]]:
    """Where the pixels of a window of a zoomed picture come from, and which of them are in it."""
    position = torch.arange(count, device=device) + start
    return torch.div(position * count, size, rounding_mode="floor").clamp(0, count - 1), (position >= 0) & (position < size)


def random_zoom(size: int, generators: Sequence[torch.Generator]) -> Zoom:
    """For each generator a picture's factor int(size·(0.8 + 0.45 u))/size, u uniform in [0,1), and its window, placed uniformly."""
    u, across, down = torch.stack([torch.rand(3, generator=generator) for generator in generators], dim=1)
    new = (size * (SMALLEST + SPREAD * u)).long()
    slack = new - size
    return Zoom(new, (slack * across).round().long(), (slack * down).round().long(), size)
