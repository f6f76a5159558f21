"""Random zoom between rasterization and super-resolution, so that the network does not learn one scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

SMALLEST, SPREAD = 0.8, 0.45
PADDING, PIXEL_PADDING = 1.0, 255  # of features; of pixels: white and visible


@dataclass(frozen=True)
class Zoom:
    """Per picture: the new size in coarse pixels, and where in the zoomed picture the window of the old size starts."""

    size: Int[Tensor, "B"]
    left: Int[Tensor, "B"]
    top: Int[Tensor, "B"]
    window: int

    def apply(self, image: Shaped[Tensor, "B C H W"], scale: int) -> Shaped[Tensor, "B C H W"]:
        """Nearest resampling, then cropping or padding with 1 (pixels: 255) to the old size; `scale` = pixels per coarse pixel."""
        count = self.window * scale
        pictures, inside = [], []
        for picture, size, top, left in zip(image.split(1), self.size.tolist(), self.top.tolist(), self.left.tolist(), strict=True):
            (row, row_inside), (column, column_inside) = (_source(start * scale, size * scale, count, image.device) for start in (top, left))
            # One direction after the other: unlike that of indexing, the gradient of index_select needs no sorting.
            pictures.append(picture.index_select(2, row).index_select(3, column))
            inside.append(row_inside[:, None] & column_inside)
        picked = torch.cat(pictures)
        return torch.where(torch.stack(inside)[:, None], picked, PADDING if picked.is_floating_point() else PIXEL_PADDING)


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
