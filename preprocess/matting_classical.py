"""Matting without learned weights: the empty scene is subtracted, GrabCut decides where that is not enough, and the edge is solved for.

1. One gain per channel brings the empty scene to the exposure of the shot (trimmed least squares); what then deviates by much is a first guess of the
   person. Around it, a smooth field of gains takes up soft shadows and vignetting.
2. Deviation of every pixel from that scene in units of the noise, which is measured per picture and grows with the local contrast of the scene.
   Neighbours count together, so that weak differences of an area are seen; what is only darker than the scene may be its shadow.
3. Where the deviation is clear the pixel is decided; the rest is left to GrabCut (Rother et al. 2004), at a reduced size.
4. In a band around the outline, wider where hair deviates beyond it, alpha solves picture = alpha·F + (1-alpha)·scene at full size, F being the
   colour of the person nearby; where F and scene look alike, alpha falls back on a guided filter (He et al. 2010) of what was decided.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]  # (H, W, 3) in [0,1]
Plane = NDArray[np.float32]  # (H, W)
Region = NDArray[np.bool_]  # (H, W)

DECIDED_AT = 256  # pixels of the longer side at which person and background are told apart
FIT_ROUNDS, FIT_KEPT = 12, 0.5  # of the trimmed fit: rounds, and share of the pixels that is taken to be background
LEAST_NOISE = 1.5 / 255.0
SYSTEMATIC = 0.01  # of the brightness: what a fitted scene is off over whole areas
JITTER = 0.15  # pixels of the reduced picture by which contrast of the scene may be displaced
CLEAR, ALIKE = 5.0, 2.5  # deviations: surely the person, and not to be told from the scene
SHADOW, SOFT = 0.8, 2.0  # what is darker than this share of the brightness is no shadow; width of its edges in pixels of the reduced picture
PATTERNED = 1.5  # times the least noise: expected only where the scene has a pattern
FAR = 0.15  # of the size: how far parts of the person may be from what is clear
CLOSING = 0.02  # of the size: gaps that are bridged
REACH = 0.035  # of the size: how far hair may stick out of the outline
DOUBT = 12.0  # times the squared noise: squared contrast at which the solved alpha and that of the guided filter count alike
COLUMNS = 1024


@dataclass(frozen=True)
class Scene:
    """The empty scene as this shot shows it: gain (H, W, 3) by which the background is multiplied, the product, and the noise of a difference."""

    gain: Image
    picture: Image
    noise: Plane


def matte(picture: Image, background: Image) -> Plane:
    """Alpha in [0,1] of one picture before a known background of the same size."""
    height, width = picture.shape[:2]
    scale = min(1.0, DECIDED_AT / max(height, width))
    size = (round(width * scale), round(height * scale))
    small, empty = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (picture, background))
    gain, agreeing = fit_gain(small, empty)
    scene = _scene(small, empty, np.broadcast_to(gain, empty.shape), agreeing)
    outside = ~_grown(clear_region(small, scene), 3)
    scene = _scene(small, empty, fit_field(small, empty, gain, outside), outside)
    person = decide(small, scene)
    return solve_edge(picture, background, small, scene, person, edge_band(small, scene, person))


def fit_gain(picture: Image, background: Image) -> tuple[NDArray[np.float32], Region]:
    """Gain of every channel that brings the background to the picture, and the half of the pixels that agrees best."""
    picture, background = cv2.GaussianBlur(picture, (0, 0), 1.0), cv2.GaussianBlur(background, (0, 0), 1.0)
    gain, count = _first_gain(picture, background), round(FIT_KEPT * picture[..., 0].size)
    for _ in range(FIT_ROUNDS):
        error = np.abs(picture - gain * background).sum(axis=2)
        kept = error <= np.partition(error.ravel(), count)[count]
        gain = ((picture[kept] * background[kept]).sum(axis=0) / (background[kept]**2).sum(axis=0).clip(1e-6)).astype(np.float32)
    return gain, kept


def _first_gain(picture: Image, background: Image) -> NDArray[np.float32]:
    """The most frequent ratio of every channel."""
    gains = np.ones(3, dtype=np.float32)
    for channel in range(3):
        usable = background[..., channel] > 0.05
        if usable.any():
            logs = np.log((picture[..., channel][usable] + 0.02) / (background[..., channel][usable] + 0.02))
            counts, edges = np.histogram(logs, bins=np.linspace(-0.5, 0.5, 51))
            best = int(np.convolve(counts, (0.25, 0.5, 0.25), mode="same").argmax())
            gains[channel] = np.exp(0.5 * (edges[best] + edges[best + 1]))
    return gains


def fit_field(picture: Image, background: Image, gain: NDArray[np.float32], outside: Region) -> Image:
    """Smooth gains: ratios of neighbourhoods outside the person; where there is nothing outside nearby, those of farther ones."""
    error = np.abs(cv2.GaussianBlur(picture - gain * background, (0, 0), 1.0)).max(axis=2)
    weight = (outside & (error < 0.03 + (1.0 - SHADOW) * (gain * background).max(axis=2))).astype(np.float32)
    field = np.broadcast_to(gain, background.shape).astype(np.float32)
    for sigma in (40.0, 12.0, 4.0):
        seen, there = (cv2.GaussianBlur(image * weight[..., None], (0, 0), sigma) for image in (picture, background))
        share = (4.0 * cv2.GaussianBlur(weight, (0, 0), sigma)).clip(0.0, 1.0)[..., None]
        field = (1.0 - share) * field + share * (seen + 1e-3 * field) / (there + 1e-3)
    return field


def _scene(picture: Image, background: Image, gain: Image, background_only: Region) -> Scene:
    """With the noise of the difference, measured by the median where there is background."""
    scene = gain * background
    differences = np.abs(picture - scene)[background_only]
    noise = max(LEAST_NOISE, 1.4826 * float(np.median(differences))) if len(differences) else LEAST_NOISE
    slopes = (np.abs(cv2.Scharr(scene, cv2.CV_32F, *axes, scale=1 / 32)).max(axis=2) for axes in ((1, 0), (0, 1)))
    slope = cv2.dilate(np.maximum(*slopes), np.ones((3, 3), np.uint8))
    return Scene(gain, scene, np.sqrt(noise**2 + (JITTER * slope)**2))


def deviation(picture: Image, scene: Scene, sigma: float, shadows: bool = False) -> Plane:
    """Distance of every pixel, with its neighbours (Gaussian weights), from the scene or, with `shadows`, from a shadow on it; in units of noise."""
    other = scene.picture
    if shadows:
        # Of a neighbourhood: the edge of a shadow is soft, and the pattern of the wall goes on in it.
        light = cv2.GaussianBlur((picture * other).sum(axis=2), (0, 0), SOFT) / cv2.GaussianBlur((other**2).sum(axis=2), (0, 0), SOFT).clip(1e-4)
        other = light.clip(SHADOW, 1.0)[..., None] * other
    difference = cv2.GaussianBlur(picture - other, (0, 0), sigma)
    averaged = 1.0 / (1.0 + 4.0 * np.pi * sigma**2)
    noise = averaged * scene.noise**2 + (SYSTEMATIC * other.max(axis=2))**2 + (1.0 / 255.0)**2 * (1.0 - averaged)
    return np.sqrt((difference**2).mean(axis=2) / noise)


def clear_region(picture: Image, scene: Scene) -> Region:
    """What is surely not the scene."""
    near = deviation(picture, scene, 0.7, shadows=True) > CLEAR
    # An average reaches over the outline by its own width.
    area = cv2.erode((deviation(picture, scene, 2.0, shadows=True) > CLEAR).astype(np.uint8), _disc(2)) > 0
    return _cleaned(near | area)


def decide(picture: Image, scene: Scene) -> Region:
    """Which pixels are the person."""
    single, clear = deviation(picture, scene, 0.7), clear_region(picture, scene)
    labels = np.where(clear, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    # Where the wall is plain, a pixel that looks like it may still be of a person in its colour: GrabCut sees the edges.
    patterned = scene.noise > PATTERNED * scene.noise.min()
    labels[~_grown(clear, round(FAR * max(clear.shape))) | ((single < ALIKE) & patterned & ~_grown(clear, 2))] = cv2.GC_BGD
    labels[_shrunk(clear, 2)] = cv2.GC_FGD
    # Odd labels are of the person.
    if 0 < (labels % 2).sum() < labels.size:
        pixels = np.ascontiguousarray((picture[..., ::-1] * 255.0).round().clip(0, 255).astype(np.uint8))
        cv2.setRNGSeed(0)
        cv2.grabCut(pixels, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 1, cv2.GC_INIT_WITH_MASK)
    return _cleaned((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def _cleaned(region: Region) -> Region:
    """The largest part, gaps bridged and holes filled."""
    closed = cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_CLOSE, _disc(max(1, round(CLOSING * max(region.shape)))))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(closed, cv2.MORPH_OPEN, _disc(1)), connectivity=8)
    if count < 2:
        return np.zeros_like(region)
    kept = (parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    outlines, _ = cv2.findContours(kept, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(kept, outlines, -1, 1, cv2.FILLED) > 0


def edge_band(picture: Image, scene: Scene, person: Region) -> Region:
    """Where alpha may be neither 0 nor 1: along the outline, and farther from it where hair deviates or gaps do not."""
    single, reach = deviation(picture, scene, 0.7), max(2, round(REACH * max(person.shape)))
    hair = _grown(person, reach) & ~person & (single > ALIKE)
    gaps = person & ~_shrunk(person, reach) & (single < ALIKE)
    return (_grown(person, 2) & ~_shrunk(person, 2)) | _grown(hair | gaps, 1)


def solve_edge(picture: Image, background: Image, small: Image, scene: Scene, person: Region, band: Region) -> Plane:
    """Alpha at full size: 1 in the person, 0 outside, solved for in the band."""
    height, width = picture.shape[:2]
    solid = (person & ~band).astype(np.float32)
    front, weight = np.zeros_like(small), np.full_like(solid, 1e-12)
    for sigma, share in ((2.5, 1.0), (8.0, 1e-3), (32.0, 1e-6)):
        weight += share * cv2.GaussianBlur(solid, (0, 0), sigma)
        front += share * cv2.GaussianBlur(small * solid[..., None], (0, 0), sigma)
    front /= weight[..., None]
    slope, level = _guided(small - scene.picture, person.astype(np.float32), radius=3, epsilon=1e-3)

    alpha = cv2.resize(person.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    alpha = (alpha > 0.5).astype(np.float32)
    rows, columns = np.nonzero(cv2.resize(band.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR))
    if len(rows) == 0:
        return alpha
    # The band is a small part of a large picture: only its pixels are looked up. cv2 wants a rectangle of them.
    grid = (-(-len(rows) // COLUMNS), COLUMNS)
    x = np.resize((columns + 0.5) * (small.shape[1] / width) - 0.5, grid).astype(np.float32)
    y = np.resize((rows + 0.5) * (small.shape[0] / height) - 0.5, grid).astype(np.float32)

    def enlarged(image: NDArray[np.float32]) -> NDArray[np.float32]:
        found = cv2.remap(image.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return found.reshape(-1, *image.shape[2:])[:len(rows)]

    there = background[rows, columns] * enlarged(scene.gain)
    difference = picture[rows, columns] - there
    guess = ((enlarged(slope) * difference).sum(axis=1) + enlarged(level)).clip(0.0, 1.0)
    contrast = enlarged(front) - there
    doubt = DOUBT * enlarged(scene.noise)**2
    solved = ((difference * contrast).sum(axis=1) + doubt * guess) / ((contrast**2).sum(axis=1) + doubt)
    alpha[rows, columns] = solved.clip(0.0, 1.0)
    return alpha


def _guided(guide: Image, target: Plane, radius: int, epsilon: float) -> tuple[Image, Plane]:
    """Coefficients of the guided filter with a colour guide: target is about slope·guide + level in every window."""
    def mean(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return cv2.blur(image, (2 * radius + 1, 2 * radius + 1))

    middle, average = mean(guide), mean(target)
    covariance = mean(guide * target[..., None]) - middle * average[..., None]
    products = mean((guide[..., :, None] * guide[..., None, :]).reshape(*target.shape, 9)).reshape(*target.shape, 3, 3)
    spread = products - middle[..., :, None] * middle[..., None, :] + epsilon * np.eye(3, dtype=np.float32)
    slope = np.linalg.solve(spread, covariance[..., None])[..., 0]
    return mean(slope), mean(average - (slope * middle).sum(axis=2))


def _grown(region: Region, radius: int) -> Region:
    return cv2.dilate(region.astype(np.uint8), _disc(radius)) > 0


def _shrunk(region: Region, radius: int) -> Region:
    """The border of the picture cuts the person; it is no outline."""
    return cv2.erode(region.astype(np.uint8), _disc(radius), borderType=cv2.BORDER_REPLICATE) > 0


def _disc(radius: int) -> NDArray[np.uint8]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
