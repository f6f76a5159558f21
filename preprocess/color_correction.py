"""Colour calibrations of NeRSemble, one per camera, that make all cameras see the same colours.

`affine` (first edition): color @ A[:3, :3] + A[:3, 3] on values in [0,1] as they are stored in the picture.
`cheung` (second edition): polynomials of Cheung, Westland, Connah and Ripamonti (Coloration Technology 120, 2004) on *linear* light
(sRGB transfer, IEC 61966-2-1); the number of coefficients per channel says which polynomial it is.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

# Monomials of each polynomial in its order: exponents of red, green and blue.
_R, _G, _B, _ONE = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)
_LINEAR = (_R, _G, _B)
_MIXED = (*_LINEAR, (1, 1, 0), (1, 0, 1), (0, 1, 1))
_QUADRATIC = (*_MIXED, (2, 0, 0), (0, 2, 0), (0, 0, 2))
_RGB = (1, 1, 1)
_CUBES = ((3, 0, 0), (0, 3, 0), (0, 0, 3))
_ROUND = ((2, 1, 0), (0, 2, 1), (1, 0, 2))
_CUBIC = (*_QUADRATIC, _RGB, *_ROUND, (2, 0, 1), (1, 2, 0), (0, 1, 2), *_CUBES)
POLYNOMIALS: dict[int, tuple[tuple[int, int, int], ...]] = {
    len(terms): terms for terms in (
        _LINEAR, (*_LINEAR, _ONE), (*_LINEAR, _RGB, _ONE), (*_MIXED, _ONE), (*_MIXED, _RGB, _ONE), (*_QUADRATIC, _ONE), (*_QUADRATIC, _RGB, _ONE),
        (*_QUADRATIC, _RGB, *_CUBES, _ONE), (*_QUADRATIC, _RGB, *_ROUND, *_CUBES), (*_QUADRATIC, _RGB, *_ROUND, *_CUBES, _ONE),
        _CUBIC, (*_CUBIC, _ONE), (*_CUBIC, (2, 1, 1), (1, 2, 1), (1, 1, 2)),
    )
}
PIXELS_AT_ONCE = 1 << 16  # all terms of so many stay in the processor's cache


def to_linear(color: Float[NDArray, "..."]) -> Float[NDArray, "..."]:
    """sRGB values in [0,1] to linear light."""
    return np.where(color <= 0.04045, color / 12.92, ((np.maximum(color, 0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Float[NDArray, "..."]) -> Float[NDArray, "..."]:
    """Linear light in [0,1] to sRGB values."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1.0 / 2.4) - 0.055)


# Tables, as powers are slow: 8 bits to light; and light to 8 bits in steps fine enough for the darkest level.
_LIGHT_STEPS = 1 << 14
_LIGHT_OF = to_linear(np.arange(256) / 255.0).astype(np.float32)
_VALUE_OF = np.round(255.0 * to_srgb(np.arange(_LIGHT_STEPS + 1) / _LIGHT_STEPS)).astype(np.uint8)


def expanded(color: Float[NDArray, "N 3"], terms: int) -> Float[NDArray, "N T"]:
    """The monomials of the polynomial with `terms` coefficients per channel."""
    powers = [np.ones_like(color), color, color * color, color * color * color]
    columns = np.empty((len(color), terms), dtype=color.dtype)
    for column, (red, green, blue) in enumerate(POLYNOMIALS[terms]):
        columns[:, column] = powers[red][:, 0] * powers[green][:, 1] * powers[blue][:, 2]
    return columns


@dataclass(frozen=True)
class AffineColor:
    """color @ matrix + offset, on values in [0,1]."""

    matrix: Float[NDArray, "3 3"]
    offset: Float[NDArray, "3"]

    def apply(self, pixels: UInt8[NDArray, "H W 3"]) -> UInt8[NDArray, "H W 3"]:
        """Corrected 8-bit picture; what leaves [0,1] is clipped."""
        rows = np.concatenate([self.matrix.T, 255.0 * self.offset[:, None]], axis=1)
        return np.clip(np.rint(cv2.transform(pixels.astype(np.float32), rows)), 0.0, 255.0).astype(np.uint8)


@dataclass(frozen=True)
class CheungColor:
    """matrix (3, T) times the T monomials of linear light."""

    matrix: Float[NDArray, "3 T"]

    def apply(self, pixels: UInt8[NDArray, "H W 3"]) -> UInt8[NDArray, "H W 3"]:
        """Corrected 8-bit picture; what leaves [0,1] is clipped."""
        flat, result = pixels.reshape(-1, 3), np.empty((pixels.size // 3, 3), dtype=np.uint8)
        weights = self.matrix.T.astype(np.float32)
        for start in range(0, len(flat), PIXELS_AT_ONCE):
            light = expanded(_LIGHT_OF[flat[start:start + PIXELS_AT_ONCE]], len(weights)) @ weights
            result[start:start + PIXELS_AT_ONCE] = _VALUE_OF[np.rint(np.clip(light, 0.0, 1.0) * _LIGHT_STEPS).astype(np.int32)]
        return result.reshape(pixels.shape)


ColorCorrection = AffineColor | CheungColor
