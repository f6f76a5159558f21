"""IMavatar, PointAvatar, MonoGaussianAvatar: one flame_params.json per video.

    <video>/flame_params.json     frames [{file_path "./image/1", world_mat 3x4, expression (50), pose (15)}], shape_params (100),
                                  intrinsics [fx, fy, cx, cy]: fx negative; parts of the picture's size, in old sets pixels of 512
    <video>/{image,mask}/<n>.png

world_mat is world->camera with y up, looking along -z (why fx is negative), in units of FLAME times 4. pose: rotation vectors of head, neck,
jaw and both eyes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.datasets.arrays import finite, read_json
from lib.datasets.images import read_image
from lib.datasets.layout import by_number
from lib.datasets.tracked.files import FolderFiles, Gaps, Look, ReadOptions
from lib.datasets.tracked.record import UPRIGHT, FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.errors import InputError
from lib.geometry.camera import Camera

FORMAT = "IMavatar (PointAvatar, MonoGaussianAvatar)"
MODEL = FaceModel("FLAME", "2020")
NAME = "flame_params.json"
SCALE, OLD_SIZE = 4.0, 512.0


def look(path: Path) -> Look:
    """A video, or a folder of videos."""
    files = _files(path)
    return Look(bool(files), ", ".join(str(file.relative_to(path.parent)) for file in files) if files else f"no {NAME} here nor one folder below")


def read(path: Path, options: ReadOptions) -> TrackedSequence:
    """All videos; they share the identity of the first where that is so on disk. Which are for training only a MonoGaussianAvatar .conf says."""
    found = _files(path)
    folders, gaps = [FolderFiles(file.parent, options) for file in found], Gaps(options.skip_nan)
    frames = [frame for file, files in zip(found, folders, strict=True) for frame in _video(file, files, gaps)]
    notes = (*(note for files in folders for note in files.notes), *gaps.notes())
    return TrackedSequence(FORMAT, path, MODEL, "root joint", tuple(frames), notes, units_per_metre=SCALE)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name == NAME else []
    return [path / NAME] if (path / NAME).is_file() else sorted(path.glob(f"*/{NAME}"), key=lambda file: by_number(file.parent.name))


def _video(file: Path, files: FolderFiles, gaps: Gaps) -> list[TrackedFrame]:
    content: Any = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise InputError(f'{file}: expected {{"frames": [...], "shape_params": [...], "intrinsics": [fx, fy, cx, cy]}}')
    identity = torch.from_numpy(finite(f"{file}: 'shape_params'", content.get("shape_params"), None).reshape(-1))
    lens = finite(f"{file}: 'intrinsics'", content.get("intrinsics"), (4,), np.float64)
    if lens[0] >= 0 or lens[1] <= 0:
        raise InputError(f"{file}: 'intrinsics': expected fx below 0 and fy above, as this format's cameras look along -z; found {lens.tolist()}")
    if lens[3] > 1.0:
        lens = lens / OLD_SIZE
    frames, size = [], None
    for row, values in enumerate(content["frames"]):
        where = f"{file}: frame {row}"
        if not isinstance(values, dict) or not isinstance(values.get("file_path"), str):
            raise InputError(f"{where}: 'file_path': expected a text such as './image/1'")
        where = f"{where} ('{values['file_path']}')"
        image = files.inside(values["file_path"], where)
        image = image if image.suffix in (".png", ".jpg") else image.with_name(image.name + ".png")
        there = files.picture(image, where)
        mask = files.picture(image.parent.parent / "mask" / image.name, where, "mask")
        if size is None and there is not None:
            size = tuple(read_image(there).shape[1:])
        with gaps.frame():
            expression, pose, matrix = (torch.from_numpy(finite(f"{where}: '{key}'", values.get(key), shape)) for key, shape in (
                ("expression", (None,)), ("pose", (15,)), ("world_mat", (3, 4))))
            params = FaceParams(expression, identity, pose[:3], torch.zeros(3), torch.tensor([SCALE]), pose[3:6], pose[6:9], pose[9:15])
            frames.append(TrackedFrame(image.stem, file.resolve().parent.name, int(image.stem) - 1 if image.stem.isdecimal() else row, params,
                                       where, "0", None if size is None else _camera(matrix, lens, *size), there, mask))
    return sorted(frames, key=lambda frame: frame.timestep)


def _camera(world_mat: torch.Tensor, lens: np.ndarray, height: int, width: int) -> Camera:
    fx, fy, cx, cy = lens.tolist()
    intrinsics = torch.tensor([[[-fx * width, 0.0, cx * width], [0.0, fy * height, cy * height], [0.0, 0.0, 1.0]]])
    return Camera(torch.tensor(UPRIGHT)[:, None] * world_mat[None], intrinsics, width, height)
