"""INSTA: transforms*.json of one camera whose entries name expression files.

    <actor>/transforms{,_train,_val,_test}.json   transform_matrix camera->world OpenGL; file_path, exp_path
    <actor>/flame/exp/<id>.txt                    100 expression coefficients
    <actor>/flame/{jaw,eyes,eyelids}/<id>.txt     optional (the public script writes none): 6 (first two rows of a rotation), 12, 2
"""

from pathlib import Path

import numpy as np
import torch

from lib.datasets.arrays import finite, read_bytes
from lib.datasets.tracked.files import FolderFiles, Gaps, Look, ReadOptions
from lib.datasets.tracked.record import FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.datasets.tracked.rotations import rotation_vectors
from lib.datasets.tracked.transforms import look_for, read_entries
from lib.errors import InputError

FORMAT = "INSTA"
MODEL = FaceModel("FLAME", "2020")


def look(path: Path) -> Look:
    """Pictures that name their expression."""
    return look_for(path, "exp_path")


def read(path: Path, options: ReadOptions) -> TrackedSequence:
    """One camera that moves around a head at rest."""
    folder = path.parent if path.is_file() else path
    files, gaps = FolderFiles(folder, options), Gaps(options.skip_nan)
    frames: list[TrackedFrame] = []
    for number, entry in enumerate(read_entries(path)):
        image = entry.picture_path(files)
        expression = files.inside(entry.text("exp_path"), f"{entry.where}: 'exp_path'")
        there = files.picture(image, entry.where)
        with gaps.frame():
            frames.append(TrackedFrame(
                name=image.stem, sequence=folder.resolve().name, timestep=int(image.stem) if image.stem.isdecimal() else number,
                params=_params(expression), where=f"{entry.where} ({expression})", camera="0", view=entry.view(there), image=there,
                split=entry.split))
    frames.sort(key=lambda frame: frame.timestep)
    notes = [] if frames and frames[0].params.jaw is not None else ["no flame/jaw: the mouth opens by expression coefficients only"]
    return TrackedSequence(FORMAT, path, MODEL, "origin", tuple(frames), (*files.notes, *gaps.notes(), *notes))


def _params(expression: Path) -> FaceParams:
    beside = {name: expression.parent.parent / name / expression.name for name in ("jaw", "eyes", "eyelids")}
    jaw, eyes = (rotation_vectors(_numbers(beside[name], 6 * count), f"{beside[name]}") if beside[name].exists() else None
                 for name, count in (("jaw", 1), ("eyes", 2)))
    eyelids = _numbers(beside["eyelids"], 2) if beside["eyelids"].exists() else None
    return FaceParams(_numbers(expression, None), jaw=jaw, eyes=eyes, eyelids=eyelids)


def _numbers(path: Path, count: int | None) -> torch.Tensor:
    try:
        values = [float(word) for word in read_bytes(path).decode("utf-8").split()]
    except ValueError as error:
        raise InputError(f"{path}: expected numbers and white space only ({error})") from error
    return torch.from_numpy(finite(str(path), np.array(values), (count,)))
