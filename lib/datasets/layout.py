"""The subject folder on disk: the one place that knows its file names, shapes and units.

    <subject>/images/<frame>/{image,mask,visible}[_lowres]_<camera>.jpg      8-bit; mask and visible use channel 0
    <subject>/cameras/<frame>/camera_<camera>.npz     extrinsic (3,4) world->camera, OpenCV axes; intrinsic (3,3) pixels
    <subject>/params/<frame>/params.npz               id_coeff, exp_coeff (1,E), scale (1,), pose (1,6) rotation vector + translation
    <subject>/params/<frame>/{lmk_3d,vertices}.npy    (66,3) landmarks and (M,3) model vertices, world units
    <subject>/frames.json                             optional: sequence and time of every frame
    <subject>/landmarks/<frame>/lmk_<camera>.npy      optional: (68,3) detected x, y, score; training never reads it
    <subject>/landmarks/detector.json                 optional: {"size": pixels of the square pictures they were detected in, "detector": name}
    <subject>/expressionless/<frame>/{image,mask}_<camera>.jpg   synthetic subjects only: the truth with expression 0
"""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.arrays import numbers, parse_arrays, read_bytes, read_json
from lib.errors import InputError
from lib.tensors import TensorBundle

LANDMARK_COUNT = 66  # the 68-point set without the outer mouth corners 48 and 54
MOUTH_ROWS = slice(48, 66)
UPPER_LIP_ROW, LOWER_LIP_ROW = 60, 64  # centres of the inner lips (62 and 66 of the 68-point set)
LEFT_MOUTH_ROW, RIGHT_MOUTH_ROW = 58, 62  # inner mouth corners (60 and 64 of the 68-point set)
OUTER_MOUTH_CORNERS = (48, 54)  # rows of the 68-point set that the 66 landmarks lack
JAW_ROWS = slice(0, 17)
CONTROL_VERTEX_STRIDE = 100  # control landmarks are the 66 landmarks and every 100th model vertex
PARAMS_NAME, LANDMARKS_NAME, VERTICES_NAME = "params.npz", "lmk_3d.npy", "vertices.npy"
LOWRES_SIZE = 256  # pixels of the `_lowres` files
IMAGE_SUFFIXES = (".jpg", ".png")  # in order of preference
# (identity, expression) coefficients -> the model that the published fitting, or that of this project, writes with these.
MODELS: dict[tuple[int, int], tuple[str, ...]] = {
    (80, 64): ("BFM", "2009"), (150, 52): ("FaceVerse", "2"), (100, 59): ("FLAME",), (10, 55): ("ICT-FaceKit",), (60, 55): ("ICT-FaceKit",)}
DETECTOR_SIZES = (256, 512, 1024)  # usual sizes of the pictures that landmarks are detected in, when not the full ones


@dataclass(frozen=True)
class FrameParams(TensorBundle):
    """The tracked head of one frame."""

    expression: Float[Tensor, "E"]
    pose: Float[Tensor, "6"]
    scale: Float[Tensor, "1"]
    scale_shape: tuple[int, ...]  # as stored
    identity_count: int = 0  # of coefficients in id_coeff; 0: it has none

    @property
    def model(self) -> tuple[str, ...]:
        """Name and version of the 3DMM that fittings write with as many coefficients (nothing else tells them apart); () for others."""
        return MODELS.get((self.identity_count, len(self.expression)), ())


@dataclass(frozen=True)
class ControlPoints(TensorBundle):
    """What ties the head to the 3DMM in one frame, world units: 66 landmarks, then every 100th model vertex."""

    points: Float[Tensor, "L 3"]
    stored_landmarks: int


@dataclass(frozen=True)
class FrameFiles:
    """Names of one frame's files, listed once: asking costs no access to the disk."""

    images: frozenset[str]
    cameras: frozenset[str]
    params: frozenset[str]

    def image_name(self, camera: str, kind: str = "image", lowres: bool = False) -> str | None:
        """The JPEG, else the PNG, else None. `kind` is image, mask or visible."""
        stem = _image_stem(camera, kind, lowres)
        return next((stem + suffix for suffix in IMAGE_SUFFIXES if stem + suffix in self.images), None)

    def has_camera(self, camera: str) -> bool:
        """Whether the camera file is there."""
        return _camera_name(camera) in self.cameras

    def pictured_cameras(self) -> set[str]:
        """Cameras that have an image, full or lowres."""
        stems = (name[:-4] for name in self.images if name.startswith("image_") and name.endswith(IMAGE_SUFFIXES))
        return {stem.removeprefix("image_").removeprefix("lowres_") for stem in stems}


@dataclass(frozen=True)
class FrameRecord:
    """One row of frames.json."""

    frame: str
    sequence: str
    time: float


def by_number(name: str) -> list[tuple[int, str]]:
    """Sorting key under which 2 comes before 10: numbers within a name count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


class CaptureFolder:
    """Paths and validated readers of one subject folder. Readers raise InputError naming the file and what is wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # A rig does not move: equal camera files are parsed once, which makes thousands of frames cheap.
        self._parsed_cameras: dict[bytes, tuple[Float[Tensor, "3 4"], Float[Tensor, "3 3"]]] = {}

    def image_path(self, frame: str, camera: str, kind: str = "image", lowres: bool = False) -> Path:
        """Where the JPEG of a picture belongs; `kind` is image, mask or visible."""
        return self.images_path(frame) / f"{_image_stem(camera, kind, lowres)}.jpg"

    def images_path(self, frame: str) -> Path:
        """All pictures of one frame."""
        return self.root / "images" / frame

    def expressionless_path(self, frame: str, camera: str, kind: str = "image") -> Path:
        """The same picture (or mask) with expression 0: synthetic subjects only."""
        return self.root / "expressionless" / frame / f"{kind}_{camera}.jpg"

    def background_path(self, camera: str) -> Path:
        """The empty scene."""
        return self.root / "background" / f"image_{camera}.jpg"

    def camera_path(self, frame: str, camera: str) -> Path:
        """Extrinsic and intrinsic of one picture."""
        return self.root / "cameras" / frame / _camera_name(camera)

    def params_path(self, frame: str) -> Path:
        """Tracked parameters of one frame."""
        return self.root / "params" / frame / PARAMS_NAME

    def landmarks_path(self, frame: str) -> Path:
        """3D landmarks of one frame."""
        return self.root / "params" / frame / LANDMARKS_NAME

    def vertices_path(self, frame: str) -> Path:
        """Model vertices of one frame."""
        return self.root / "params" / frame / VERTICES_NAME

    def detections_path(self, frame: str, camera: str) -> Path:
        """2D landmarks found in one picture."""
        return self.root / "landmarks" / frame / f"lmk_{camera}.npy"

    def detector_path(self) -> Path:
        """What the 2D landmarks were found with, and in pictures of which size."""
        return self.root / "landmarks" / "detector.json"

    def frames_path(self) -> Path:
        """Which sequence each frame belongs to."""
        return self.root / "frames.json"

    def fit_path(self) -> Path:
        """What the last 3DMM fit says of itself."""
        return self.root / "params" / "fit.json"

    def require_whole_fit(self) -> None:
        """Raises InputError where the last 3DMM fit was interrupted while it replaced the files of an earlier one."""
        try:
            said = read_json(self.fit_path())
        except InputError:  # absent, or edited by hand: only the fit itself says this
            return
        if isinstance(said, dict) and said.get("complete") is False:
            raise InputError(f"{self.fit_path()}: the last 3DMM fit was interrupted while it replaced files, so that frames of two fits are mixed; "
                             f"run python -m preprocess.fit_3dmm {self.root} again")

    def frames(self) -> list[str]:
        """Sorted frame names: the folders under images/."""
        if not self.root.is_dir():
            raise InputError(f"dataset.dataroot: '{self.root}' is not a folder; expected a subject folder with images/, cameras/, "
                             "params/ (README, 'subject folder'; `python -m preprocess.demo_subject` makes one)")
        images = self.root / "images"
        # Hidden folders (.ipynb_checkpoints and the like) are left by tools, not by a capture.
        folders = [path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith(".")] if images.is_dir() else []
        names = sorted(folders, key=by_number)
        strange = next((name for name in names if not name.isprintable()), None)
        if strange is not None:
            raise InputError(f"{images}: frame {strange!r} has control characters in its name; rename the folder")
        if not names:
            raise InputError(f"{images}: expected one folder per frame (e.g. images/0000/), found none")
        check_numbers(images, names)
        return names

    def files(self, frame: str) -> FrameFiles:
        """What one frame holds: three directory listings instead of a question per file."""
        return FrameFiles(*(_file_names(folder) for folder in (
            self.images_path(frame), self.camera_path(frame, "").parent, self.params_path(frame).parent)))

    def records(self, frames: list[str]) -> list[FrameRecord] | None:
        """frames.json for exactly these frames, or None when the subject has no such file."""
        path = self.frames_path()
        if not path.exists():
            return None
        try:
            records = [_record(row) for row in read_json(path)["frames"]]
            by_frame = {record.frame: record for record in records}
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise InputError(f'{path}: expected {{"frames": [{{"frame": "0000", "sequence": "EXP-2-eyes", "time": 0.0}}, ...]}}, '
                             f"found something else ({type(error).__name__}: {error})") from error
        if len(by_frame) < len(records):
            names = [record.frame for record in records]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{path}: frame '{twice}' has {names.count(twice)} entries; leave one")
        missing = [frame for frame in frames if frame not in by_frame]
        if missing:
            raise InputError(f"{path}: no entry for frame {missing[0]} ({len(missing)} of {len(frames)} missing); "
                             "add them or remove the file")
        return [by_frame[frame] for frame in frames]

    def read_camera(self, frame: str, camera: str) -> tuple[Float[Tensor, "3 4"], Float[Tensor, "3 3"]]:
        """World->camera and intrinsics in pixels of the original resolution."""
        path = self.camera_path(frame, camera)
        data = _bytes(path)
        if data not in self._parsed_cameras:
            self._parsed_cameras[data] = _checked_camera(path, parse_arrays(path, data))
        return self._parsed_cameras[data]

    def read_params(self, frame: str) -> FrameParams:
        """Expression, pose and scale of one frame."""
        return read_params_file(self.params_path(frame))

    def read_control_points(self, frame: str) -> ControlPoints:
        """World positions of the control landmarks. 68 landmarks lose the outer mouth corners."""
        path = self.landmarks_path(frame)
        stored = numbers(path, _load(path), (None, 3))
        landmarks = _without_outer_corners(stored)
        if len(landmarks) != LANDMARK_COUNT:
            raise InputError(f"{path}: expected {LANDMARK_COUNT} landmarks (or 68), found {len(stored)}")
        path = self.vertices_path(frame)
        vertices = numbers(path, _load(path), (None, 3))
        return ControlPoints(torch.from_numpy(np.concatenate([landmarks, vertices[::CONTROL_VERTEX_STRIDE]])), len(stored))

    def read_vertices(self, frame: str, count: int) -> Float[Tensor, "N 3"]:
        """Up to `count` model vertices of one frame at equal distances, world units: the same rows in every frame."""
        path = self.vertices_path(frame)
        vertices = numbers(path, _load(path), (None, 3))
        return torch.from_numpy(vertices[np.linspace(0, len(vertices) - 1, min(count, len(vertices))).astype(int)])

    def read_detections(self, frame: str, camera: str) -> Float[Tensor, "66 3"] | None:
        """Detected landmarks (x, y in pixels of the detector's picture, score); None where there is no file or nothing was found (all zeros)."""
        path = self.detections_path(frame, camera)
        if not path.exists():
            return None
        stored = numbers(path, _load(path), (None, 3))
        found = _without_outer_corners(stored)
        if len(found) != LANDMARK_COUNT:
            raise InputError(f"{path}: expected 68 landmarks (or {LANDMARK_COUNT}), found {len(stored)}")
        return torch.from_numpy(found.copy()) if found.any() else None

    def detection_size(self, original: int, reach: float) -> int:
        """Side of the square pictures that landmarks were detected in: as detector.json says, else the smallest usual one that holds `reach`.

        `original`: pixels of the full pictures; `reach`: the largest coordinate of any detection.
        """
        path = self.detector_path()
        if not path.exists():
            return next((size for size in DETECTOR_SIZES if reach <= size < original), original)
        try:
            size = read_json(path)["size"]
        except (LookupError, TypeError) as error:
            raise InputError(f'{path}: expected {{"size": 2048, "detector": "..."}}, found another ({type(error).__name__}: {error})') from error
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"{path}: 'size': expected a positive number of pixels, found {size!r}")
        return size


def check_numbers(folder: Path, frames: Iterable[str]) -> None:
    """Raises InputError where two frames of a folder have one number."""
    numbered: dict[int, str] = {}
    for name in filter(str.isdecimal, frames):
        other = numbered.setdefault(int(name), name)
        if other != name:
            raise InputError(f"{folder}: frames '{other}' and '{name}' have the same number; remove or rename one of the two folders")


def read_camera_file(path: Path) -> tuple[Float[Tensor, "3 4"], Float[Tensor, "3 3"]]:
    """One camera npz: world->camera (3,4) and intrinsics (3,3) in pixels of the original resolution."""
    return _checked_camera(path, _load(path))


def read_camera_path_file(path: Path) -> tuple[Float[Tensor, "K 3 4"], Float[Tensor, "K 3 3"]]:
    """A camera path: json {"cameras": [{"extrinsic": 3 rows of 4, "intrinsic": 3 rows of 3}, ...]}, evenly spaced in time."""
    try:
        rows = read_json(path, "README, 'Reenactment', says what it holds")["cameras"]
        archives = [{name: np.asarray(row[name], dtype=np.float64) for name in ("extrinsic", "intrinsic")} for row in rows]
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise InputError(f'{path}: expected {{"cameras": [{{"extrinsic": 3 rows of 4 numbers, "intrinsic": 3 rows of 3}}, ...]}}, '
                         f"found something else ({type(error).__name__}: {error})") from error
    if not archives:
        raise InputError(f"{path}: 'cameras' is empty; give at least one")
    extrinsics, intrinsics = zip(*(_checked_camera(path, archive) for archive in archives), strict=True)
    return torch.stack(extrinsics), torch.stack(intrinsics)


def _checked_camera(path: Path, archive: dict[str, NDArray]) -> tuple[Float[Tensor, "3 4"], Float[Tensor, "3 3"]]:
    return checked_camera(str(path), numbers(path, archive, (3, 4), "extrinsic"), numbers(path, archive, (3, 3), "intrinsic"))


def checked_camera(
    name: str, extrinsic: Float[NDArray, "3 4"], intrinsic: Float[NDArray, "3 3"]
) -> tuple[Float[Tensor, "3 4"], Float[Tensor, "3 3"]]:
    """The same as float32 tensors. Raises InputError, naming `name`, for what is no rotation or has no positive focal lengths."""
    rotation = extrinsic[:, :3].astype(np.float64)
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3:
        raise InputError(f"{name}: 'extrinsic': its left 3x3 block is not a rotation; expected world->camera, OpenCV axes")
    if np.linalg.det(rotation) < 0:
        raise InputError(f"{name}: 'extrinsic': one axis is mirrored (its left 3x3 block has determinant -1, so it is not a rotation); expected "
                         "world->camera, OpenCV axes (x right, y down, z forward): turning y over turns z over too")
    if intrinsic[0, 0] <= 0 or intrinsic[1, 1] <= 0:
        raise InputError(f"{name}: 'intrinsic': focal lengths must be positive pixels, found {intrinsic[0, 0]} and {intrinsic[1, 1]}")
    return torch.from_numpy(extrinsic), torch.from_numpy(intrinsic)


def read_params_file(path: Path) -> FrameParams:
    """One params.npz; a (1,1) scale is accepted."""
    archive = _load(path)
    expression = numbers(path, archive, (1, None), "exp_coeff")[0]
    pose = numbers(path, archive, (1, 6), "pose")[0]
    stored_scale = numbers(path, archive, None, "scale")
    scale = stored_scale.reshape(-1)
    if scale.shape != (1,) or scale[0] <= 0:
        raise InputError(f"{path}: 'scale': expected one positive number of shape (1,) or (1,1), found {scale.tolist()}")
    return FrameParams(*map(torch.from_numpy, (expression, pose, scale)), stored_scale.shape, np.size(archive.get("id_coeff", ())))


def _record(row: Any) -> FrameRecord:
    """One row of frames.json. Raises ValueError, KeyError or TypeError for what is none."""
    frame, sequence, time = row["frame"], row["sequence"], float(row["time"])
    if not isinstance(frame, str | int) or not isinstance(sequence, str | int) or not math.isfinite(time):
        raise ValueError(f"found frame {frame!r}, sequence {sequence!r}, time {time}")
    return FrameRecord(str(frame), str(sequence), time)


def _image_stem(camera: str, kind: str, lowres: bool) -> str:
    return f"{kind}_{'lowres_' if lowres else ''}{camera}"


def _camera_name(camera: str) -> str:
    return f"camera_{camera}.npz"


def _file_names(folder: Path) -> frozenset[str]:
    """Files (and links to files) in a folder; none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); expected the folder of one frame") from error


def _without_outer_corners(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.delete(landmarks, OUTER_MOUTH_CORNERS, axis=0) if len(landmarks) == LANDMARK_COUNT + 2 else landmarks


def _load(path: Path) -> dict[str, NDArray]:
    return parse_arrays(path, _bytes(path))


def _bytes(path: Path) -> bytes:
    return read_bytes(path, "README, 'subject folder', says what it holds")
