"""Expression rows alone: (T,E) numbers in an npy, npz or csv file. Nothing tells which model they are of, nor where the head is."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lib.datasets.arrays import finite, parse_arrays, read_bytes, shaped
from lib.datasets.tracked.files import Gaps, Look, ReadOptions
from lib.datasets.tracked.record import FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.errors import InputError

FORMAT = "expression rows"
KEYS = ("exp_coeff", "expression", "exp", "expr")  # of an npz that holds more than one array


def look(path: Path) -> Look:
    """A file with such a name; whether it holds rows is seen when it is read."""
    named = path.is_file() and path.suffix in (".npy", ".npz", ".csv")
    return Look(named, f"a {path.suffix} file" if named else "no .npy, .npz or .csv file of rows")


def read(path: Path, options: ReadOptions) -> TrackedSequence:
    """One record per row."""
    values = shaped(str(path), _csv(path) if path.suffix == ".csv" else _numpy(path), None)
    if values.ndim != 2:
        raise InputError(f"{path}: expected rows of expression coefficients, shape (frames, coefficients), found {values.shape}")
    gaps, frames = Gaps(options.skip_nan), []
    for row, value in enumerate(values):
        with gaps.frame():
            where = f"{path}: row {row}"
            frames.append(TrackedFrame(f"{row:05d}", path.stem, row, FaceParams(torch.from_numpy(finite(where, value, None))), where))
    return TrackedSequence(FORMAT, path, FaceModel(None), "origin", tuple(frames), gaps.notes())


def _numpy(path: Path) -> NDArray:
    arrays = parse_arrays(path, read_bytes(path))
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    key = next((key for key in KEYS if key in arrays), None)
    if key is None:
        raise InputError(f"{path}: expected one array, or one called {', '.join(KEYS)}; found {sorted(arrays)}")
    return arrays[key]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _csv(path: Path) -> NDArray[np.float64]:
    """Numbers between commas; a first line that holds names is left out."""
    try:
        lines = [line for line in read_bytes(path).decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error}); expected numbers between commas") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines):
        try:
            rows.append([float(word) for word in line.split(",")])
        except ValueError as error:
            if number or (not line.startswith("#") and any(map(_is_number, line.split(",")))):
                raise InputError(f"{path}: line {number + 1}: expected numbers between commas ({error})") from error
            continue
        if len(rows[-1]) != len(rows[0]):
            raise InputError(f"{path}: line {number + 1} has {len(rows[-1])} values, the first has {len(rows[0])}")
    return np.array(rows)
