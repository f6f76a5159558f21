"""Random zoom between rasterization and super-resolution, so that the network does not learn one scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST, SPREAD = 0.8, 0.45
PADDING = 1.0  # white; also for `visible`


@dataclass(frozen=True)
class Zoom:
    """Per picture: the new size in coarse pixels, and where in the zoomed picture the window of the old size starts."""

    size: Int[Tensor, "B"]
    left: Int[Tensor, "B"]
    top: Int[Tensor, "B"]
    window: int

    def apply(self, image: Float[Tensor, "B C H W"], scale: int) -> Float[Tensor, "B C H W"]:
        """Nearest resampling, then cropping or padding with 1 to the old size; `scale` = pixels per coarse pixel."""
        count = self.window * scale
        (rows, inside_rows), (columns, inside_columns) = ([part.to(image.device) for part in self._source(start, scale, count)]
                                                          for start in (self.top, self.left))
        # One direction after the other: unlike that of indexing, the gradient of index_select needs no sorting.
        picked = torch.cat([
            picture.index_select(2, row).index_select(3, column) for picture, row, column in zip(image.split(1), rows, columns, strict=True)])
        inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
        return torch.where(inside, picked, PADDING)

    def _source(self, start: Int[Tensor, "B"], scale: int, count: int) -> tuple[Tensor, Tensor]:
        position = torch.arange(count) + (start * scale)[:, None]
        size = (self.size * scale)[:, None]
        return (position * count // size).clamp(0, count - 1), (position >= 0) & (position < size)


def random_zoom(size: int, generators: Sequence[torch.Generator]) -> Zoom:
    """For each generator a picture's factor int(size·(0.8 + 0.45 u))/size, u uniform in [0,1), and its window, placed uniformly."""
    u, across, down = torch.stack([torch.rand(3, generator=generator) for generator in generators], dim=1)
    new = (size * (SMALLEST + SPREAD * u)).long()
    slack = new - size
    return Zoom(new, (slack * across).round().long(), (slack * down).round().long(), size)
