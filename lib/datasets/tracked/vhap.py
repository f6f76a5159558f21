"""VHAP: what it exports, which is what GaussianAvatars and OSGAP read, and what its tracker writes before.

    <set>/transforms{,_train,_val,_test}.json    cameras, and per picture file_path, fg_mask_path, flame_param_path (`../` in combined sets)
    <set>/flame_param/<timestep>.npz             shape (300,), expr (1,100), rotation, translation, neck_pose, jaw_pose (1,3), eyes_pose (1,6),
                                                 static_offset (1,N,3)
    <output>/tracked_flame_params_<epoch>.npz    the same over all timesteps, rows instead of 1; the largest epoch counts
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lib.datasets.arrays import finite, numbers, parse_arrays, read_bytes, rows
from lib.datasets.tracked.files import FolderFiles, Gaps, Look, ReadOptions, numbered
from lib.datasets.tracked.record import FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.datasets.tracked.transforms import look_for, read_entries
from lib.errors import InputError

EXPORT, TRACKER = "VHAP export (GaussianAvatars input)", "VHAP tracker output"
MODEL = FaceModel("FLAME", "2023")
MODEL_NOTE = "the edition of FLAME is not in the files: 2023, which VHAP takes unless told otherwise"
ROTATIONS = {"rotation": 3, "translation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6}
FIELDS = {"expr": "expression", "rotation": "rotation", "translation": "translation", "neck_pose": "neck", "jaw_pose": "jaw", "eyes_pose": "eyes"}


@dataclass(frozen=True)
class FlameRows:
    """FLAME parameters over time, as a file has them: `moving` holds a row per timestep under each key, not yet looked at for NaN."""

    identity: torch.Tensor
    static_offset: torch.Tensor | None
    moving: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.moving["expr"])

    def params(self, row: int, where: str) -> FaceParams:
        """Of one timestep. Raises NotFiniteError, naming `where` and the key, for NaN."""
        values = {FIELDS[key]: torch.from_numpy(finite(f"{where}: '{key}'", rows[row], None)) for key, rows in self.moving.items()}
        return FaceParams(identity=self.identity, static_offset=self.static_offset, **values)


class FlameFiles:
    """Reads npz files of FLAME parameters; equal identities and offsets are kept once."""

    def __init__(self) -> None:
        self._shared: dict[bytes, torch.Tensor] = {}
        self._single: dict[Path, FaceParams] = {}
        self.has_dynamic_offset = False

    def rows(self, path: Path) -> FlameRows:
        """All timesteps. Raises InputError naming the key that is missing or of another length."""
        archive = parse_arrays(path, read_bytes(path))
        expression = rows(path, archive, (None, None), "expr")
        self.has_dynamic_offset |= bool(np.any(archive.get("dynamic_offset", 0)))
        moving = {"expr": expression} | {key: _rows(path, archive, key, len(expression)) for key in ROTATIONS}
        return FlameRows(self._once(numbers(path, archive, None, "shape").reshape(-1)), self._offset(path, archive), moving)

    def single(self, path: Path) -> FaceParams:
        """The one timestep of a file, which all cameras share. Raises InputError where there are more, NotFiniteError for NaN."""
        if path not in self._single:
            found = self.rows(path)
            if len(found) != 1:
                raise InputError(f"{path}: expected the parameters of one timestep, found {len(found)}")
            self._single[path] = found.params(0, str(path))
        return self._single[path]

    def _offset(self, path: Path, archive: dict[str, NDArray]) -> torch.Tensor | None:
        return self._once(numbers(path, archive, (1, None, 3), "static_offset")[0]) if "static_offset" in archive else None

    def _once(self, array: NDArray[np.float32]) -> torch.Tensor:
        return self._shared.setdefault(array.tobytes(), torch.from_numpy(array))


def _rows(path: Path, archive: dict[str, NDArray], key: str, count: int) -> NDArray[np.float32]:
    values = rows(path, archive, (None, ROTATIONS[key]), key)
    if len(values) != count:
        raise InputError(f"{path}: '{key}' has {len(values)} timesteps, 'expr' has {count}; track this sequence again")
    return values


def look_export(path: Path) -> Look:
    """Pictures that name their FLAME parameters."""
    return look_for(path, "flame_param_path")


def read_export(path: Path, options: ReadOptions) -> TrackedSequence:
    """A set of one sequence or a combined one, in the order of its timesteps."""
    folder = path.parent if path.is_file() else path
    files, flame, gaps = FolderFiles(folder, options), FlameFiles(), Gaps(options.skip_nan)
    frames = []
    for entry in read_entries(path):
        image = entry.picture_path(files)
        source = files.inside(entry.text("flame_param_path"), f"{entry.where}: 'flame_param_path'")
        mask = files.inside(entry.text("fg_mask_path"), f"{entry.where}: 'fg_mask_path'") if "fg_mask_path" in entry.values else None
        there = files.picture(image, entry.where)
        with gaps.frame():
            frames.append(TrackedFrame(
                name=entry.text("timestep_id") if "timestep_id" in entry.values else source.stem,
                sequence=entry.text("sequence") if "sequence" in entry.values else source.parent.parent.resolve().name,
                timestep=round(entry.number("timestep_index")), params=flame.single(source),
                where=f"{entry.where} ({source})", camera=entry.text("camera_id" if "camera_id" in entry.values else "camera_index"),
                view=entry.view(there), image=there, mask=None if mask is None else files.picture(mask, entry.where, "mask"), split=entry.split))
    frames.sort(key=lambda frame: frame.timestep)  # stable: cameras keep their order
    notes = (MODEL_NOTE, *files.notes, *gaps.notes(), *(["dynamic_offset is not read"] if flame.has_dynamic_offset else []))
    return TrackedSequence(EXPORT, path, MODEL, "root joint", tuple(frames), notes)


def look_tracker(path: Path) -> Look:
    """The tracker's own file, or one of FLAME parameters over time."""
    if path.is_file() and path.suffix == ".npz":
        keys = _keys(path)
        return Look({"expr", "jaw_pose"} <= keys, f"an npz with {sorted(keys)}; a tracker's has expr, jaw_pose, ...")
    found = numbered(path, r"tracked_flame_params_(\d+)\.npz")
    return Look(bool(found), f"tracked_flame_params_{max(found)}.npz" if found else "no tracked_flame_params_<epoch>.npz")


def read_tracker(path: Path, options: ReadOptions) -> TrackedSequence:
    """One record per timestep, without cameras: VHAP's are in its export."""
    file = path if path.is_file() else numbered(path, r"tracked_flame_params_(\d+)\.npz").popitem()[1]
    found, gaps, frames = FlameFiles().rows(file), Gaps(options.skip_nan), []
    for row, name in enumerate(_timestep_names(file, len(found))):
        with gaps.frame():
            where = f"{file}: timestep {name}"
            frames.append(TrackedFrame(name, file.resolve().parent.name, row, found.params(row, where), where))
    notes = (MODEL_NOTE, "cameras and pictures are in VHAP's export, not here", *gaps.notes())
    return TrackedSequence(TRACKER, file, MODEL, "root joint", tuple(frames), notes)


def _timestep_names(path: Path, count: int) -> list[str]:
    stored: Any = parse_arrays(path, read_bytes(path)).get("timestep_id")
    return [str(name) for name in stored] if np.shape(stored) == (count,) else [f"{row:05d}" for row in range(count)]


def _keys(path: Path) -> set[str]:
    try:
        return set(parse_arrays(path, read_bytes(path)))
    except InputError:
        return set()
