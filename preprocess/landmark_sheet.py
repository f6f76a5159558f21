"""What was found, for people: a table per camera, jumps between frames, and one picture per camera with its landmarks."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.head_capture import FOREGROUND, Picture
from lib.datasets.images import read_image, resize
from lib.datasets.layout import JAW_ROWS, CaptureFolder
from lib.errors import InputError

COLUMNS, TILE, STRIP = 4, 384, 28  # pictures per row, pixels, pixels of labels
FINE = 4  # marks are drawn that much larger and averaged down
DARK, TEXT = (20, 20, 20), (255, 255, 255)
# A face moves by less between neighbouring frames of a capture, of its own size; a wrong detection by more.
LARGEST_STEP = 0.3
LISTED = 8
LEAST_ON_HEAD = 0.5  # share of the points in the matte, median over pictures: below, they were found in other pictures
CHECKED_PICTURES = 16


@dataclass(frozen=True)
class CameraFound:
    """What was found in the pictures of one camera. `score` is the mean over the pictures with a face."""

    camera: str
    pictures: int
    files: int
    found: int
    score: float


@dataclass(frozen=True)
class Jump:
    """How far the points of a camera move from one frame to the next, of the face's size (median over the points)."""

    camera: str
    before: str
    after: str
    size: float


@dataclass(frozen=True)
class Findings:
    """All landmarks of a folder; pictures without a face are absent."""

    points: dict[Picture, Float[Tensor, "66 3"]]
    cameras: tuple[CameraFound, ...]
    jumps: tuple[Jump, ...]

    def lines(self) -> list[str]:
        """The report."""
        lines = ["camera        found in      mean score"]
        for one in self.cameras:
            lacking = f"   ({one.pictures - one.files} without a file)" if one.files < one.pictures else ""
            score = f"{one.score:.2f}" if one.found else "-"
            lines.append(f"{one.camera:<12} {one.found:>5} of {one.pictures:<5} {score:>8}{lacking}")
        lines.append(f"{'all':<12} {len(self.points):>5} of {sum(one.pictures for one in self.cameras)}")
        if self.jumps:
            lines.append(f"look at jumps of more than {LARGEST_STEP:.0%} of the face's size between neighbouring frames ({len(self.jumps)}):")
            lines += [f"  camera {jump.camera}, {jump.before} to {jump.after}: {jump.size:.0%}" for jump in self.jumps[:LISTED]]
            lines += [f"  ... {len(self.jumps)} in all"] if len(self.jumps) > LISTED else []
        return lines


def take_findings(folder: CaptureFolder, pictures: list[Picture]) -> Findings:
    """Reads the landmark files of `pictures`, in the order of frames. Raises InputError for one that cannot be used."""
    files = {picture for picture in pictures if folder.detections_path(picture.frame, picture.camera).exists()}
    read = {picture: folder.read_detections(picture.frame, picture.camera) for picture in pictures if picture in files}
    points = {picture: one for picture, one in read.items() if one is not None}
    cameras = []
    for camera in dict.fromkeys(picture.camera for picture in pictures):
        own = [picture for picture in pictures if picture.camera == camera]
        scores = [float(points[picture][:, 2].mean()) for picture in own if picture in points]
        cameras.append(CameraFound(camera, len(own), sum(picture in files for picture in own), len(scores), mean(scores) if scores else 0.0))
    return Findings(points, tuple(sorted(cameras, key=lambda one: one.camera)), tuple(_jumps(folder, points)))


def share_on_heads(folder: CaptureFolder, points: dict[Picture, NDArray], size: int) -> float | None:
    """Median share of points that fall on the mattes, over some pictures in which a face was found; None where there are no mattes."""
    shares = []
    for picture, array in points.items():
        name = folder.files(picture.frame).image_name(picture.camera, "mask")
        if name is None or not array.any():
            continue
        matte = read_image(folder.images_path(picture.frame) / name)[0].numpy() >= FOREGROUND
        column, row = np.floor(array[:, :2].T * (matte.shape[1] / size)).astype(int)
        inside = (column >= 0) & (column < matte.shape[1]) & (row >= 0) & (row < matte.shape[0])
        shares.append(float(matte[row[inside], column[inside]].sum()) / len(array))
        if len(shares) == CHECKED_PICTURES:
            break
    return median(shares) if shares else None


def draw_sheet(folder: CaptureFolder, pictures: list[Picture], findings: Findings, size: int) -> UInt8[Tensor, "3 H W"]:
    """One picture of every camera, from the middle of those with a face, points from red (score 0) over yellow to green (1)."""
    rows = -(-len(findings.cameras) // COLUMNS)
    sheet = np.full((rows * TILE + STRIP, min(COLUMNS, len(findings.cameras)) * TILE, 3), DARK, np.uint8)
    for index, camera in enumerate(findings.cameras):
        row, column = divmod(index, COLUMNS)
        sheet[row * TILE:(row + 1) * TILE, column * TILE:(column + 1) * TILE] = _tile(folder, pictures, findings, camera, size)
    _legend(sheet)
    return torch.from_numpy(sheet).permute(2, 0, 1)


def _jumps(folder: CaptureFolder, points: dict[Picture, Float[Tensor, "66 3"]]) -> list[Jump]:
    frames = folder.frames()
    records = folder.records(frames)
    sequence_of = {record.frame: record.sequence for record in records or ()}
    jumps = []
    for camera in dict.fromkeys(picture.camera for picture in points):
        for before, after in zip(frames, frames[1:], strict=False):
            one, other = points.get(Picture(before, camera)), points.get(Picture(after, camera))
            if one is None or other is None or sequence_of.get(before) != sequence_of.get(after):
                continue
            # From the side the jaw line is the visible outline, which wanders; the face's size is that of all points.
            step = (other - one)[JAW_ROWS.stop:, :2].norm(dim=1).median()
            extent = (one[:, :2].amax(dim=0) - one[:, :2].amin(dim=0)).max()
            size = float(step / extent.clamp(min=1.0))
            if size > LARGEST_STEP:
                jumps.append(Jump(camera, before, after, size))
    return sorted(jumps, key=lambda jump: -jump.size)


def _tile(folder: CaptureFolder, pictures: list[Picture], findings: Findings, camera: CameraFound, size: int) -> NDArray[np.uint8]:
    own = [picture for picture in pictures if picture.camera == camera.camera]
    seen = [picture for picture in own if picture in findings.points] or own
    picture = seen[len(seen) // 2]
    path = image_path(folder, picture)
    try:
        tile = np.ascontiguousarray(resize(read_image(path), TILE).permute(1, 2, 0).numpy())
    except InputError:
        tile = np.full((TILE, TILE, 3), DARK, np.uint8)  # told before
    points = findings.points.get(picture)
    if points is not None:
        tile = _dots(tile, points[:, :2].numpy() * (TILE / size), points[:, 2].tolist())
    score = f"score {camera.score:.2f}" if camera.found else "no face found"
    for top, words in ((0, f"camera {camera.camera}   frame {picture.frame}"), (TILE - STRIP, f"{camera.found} of {camera.pictures}   {score}")):
        tile[top:top + STRIP] = tile[top:top + STRIP] // 3
        _text(tile, words, 8, top + 19)
    return tile


def image_path(folder: CaptureFolder, picture: Picture) -> Path:
    """The file of a picture, JPEG or PNG."""
    name = folder.files(picture.frame).image_name(picture.camera)
    return folder.images_path(picture.frame) / name if name else folder.image_path(picture.frame, picture.camera)


def _dots(tile: NDArray[np.uint8], pixels: Float[NDArray, "66 2"], scores: list[float]) -> NDArray[np.uint8]:
    large = cv2.resize(tile, (TILE * FINE, TILE * FINE), interpolation=cv2.INTER_LINEAR)
    for (x, y), score in zip(pixels.tolist(), scores, strict=True):
        centre = (round(x * FINE - 0.5), round(y * FINE - 0.5))
        if max(map(abs, centre)) < 8 * TILE * FINE:
            for radius, color in ((2.6, DARK), (1.9, _color(score))):
                cv2.circle(large, centre, round(radius * FINE), color, -1, cv2.LINE_AA)
    return cv2.resize(large, (TILE, TILE), interpolation=cv2.INTER_AREA)


def _color(score: float) -> tuple[int, int, int]:
    score = min(max(score, 0.0), 1.0)
    return (round(255 * min(1.0, 2.0 - 2.0 * score)), round(255 * min(1.0, 2.0 * score)), 40)


def _legend(sheet: NDArray[np.uint8]) -> None:
    bottom, left = sheet.shape[0], 8
    _text(sheet, "score 0", left, bottom - 9)
    for step in range(100):
        start = left + 70 + step
        sheet[bottom - 18:bottom - 8, start:start + 1] = _color(step / 99)
    _text(sheet, "1", left + 178, bottom - 9)


def _text(image: NDArray[np.uint8], text: str, left: int, bottom: int) -> None:
    cv2.putText(image, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, TEXT, 1, cv2.LINE_AA)
