"""Parts of a picture that measures are restricted to: weights per pixel, made from projected landmarks, and means under them."""

import math

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.datasets.layout import LANDMARK_COUNT, LEFT_MOUTH_ROW, LOWER_LIP_ROW, MOUTH_ROWS, RIGHT_MOUTH_ROW, UPPER_LIP_ROW

OPEN_MOUTH = 0.2  # of the mouth width: a larger inner-lip gap counts as open
MOUTH_MARGIN = 1.25  # the box of the projected mouth landmarks is enlarged by this factor
SUBPIXEL_BITS = 4  # of the corners of a polygon
FARTHEST = 1 << 20  # pixels: OpenCV counts in 32 bits, of which some are fractions


def mouth_is_open(landmarks: Float[Tensor, "L 3"]) -> bool:
    """Whether the gap between the inner lips exceeds 20 % of the distance of the inner mouth corners."""
    gap = (landmarks[UPPER_LIP_ROW] - landmarks[LOWER_LIP_ROW]).norm()
    return bool(gap > OPEN_MOUTH * (landmarks[LEFT_MOUTH_ROW] - landmarks[RIGHT_MOUTH_ROW]).norm())


def mouth_box(pixels: Float[Tensor, "L 2"], width: int, height: int) -> tuple[slice, slice] | None:
    """Rows and columns of the box of projected mouth landmarks, enlarged about its centre, in a picture; None where it lies outside."""
    points = pixels[MOUTH_ROWS]
    low, high = points.amin(dim=0), points.amax(dim=0)
    centre, half = (low + high) / 2.0, MOUTH_MARGIN * (high - low) / 2.0
    left, top = (max(0, math.floor(value)) for value in (centre - half).tolist())
    right, bottom = (min(size, math.ceil(value)) for value, size in zip((centre + half).tolist(), (width, height), strict=True))
    return (slice(top, bottom), slice(left, right)) if right > left and bottom > top else None


def mouth_region(landmarks: Float[Tensor, "L 3"], pixels: Float[Tensor, "L 2"], width: int, height: int) -> UInt8[Tensor, "H W"]:
    """1 in the mouth box of an open mouth (landmarks in the world, and projected); 0 everywhere where the mouth is closed."""
    region = np.zeros((height, width), dtype=np.uint8)
    box = mouth_box(pixels, width, height) if mouth_is_open(landmarks) else None
    if box is not None:
        region[box] = 1
    return torch.from_numpy(region)


def face_region(pixels: Float[Tensor, "L 2"], width: int, height: int) -> UInt8[Tensor, "H W"]:
    """1 in the convex hull of the projected 66 landmarks: chin and jaw to the brows, without the forehead."""
    corners = (pixels[:LANDMARK_COUNT].double().numpy() - 0.5).clip(-FARTHEST, FARTHEST)  # OpenCV's first pixel has its centre at 0
    hull = cv2.convexHull(np.round(corners * 2**SUBPIXEL_BITS).astype(np.int32))
    return torch.from_numpy(cv2.fillConvexPoly(np.zeros((height, width), dtype=np.uint8), hull, 1, cv2.LINE_8, SUBPIXEL_BITS))


def weighted_means(values: Float[Tensor, "B H W"], weights: Float[Tensor, "B R H W"]) -> Float[Tensor, "B R"]:
    """Mean over pixels under each weight; NaN where a weight is zero everywhere."""
    return torch.einsum("bhw,brhw->br", values, weights) / weights.sum(dim=(2, 3))
