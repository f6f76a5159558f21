"""Four views of one frame with landmarks, matte outline and model_bbox drawn in: a camera or scale that is off is seen at once."""

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.capture_check import BoundingBox
from lib.datasets.head_capture import FOREGROUND, HeadCapture, Picture
from lib.datasets.layout import LANDMARK_COUNT, MOUTH_ROWS
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from preprocess.check_findings import Mark

VIEWS, COLUMNS, TILE, STRIP = 4, 2, 512, 28  # pictures, pictures per row, pixels, pixels of the legend
DRAWN = 3 * TILE  # marks are drawn larger and averaged down: cv2's own small circles are diamonds
Color = tuple[int, int, int]
OUTLINE, LANDMARKS, MOUTH, BOX, TEXT, DARK = (80, 255, 80), (60, 200, 255), (255, 70, 190), (255, 190, 60), (255, 255, 255), (20, 20, 20)
WRONG = (255, 60, 40)
LEGEND: tuple[tuple[str, Color], ...] = (("matte", OUTLINE), ("landmarks", LANDMARKS), ("mouth", MOUTH), ("model_bbox", BOX))
# Corners are counted in binary: bit k is the end of axis k. An edge changes one bit.
EDGES = tuple((corner, corner | 1 << axis) for axis in range(3) for corner in range(8) if not corner & 1 << axis)


def draw_sheet(
    capture: HeadCapture, model_bbox: BoundingBox, frame: str, cameras: list[str], marks: list[Mark] | None = None,
) -> Float[Tensor, "3 H W"]:
    """The marked pictures, then cameras of `frame` as far apart as the rig allows: up to four in all, in [0,1]; at most 1024 pixels wide."""
    by_picture = {mark.picture: mark for mark in marks or []}
    shown = list(by_picture)[:VIEWS]
    spread_out = (Picture(frame, camera) for camera in spread_cameras(capture, frame, cameras))
    shown += [picture for picture in spread_out if picture not in by_picture][:VIEWS - len(shown)]
    rows = -(-len(shown) // COLUMNS)
    sheet = np.full((rows * TILE + STRIP, min(len(shown), COLUMNS) * TILE, 3), DARK, np.uint8)
    for index, picture in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        sheet[row * TILE:(row + 1) * TILE, column * TILE:(column + 1) * TILE] = _tile(capture, model_bbox, picture, by_picture.get(picture))
    left = 10
    for word, color in LEGEND if not by_picture else (*LEGEND, ("should be", WRONG)):
        _text(sheet, word, left, sheet.shape[0] - 10, color)
        left += cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 20
    return torch.from_numpy(sheet).permute(2, 0, 1).float() / 255.0


def spread_cameras(capture: HeadCapture, frame: str, cameras: list[str]) -> list[str]:
    """Up to four cameras with the largest angles between them as seen from the head, in order along the rig."""
    rotations, translations = capture.camera(frame, cameras).world_to_camera.split([3, 1], dim=-1)
    centres = -(rotations.transpose(1, 2) @ translations)[..., 0]
    directions = torch.nn.functional.normalize(centres - capture.params[frame].pose[3:], dim=1)
    cosines = directions @ directions.T
    chosen = [int(cosines.amin(dim=1).argmin())]
    while len(chosen) < min(VIEWS, len(cameras)):
        nearest = cosines[chosen].amax(dim=0)
        nearest[chosen] = 2.0
        chosen.append(int(nearest.argmin()))
    return [cameras[index] for index in sorted(chosen, key=lambda index: -float(cosines[chosen[0], index]))]


def _tile(capture: HeadCapture, model_bbox: BoundingBox, picture: Picture, mark: Mark | None) -> NDArray[np.uint8]:
    """One picture, RGB."""
    try:
        item = capture.item(picture.frame, [picture.camera])
    except InputError:
        return _labelled(np.full((TILE, TILE, 3), DARK, np.uint8), picture, mark)
    pixels = item.pixels[0, :4].permute(1, 2, 0).numpy()
    shrink = pixels.shape[0] > DRAWN
    pixels = cv2.resize(pixels, (DRAWN, DRAWN), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
    tile, matte = np.ascontiguousarray(pixels[..., :3]), (pixels[..., 3] >= FOREGROUND).astype(np.uint8)
    camera = item.camera.resized(DRAWN, DRAWN)

    _draw_box(tile, camera, item.head, model_bbox)
    outlines, _ = cv2.findContours(matte, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, outlines, -1, OUTLINE, 4, cv2.LINE_AA)
    points = camera.project(item.control_points[None, :LANDMARK_COUNT])[0]
    for row, point in enumerate(points.tolist()):
        color = MOUTH if row in range(*MOUTH_ROWS.indices(LANDMARK_COUNT)) else LANDMARKS
        for radius, shade in ((11, DARK), (8, color)):
            cv2.circle(tile, _pixel(point), radius, shade, -1, cv2.LINE_AA)
    if mark is not None and mark.landmarks is not None:
        _draw_mark(tile, points, mark.landmarks * DRAWN)
    return _labelled(cv2.resize(tile, (TILE, TILE), interpolation=cv2.INTER_AREA), picture, mark)


def _draw_mark(tile: NDArray[np.uint8], points: Float[Tensor, "L 2"], should: Float[Tensor, "L 2"]) -> None:
    """Circles where the landmarks should be, and lines from where they are."""
    for start, end in zip(points.tolist(), should.tolist(), strict=True):
        cv2.line(tile, _pixel(start), _pixel(end), WRONG, 2, cv2.LINE_AA)
        cv2.circle(tile, _pixel(end), 10, WRONG, 4, cv2.LINE_AA)


def _labelled(tile: NDArray[np.uint8], picture: Picture, mark: Mark | None) -> NDArray[np.uint8]:
    """The names above; what is wrong below, with a frame around."""
    tile[:STRIP] = tile[:STRIP] // 3  # so that the name can be read on a bright wall
    _text(tile, f"camera {picture.camera}   frame {picture.frame}", 10, 19, TEXT)
    if mark is not None:
        tile[-STRIP:] = tile[-STRIP:] // 3
        cv2.rectangle(tile, (1, 1), (TILE - 2, TILE - 2), WRONG, 3)
        _text(tile, mark.label, 10, TILE - 10, WRONG)
    return tile


def _draw_box(tile: NDArray[np.uint8], camera: Camera, head: HeadPose, model_bbox: BoundingBox) -> None:
    corners = torch.tensor([[model_bbox[axis][corner >> axis & 1] for axis in range(3)] for corner in range(8)])
    seen = camera.to_camera(HeadPose(head.pose[None], head.scale[None]).to_world(corners[None]))
    pixels = camera.to_pixels(seen)[0].tolist()
    for start, end in EDGES:
        if float(seen[0, [start, end], 2].min()) > 0:
            cv2.line(tile, _pixel(pixels[start]), _pixel(pixels[end]), BOX, 4, cv2.LINE_AA)


def _pixel(point: list[float]) -> tuple[int, int]:
    """cv2 puts the centre of the first pixel at 0, we at 0.5. Far points are clipped to what cv2 can draw."""
    x, y = (round(min(max(value, -8.0 * DRAWN), 8.0 * DRAWN) - 0.5) for value in point)
    return x, y


def _text(image: NDArray[np.uint8], text: str, left: int, bottom: int, color: Color) -> None:
    cv2.putText(image, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
