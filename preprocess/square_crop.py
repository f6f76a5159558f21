"""The square that is cut out of a camera's picture, and what that does to the camera."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from lib.errors import InputError
from lib.geometry.camera import Camera
from preprocess.color_correction import ColorCorrection

RAW_WIDTH, RAW_HEIGHT = 2200, 3208  # pixels of a NeRSemble picture: published crops and calibrations are in these
PUBLISHED_CROP = (-200, 304, 2600)  # left, top, side


@dataclass(frozen=True)
class SquareCrop:
    """Corner and side in pixels of the picture, whole numbers; what lies outside the picture is black. `size`: pixels after resampling."""

    left: int
    top: int
    side: int
    size: int

    def camera(self, camera: Camera) -> Camera:
        """The camera of the cut picture."""
        return camera.cropped(self.left, self.top, self.side, self.side).resized(self.size, self.size)

    def cut(self, pixels: UInt8[NDArray, "H W ..."], color: ColorCorrection | None = None) -> UInt8[NDArray, "S S ..."]:
        """The square, with corrected colours; its padding stays black."""
        height, width = pixels.shape[:2]
        left, top = max(0, self.left), max(0, self.top)
        right, bottom = min(width, self.left + self.side), min(height, self.top + self.side)
        square = np.zeros((self.side, self.side, *pixels.shape[2:]), dtype=np.uint8)
        seen = pixels[top:bottom, left:right]
        square[top - self.top:bottom - self.top, left - self.left:right - self.left] = seen if color is None else color.apply(seen)
        return shrunk(square, self.size)

    def visible(self, width: int, height: int) -> UInt8[NDArray, "S S"]:
        """255 where the square shows pixels of a picture of this size, 0 in its padding."""
        return self.cut(np.full((height, width), 255, dtype=np.uint8))


def shrunk(square: UInt8[NDArray, "H W ..."], size: int) -> UInt8[NDArray, "S S ..."]:
    """A square picture at another size: area averaging to the half or less, else bilinear, where every pixel counts too, in a seventh of the time."""
    if len(square) == size:
        return square
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if 2 * size <= len(square) else cv2.INTER_LINEAR)


def square_crop(crop: tuple[int, int, int], size: int, width: int, height: int) -> SquareCrop:
    """`crop` (left, top, side), given in pixels of a 2200x3208 picture, for pictures of another size: scaled by the height, rounded.

    Raises InputError where the pictures have another shape, or nothing of the square lies within them.
    """
    if abs(width / height * RAW_HEIGHT / RAW_WIDTH - 1.0) > 0.02:
        raise InputError(f"pictures are {width}x{height}; expected portrait pictures shaped like {RAW_WIDTH}x{RAW_HEIGHT} (NeRSemble). "
                         "Other captures: `python -m preprocess.video`")
    scale = height / RAW_HEIGHT
    left, top, side = (round(value * scale) for value in crop)
    return within(SquareCrop(left, top, side, size), width, height)


def within(crop: SquareCrop, width: int, height: int) -> SquareCrop:
    """The same crop. Raises InputError where it is empty or lies outside a picture of this size."""
    covers = crop.left < width and crop.top < height and crop.left + crop.side > 0 and crop.top + crop.side > 0
    if crop.side < 1 or not covers:
        raise InputError(f"--crop: the square of {crop.side} pixels at ({crop.left}, {crop.top}) shows nothing of a {width}x{height} picture")
    return crop
