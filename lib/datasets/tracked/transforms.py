"""transforms{,_train,_val,_test}.json: pictures with cameras as NeRF code writes them. VHAP, GaussianAvatars and INSTA keep theirs so."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lib.datasets.arrays import finite, read_json
from lib.datasets.images import read_image
from lib.datasets.tracked.files import FolderFiles, Look
from lib.errors import InputError
from lib.geometry.camera import Camera

NAMES: dict[str, Literal["train", "val", "test"] | None] = {
    "transforms_train.json": "train", "transforms_val.json": "val", "transforms_test.json": "test", "transforms.json": None}


@dataclass(frozen=True)
class Entry:
    """One element of `frames`; keys that it lacks are those of the file."""

    where: str
    values: dict[str, Any]
    split: Literal["train", "val", "test"] | None

    def text(self, key: str) -> str:
        """A string (numbers become one). Raises InputError where it is missing."""
        value = self.values.get(key)
        if not isinstance(value, str | int):
            raise InputError(f"{self.where}: '{key}': expected a text, found {value!r}")
        return str(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. Raises InputError where there is none and no default."""
        if key not in self.values and default is not None:
            return default
        return float(finite(f"{self.where}: '{key}'", self.values.get(key), (), np.float64))

    def picture_path(self, files: FolderFiles) -> Path:
        """Where the picture is said to be; names without suffix are PNGs."""
        path = files.inside(self.text("file_path"), f"{self.where}: 'file_path'")
        return path if path.suffix in (".png", ".jpg", ".jpeg") else path.with_name(path.name + ".png")

    def view(self, image: Path | None) -> Camera | None:
        """The camera; None where neither the file nor a picture tells how large the picture is."""
        if "w" in self.values and "h" in self.values:
            width, height = round(self.number("w")), round(self.number("h"))
        elif image is not None:
            height, width = read_image(image).shape[1:]
        else:
            return None
        focal_x = self.number("fl_x") if "fl_x" in self.values else width / (2.0 * math.tan(self.number("camera_angle_x") / 2.0))
        focal_y = self.number("fl_y") if "fl_y" in self.values else (
            height / (2.0 * math.tan(self.number("camera_angle_y") / 2.0)) if "camera_angle_y" in self.values else focal_x)
        center = self.number("cx", width / 2.0), self.number("cy", height / 2.0)
        if min(width, height, focal_x, focal_y) <= 0:
            raise InputError(f"{self.where}: expected a positive size and focal length, found {width}x{height}, {focal_x:g} and {focal_y:g}")
        matrix = finite(f"{self.where}: 'transform_matrix'", self.values.get("transform_matrix"), (4, 4), np.float64)
        intrinsics = torch.tensor([[[focal_x, 0.0, center[0]], [0.0, focal_y, center[1]], [0.0, 0.0, 1.0]]])
        return Camera(opencv_view(matrix, self.where)[None], intrinsics, width, height)


def opencv_view(camera_to_world: np.ndarray, where: str) -> torch.Tensor:
    """World->camera (3,4) with OpenCV axes from a camera->world (4,4) with those of OpenGL (y up, looking along -z)."""
    rotation = camera_to_world[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise InputError(f"{where}: 'transform_matrix': its upper left 3x3 block is not a rotation; expected camera->world, OpenGL axes")
    return torch.from_numpy(np.linalg.inv(camera_to_world * np.array([1.0, -1.0, -1.0, 1.0]))[:3].astype(np.float32))


def opengl_matrix(world_to_camera: torch.Tensor) -> np.ndarray:
    """The inverse of `opencv_view`."""
    square = np.concatenate([world_to_camera.double().numpy(), [[0.0, 0.0, 0.0, 1.0]]])
    return np.linalg.inv(square) * np.array([1.0, -1.0, -1.0, 1.0])


def transform_files(path: Path) -> list[Path]:
    """The parts of a set, or the whole where it is not divided; or the one file that was named."""
    if path.is_file():
        return [path] if path.name in NAMES else []
    parts = [path / name for name, split in NAMES.items() if split is not None and (path / name).is_file()]
    return parts or [path / name for name in NAMES if (path / name).is_file()]


def look_for(path: Path, key: str) -> Look:
    """Whether the entries of transforms*.json have this key."""
    files = transform_files(path)
    if not files:
        return Look(False, "no transforms.json or transforms_{train,val,test}.json")
    for file in files:
        try:
            rows = read_json(file)["frames"]
            if rows and key in rows[0]:
                return Look(True, f"{file.name} with '{key}'")
        except (InputError, LookupError, TypeError):
            return Look(False, f"{file.name} is not readable as one")
    return Look(False, f"{files[0].name} has no '{key}'")


def read_entries(path: Path) -> list[Entry]:
    """All entries of all parts. Raises InputError for files that do not hold such."""
    entries = []
    for file in transform_files(path):
        content = read_json(file)
        rows = content.get("frames") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f'{file}: expected {{"frames": [{{"file_path": ..., "transform_matrix": 4 rows of 4}}, ...]}}')
        shared = {key: value for key, value in content.items() if key != "frames"}
        entries += [Entry(f"{file}: frame {number}", shared | row, NAMES[file.name]) for number, row in enumerate(rows)]
    return entries
