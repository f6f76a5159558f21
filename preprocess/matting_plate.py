"""The empty scene of one camera, estimated where nobody photographed it: what is seen beside the person in any of some pictures.

In every picture GrabCut tells the person from what lies along the upper border and both sides, where no person is expected. The estimate is the
median over the pictures in which a place was free; a place that never was takes the colours around it. This is weaker than a photograph: where
the person never moved away there is nothing to compare with, and what GrabCut takes for background is background.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocess.matting_classical import DECIDED_AT, Region

PIXELS_AT_ONCE = 1 << 20  # of each picture, in the median
BORDER = 0.02  # of the size: taken to be background along the upper border and both sides
SIDES = 0.6  # of the height, from the top: below, shoulders may touch the sides
CHEST = 0.75  # of the height, from the top: below, the person is expected to fill most of the width
ROUNDS = 4  # of GrabCut
MARGIN = 0.02  # of the size: kept away from the person
LEAST, MOST = 0.04, 0.85  # share of the picture that a person can cover


class NoEstimate(Exception):
    """The background cannot be told from the person; the message says why."""


def estimate_background(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The empty scene (H, W, 3) from pictures of one camera of the same size. Raises NoEstimate."""
    height, width = pictures[0].shape[:2]
    persons = [person_by_border(picture) for picture in pictures]
    shares = [float(person.mean()) for person in persons]
    # A person that is not found in one picture would be background in that place.
    usable = [k for k, share in enumerate(shares) if LEAST <= share <= MOST]
    if len(usable) < (len(pictures) + 1) // 2:
        raise NoEstimate(f"what differs from the border of the picture covers {min(shares):.0%} to {max(shares):.0%} of it, which is no person")
    size = max(persons[0].shape)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(MARGIN * size) + 1,) * 2)
    taken = [cv2.resize(cv2.dilate(persons[k].astype(np.uint8), disc), (width, height), interpolation=cv2.INTER_NEAREST) > 0 for k in usable]
    plate, seen = _median_of_free([pictures[k] for k in usable], taken)
    return _filled(plate, seen)


def person_by_border(picture: NDArray[np.uint8]) -> Region:
    """What GrabCut finds to be unlike the border, at a reduced size."""
    height, width = picture.shape[:2]
    scale = min(1.0, DECIDED_AT / max(height, width))
    small = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    rows, columns = small.shape[:2]
    border, sides = max(1, round(BORDER * max(rows, columns))), round(SIDES * rows)
    labels = np.full((rows, columns), cv2.GC_PR_BGD, np.uint8)
    cv2.ellipse(labels, (columns // 2, round(0.55 * rows)), (round(0.3 * columns), round(0.45 * rows)), 0, 0, 360, cv2.GC_PR_FGD, cv2.FILLED)
    labels[round(CHEST * rows):, columns // 8:-columns // 8] = cv2.GC_PR_FGD
    labels[:border] = labels[:sides, :border] = labels[:sides, -border:] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    cv2.grabCut(small, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    outlines, _ = cv2.findContours(found, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(outlines, key=cv2.contourArea, default=None)
    whole = np.zeros_like(found)
    return (whole if largest is None else cv2.drawContours(whole, [largest], -1, 1, cv2.FILLED)) > 0


def _median_of_free(pictures: list[NDArray[np.uint8]], taken: list[Region]) -> tuple[NDArray[np.uint8], Region]:
    """Per pixel over the pictures where it is free, and whether there is one; in strips, for memory."""
    plate = np.zeros_like(pictures[0])
    seen = ~np.logical_and.reduce(taken)
    step = max(1, PIXELS_AT_ONCE // plate.shape[1])
    for top in range(0, len(plate), step):
        rows = slice(top, top + step)
        colors = np.stack([picture[rows] for picture in pictures])
        hidden = np.repeat(np.stack([where[rows] for where in taken])[..., None], 3, axis=-1)
        plate[rows] = np.ma.median(np.ma.masked_array(colors, hidden), axis=0).filled(0).astype(np.uint8)
    return plate, seen


def _filled(plate: NDArray[np.uint8], seen: Region) -> NDArray[np.uint8]:
    """Unseen places take an average of their surroundings, wide enough to reach some."""
    size, image, weight = max(seen.shape), plate.astype(np.float32), seen.astype(np.float32)
    scale = min(1.0, DECIDED_AT / size)
    small = (max(1, round(seen.shape[1] * scale)), max(1, round(seen.shape[0] * scale)))
    color, there = cv2.resize(image * weight[..., None], small, interpolation=cv2.INTER_AREA), cv2.resize(weight, small, interpolation=cv2.INTER_AREA)
    total, mass = np.zeros_like(color), np.full_like(there, 1e-9)
    for sigma, share in ((4.0, 1.0), (16.0, 1e-2), (64.0, 1e-4)):
        total, mass = total + share * cv2.GaussianBlur(color, (0, 0), sigma), mass + share * cv2.GaussianBlur(there, (0, 0), sigma)
    smooth = cv2.resize(total / mass[..., None], seen.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(seen[..., None], plate, smooth.clip(0, 255).astype(np.uint8))
