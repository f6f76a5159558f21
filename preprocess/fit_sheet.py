"""Pictures of a fit: the mesh and its landmarks over some photographs, and the error over the frames."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.images import read_image, resize
from lib.datasets.layout import CaptureFolder
from lib.datasets.sampler import spread
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.trimesh import vertex_normals
from lib.render.mesh.reference import visible_faces
from preprocess.fit_head import HeadFit
from preprocess.fit_observations import SIZE, Observations
from preprocess.fit_report import FitReport

FRAMES, CAMERAS, TILE, STRIP = 4, 5, 320, 24
MESH_SHARE = 0.55  # of the shaded mesh over the photograph, on the right half of it
Color = tuple[int, int, int]
FITTED, DETECTED, TEXT, DARK, LINE, HIGH = (90, 255, 90), (255, 70, 70), (255, 255, 255), (20, 20, 20), (40, 90, 200), (200, 120, 60)
CURVE_WIDTH, CURVE_HEIGHT, MARGIN = 1000, 320, 50


def draw_overlays(
    folder: CaptureFolder, fit: HeadFit, seen: Observations, report: FitReport, frames: list[str], cameras: list[str]
) -> Float[Tensor, "3 H W"]:
    """Rows: frames, the worst one last; columns: cameras that see most. Green: fitted landmarks, red: detected, mesh: shaded."""
    chosen = spread(list(range(len(frames))), FRAMES)
    worst = max(range(len(frames)), key=lambda f: np.nan_to_num(report.frames[frames[f]].median, nan=-1.0))
    chosen = list(dict.fromkeys([*chosen[:FRAMES - 1 if worst not in chosen else FRAMES], worst]))
    pictured = [c for c in range(len(cameras)) if report.cameras[cameras[c]].detections > 0]
    columns = spread(pictured, CAMERAS)
    rows = []
    for f in chosen:
        vertices = fit.vertices(f)
        rows.append(np.concatenate([_tile(folder, fit, vertices, seen, report, (f, c), frames[f], cameras[c]) for c in columns], axis=1))
    return torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1).float() / 255.0


def draw_curve(report: FitReport) -> Float[Tensor, "3 H W"]:
    """Median and 95 % of the error of every frame, pixels at 512²."""
    image = np.full((CURVE_HEIGHT, CURVE_WIDTH, 3), 255, np.uint8)
    values = np.array([[errors.median, errors.high] for errors in report.frames.values()])
    # False detections lie anywhere in a picture, and are let go above the upper edge.
    top = max(1.0, 4.0 * float(np.nanmax(values[:, 0]))) if np.isfinite(values).any() else 1.0
    width, height = CURVE_WIDTH - 2 * MARGIN, CURVE_HEIGHT - 2 * MARGIN
    for step in range(5):
        y = MARGIN + round(height * step / 4)
        cv2.line(image, (MARGIN, y), (MARGIN + width, y), (225, 225, 225), 1)
        _text(image, f"{top * (1 - step / 4):.1f}", 8, y + 4, DARK)
    for column, color in ((1, HIGH), (0, LINE)):
        x = MARGIN + np.linspace(0.5, width - 0.5, len(values)) if len(values) > 1 else np.array([MARGIN + width / 2])
        y = MARGIN + height * (1.0 - np.clip(values[:, column] / top, 0.0, 1.0))
        points = [(round(a), round(b)) for a, b in zip(x, y, strict=True) if np.isfinite(b)]
        cv2.polylines(image, [np.array(points, np.int32).reshape(-1, 1, 2)], False, color, 2, cv2.LINE_AA)
        if len(points) < 100:
            for point in points:
                cv2.circle(image, point, 3, color, -1, cv2.LINE_AA)
    names = list(report.frames)
    _text(image, f"frame {names[0]}", MARGIN, CURVE_HEIGHT - 15, DARK)
    _text(image, names[-1], MARGIN + width - 40, CURVE_HEIGHT - 15, DARK)
    _text(image, "error of landmarks, pixels at 512 x 512:", MARGIN, 25, DARK)
    _text(image, "median", MARGIN + 340, 25, LINE)
    _text(image, "95 %", MARGIN + 420, 25, HIGH)
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255.0


def _tile(
    folder: CaptureFolder, fit: HeadFit, vertices: Float[Tensor, "M 3"], seen: Observations, report: FitReport, place: tuple[int, int],
    frame: str, camera_name: str,
) -> NDArray[np.uint8]:
    f, c = place
    tile = _photograph(folder, frame, camera_name)
    camera = Camera(seen.camera.world_to_camera[f, c][None], seen.camera.intrinsics[f, c][None], SIZE, SIZE).resized(TILE, TILE)
    if folder.files(frame).has_camera(camera_name):
        shaded, covered = _shaded(vertices, fit.model.triangles, camera)
        covered[:, :TILE // 2] = False
        tile[covered] = (1 - MESH_SHARE) * tile[covered] + MESH_SHARE * shaded[covered]
        _marks(tile, camera.project(fit.model.landmarks(vertices)[None])[0], FITTED)
        if bool((seen.scores[f, c] > 0).any()):
            _marks(tile, seen.pixels[f, c] * (TILE / SIZE), DETECTED)
    tile[:STRIP] = tile[:STRIP] // 3
    median = report.distances[f, c][~report.distances[f, c].isnan()]
    error = f"  {float(median.median()):.1f} px" if len(median) > 0 else "  no detection"
    _text(tile, f"{camera_name}  frame {frame}{error}", 6, 16, TEXT)
    return tile


def _photograph(folder: CaptureFolder, frame: str, camera: str) -> NDArray[np.uint8]:
    name = folder.files(frame).image_name(camera)
    if name is None:
        return np.full((TILE, TILE, 3), 127, np.uint8)
    try:
        image = read_image(folder.images_path(frame) / name)
    except InputError:
        return np.full((TILE, TILE, 3), 127, np.uint8)  # the fit needs no picture; check_subject tells of broken ones
    return np.ascontiguousarray(resize(image, TILE).permute(1, 2, 0).numpy())


def _shaded(vertices: Float[Tensor, "M 3"], triangles: Int[Tensor, "T 3"], camera: Camera) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    seen = camera.to_camera(vertices[None])
    buffer = visible_faces(camera.to_pixels(seen), seen[..., 2], triangles, TILE, TILE)
    normals = vertex_normals(seen[0], triangles)
    where = buffer.covered[0]
    normal = (normals[triangles[buffer.face[0][where]]] * buffer.barycentrics[0][where][..., None]).sum(dim=1)
    grey = torch.zeros(TILE, TILE, dtype=vertices.dtype)
    grey[where] = 60.0 + 180.0 * normal[:, 2].abs()
    tint = torch.tensor([0.75, 0.85, 1.0], dtype=vertices.dtype)
    return (grey[..., None] * tint).float().numpy(), where.numpy().copy()


def _marks(tile: NDArray[np.uint8], points: Float[Tensor, "66 2"], color: Color) -> None:
    for x, y in points.clamp(-TILE, 2 * TILE).tolist():
        cv2.circle(tile, (round((x - 0.5) * 16), round((y - 0.5) * 16)), 24, color, -1, cv2.LINE_AA, shift=4)


def _text(image: NDArray[np.uint8], text: str, left: int, bottom: int, color: Color) -> None:
    cv2.putText(image, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
