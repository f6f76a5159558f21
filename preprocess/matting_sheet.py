"""Mattes to be looked at: picture, matte, the person on magenta, and a part of the outline in which the matte is soft, at its own pixels."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

TILE, STRIP, GAP = 320, 22, 4  # pixels
MAGENTA = (255, 0, 255)  # neither skin nor hair: what of the background is left, and what of the person is missing, is seen at once
DARK, TEXT = (20, 20, 20), (235, 235, 235)
ZOOM = 0.22  # of the picture: side of the enlarged part
SOFT = (0.1, 0.9)  # alphas between these are of hair and edges


@dataclass(frozen=True)
class Looked:
    """One picture with its matte."""

    title: str
    picture: UInt8[Tensor, "3 H W"]
    alpha: UInt8[Tensor, "H W"]


def draw_sheet(rows: list[Looked]) -> Float[Tensor, "3 H W"]:
    """One row per picture, in [0,1]."""
    sheet = np.concatenate([_row(looked) for looked in rows])
    return torch.from_numpy(sheet).permute(2, 0, 1).float() / 255.0


def _row(looked: Looked) -> NDArray[np.uint8]:
    pixels, alpha = looked.picture.permute(1, 2, 0).numpy(), looked.alpha.numpy().astype(np.float32) / 255.0
    person = (pixels * alpha[..., None] + np.array(MAGENTA) * (1.0 - alpha[..., None])).round().astype(np.uint8)
    matte = np.repeat(looked.alpha.numpy()[..., None], 3, axis=2)
    tiles = [_fitted(tile) for tile in (pixels, matte, person, person[_soft_part(alpha)])]
    row = np.full((STRIP + TILE + GAP, len(tiles) * (TILE + GAP), 3), DARK, np.uint8)
    for column, tile in enumerate(tiles):
        left = column * (TILE + GAP)
        row[STRIP:STRIP + tile.shape[0], left:left + tile.shape[1]] = tile
    cv2.putText(row, looked.title, (8, STRIP - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, TEXT, 1, cv2.LINE_AA)
    return row


def _soft_part(alpha: NDArray[np.float32]) -> tuple[slice, slice]:
    """The square in which most of the matte is soft: hair, where there is some."""
    height, width = alpha.shape
    side = max(8, round(ZOOM * min(height, width)))
    soft = cv2.boxFilter(((alpha > SOFT[0]) & (alpha < SOFT[1])).astype(np.float32), -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    row, column = np.unravel_index(int(soft.argmax()), soft.shape)
    top, left = (min(max(int(middle) - side // 2, 0), length - side) for middle, length in ((row, height), (column, width)))
    return slice(top, top + side), slice(left, left + side)


def _fitted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = TILE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_NEAREST)
