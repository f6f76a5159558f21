"""Captures with known mattes: the demo head before walls that are not plain, photographed by cameras that are not perfect."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.images import write_pixels
from lib.datasets.layout import CaptureFolder
from lib.geometry.camera import Camera
from preprocess.demo_head import WALL, DemoHead
from preprocess.demo_performance import SEQUENCES, Performance
from preprocess.demo_presets import PRESETS
from preprocess.demo_sensor import Sensor
from preprocess.demo_subject import CAMERA_IDS, FOCAL_PER_PIXEL, FOCAL_WITH_HAIR, rig

BACKGROUNDS = ("gradient", "stripes", "blotches", "objects")
SIMILAR = ("like_skin", "like_hair")  # as hard as it gets: parts of the outline have no contrast
DRIFT = 0.025  # standard deviation of the gain, per channel, between the empty scene and a shot
SENSOR = Sensor(noise=2.0, blur=0.5, color=0.05)
SHADOW = 0.12  # how much darker the wall is in the middle of the head's shadow
JPEG_QUALITY = 90
CAPTURED = (1, 5, 8, 11, 14)  # rows of the rig


@dataclass(frozen=True)
class Shot:
    """One head as one camera sees it: colour multiplied by coverage, and coverage."""

    camera: str
    row: int
    color: NDArray[np.float32]  # (H, W, 3) in [0,1]
    mask: NDArray[np.float32]  # (H, W)


@dataclass(frozen=True)
class Photograph:
    """What is on disk for one picture, and the truth. RGB, 8 bit; the matte in [0,1]."""

    picture: NDArray[np.uint8]
    empty: NDArray[np.uint8]
    mask: NDArray[np.float32]


def shoot(preset: str, size: int, frame: int, rows: tuple[int, ...] = CAPTURED) -> list[Shot]:
    """One moment of a preset's performance."""
    head = DemoHead(**dataclasses.asdict(PRESETS[preset]), texture_size=2 * size)
    cameras = rig(size, FOCAL_WITH_HAIR if head.cards else FOCAL_PER_PIXEL)
    moment = Performance(head, SEQUENCES[frame % len(SEQUENCES)], seed=0).at(0.6 * (frame + 1))
    vertices = moment.head.to_world(head.vertices(moment.expression))
    shots = []
    for row in rows:
        drawn = head.draw(vertices, Camera(cameras.world_to_camera[[row]], cameras.intrinsics[[row]], size, size))
        color = _pixels(drawn.image - WALL * (1.0 - drawn.mask)).clip(0.0, 1.0)
        shots.append(Shot(CAMERA_IDS[row], row, color, _pixels(drawn.mask)[..., 0]))
    return shots


def photograph(shot: Shot, background: str, frame: int) -> Photograph:
    """Before a background, with a soft shadow on it, cast and drifting gains, blur, noise and JPEG. The same arguments give the same bytes."""
    size = len(shot.mask)
    wall = draw_background(background, size, shot)
    aside = np.array([[1.0, 0.0, size / 9], [0.0, 1.0, size / 12]])
    shadow = cv2.warpAffine(cv2.GaussianBlur(shot.mask, (0, 0), size / 20), aside, (size, size), borderMode=cv2.BORDER_REPLICATE)
    scene = shot.color + (1.0 - shot.mask[..., None]) * wall * (1.0 - SHADOW * shadow[..., None])
    drift = 1.0 + DRIFT * np.random.default_rng([1, shot.row, frame]).standard_normal(3).astype(np.float32)
    return Photograph(_jpeg(SENSOR.capture(scene, shot.row, frame) * drift), _jpeg(SENSOR.capture(wall, shot.row, 1000)), shot.mask)


def draw_background(kind: str, size: int, shot: Shot) -> NDArray[np.float32]:
    """(H, W, 3) in [0,1]; not the same for any two cameras."""
    random = np.random.default_rng([2, shot.row, *kind.encode()])
    y, x = np.meshgrid(np.linspace(0.0, 1.0, size), np.linspace(0.0, 1.0, size), indexing="ij")
    if kind in SIMILAR:
        wall = _color_of(shot, kind) * (1.0 + 0.06 * _clouds(random, size))[..., None]
    elif kind == "gradient":
        low, high, turn = random.uniform(0.35, 0.6, 3), random.uniform(0.55, 0.9, 3), random.uniform(0, np.pi)
        wall = low + (high - low) * ((x * np.cos(turn) + y * np.sin(turn)) % 1.5)[..., None]
    elif kind == "stripes":
        turn = random.uniform(0, np.pi)
        wave = 0.5 + 0.5 * np.tanh(3.0 * np.sin(2 * np.pi * 9.0 * (x * np.cos(turn) + y * np.sin(turn))))
        low, high = random.uniform(0.15, 0.5, 3), random.uniform(0.5, 0.85, 3)
        wall = low + (high - low) * wave[..., None]
    elif kind == "blotches":
        wall = np.stack([0.5 + 0.22 * _clouds(random, size) for _ in range(3)], axis=-1)
    elif kind == "objects":
        wall = np.ones((size, size, 3)) * random.uniform(0.5, 0.75, 3) * (0.85 + 0.3 * y)[..., None]
        for _ in range(14):
            (cx, cy), (rx, ry), color = random.uniform(0, 1, 2), random.uniform(0.03, 0.14, 2), random.uniform(0.05, 0.95, 3)
            inside = ((np.abs(x - cx) < rx) & (np.abs(y - cy) < ry)) if random.random() < 0.5 else (((x - cx) / rx)**2 + ((y - cy) / ry)**2 < 1)
            wall[inside] = color * (0.9 + 0.2 * x[inside])[:, None]
    else:
        raise ValueError(kind)
    return np.clip(wall, 0.0, 1.0).astype(np.float32)


def write_capture(
    root: Path, preset: str, background: str, size: int, frames: int, rows: tuple[int, ...] = CAPTURED
) -> dict[Path, NDArray[np.float32]]:
    """A subject folder without mattes; returns the true matte of every picture by the path where it belongs."""
    folder, truth = CaptureFolder(root), {}
    for frame in range(frames):
        for shot in shoot(preset, size, frame, rows):
            taken = photograph(shot, background, frame)
            write_pixels(folder.image_path(f"{frame:04d}", shot.camera), _planes(taken.picture))
            write_pixels(folder.background_path(shot.camera), _planes(taken.empty))
            truth[folder.image_path(f"{frame:04d}", shot.camera, "mask")] = taken.mask
    return truth


def _color_of(shot: Shot, kind: str) -> NDArray[np.float32]:
    """The median colour of the middle of the head, or of its top."""
    rows, columns = np.nonzero(shot.mask > 0.99)
    height = (rows - rows.min()) / np.ptp(rows)
    part = height < 0.1 if kind == "like_hair" else np.abs(height - 0.6) < 0.1
    return np.median(shot.color[rows[part], columns[part]], axis=0).clip(0.04, 1.0)


def _clouds(random: np.random.Generator, size: int) -> NDArray[np.floating]:
    """Smooth noise of about unit deviation, the same at every size."""
    total = sum(weight * cv2.resize(random.standard_normal((cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)
                for cells, weight in ((4, 1.0), (9, 0.6), (24, 0.3)))
    return total / total.std()


def _jpeg(rgb: NDArray[np.floating]) -> NDArray[np.uint8]:
    pixels = np.round(np.clip(rgb, 0.0, 1.0) * 255.0).astype(np.uint8)
    data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def _pixels(image: Tensor) -> NDArray[np.float32]:
    return image[0].permute(1, 2, 0).numpy()


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
