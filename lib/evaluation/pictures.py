"""Pages of pictures: target, output and error beside each other, with a line of text under each row."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.training.recorder import shrink

TILE = 256  # pixels: height of a picture on a page
LARGEST_ERROR = 0.25  # mean absolute difference of colours that is shown as the end of the scale
STRIP, SCALE, INK = 22, 0.45, (40, 40, 40)  # pixels of a line of text; OpenCV's size and colour of it


@dataclass(frozen=True)
class ShownPicture:
    """Two pictures that are compared, and what is said of them."""

    target: Float[Tensor, "3 H W"]
    image: Float[Tensor, "3 H W"]
    caption: str


def error_map(image: Float[Tensor, "3 H W"], target: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
    """Mean absolute difference of the colours, from black over red and yellow to white at LARGEST_ERROR."""
    share = (image - target).abs().mean(dim=0).nan_to_num(1.0).div(LARGEST_ERROR).clamp(0.0, 1.0)
    colored = cv2.applyColorMap((share * 255.0).round().byte().cpu().numpy(), cv2.COLORMAP_HOT)
    return torch.from_numpy(np.ascontiguousarray(colored[..., ::-1])).permute(2, 0, 1) / 255.0


def worst_page(shown: list[ShownPicture], columns: tuple[str, str, str]) -> Float[Tensor, "3 h w"]:
    """A head line, then a row for each: target, image, error map, and its caption."""
    triples = [(one.target, one.image, error_map(one.image, one.target)) for one in shown]
    tiles = [torch.cat([shrink(part.cpu().nan_to_num(0.0)[None], TILE)[0] for part in triple], dim=-1) for triple in triples]
    width = tiles[0].shape[-1]
    head = torch.cat([text_line(name, part) for name, part in zip(columns, _thirds(width), strict=True)], dim=-1)
    rows = [torch.cat([tile, text_line(one.caption, width)], dim=-2) for tile, one in zip(tiles, shown, strict=True)]
    return torch.cat([head, *rows], dim=-2)


def text_line(text: str, width: int) -> Float[Tensor, "3 h w"]:
    """Dark on white, made smaller where it would not fit."""
    strip = np.full((STRIP, width, 3), 255, dtype=np.uint8)
    needed = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, SCALE, 1)[0][0] + 8
    cv2.putText(strip, text, (4, STRIP - 7), cv2.FONT_HERSHEY_SIMPLEX, SCALE * min(1.0, width / needed), INK, 1, cv2.LINE_AA)
    return torch.from_numpy(strip).permute(2, 0, 1) / 255.0


def _thirds(width: int) -> tuple[int, int, int]:
    return width // 3, width // 3, width - 2 * (width // 3)
