"""Numbers in npz, npy and JSON files: arrays that are complete, finite and of the expected shape, or an error that names them; whole when written."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.archives import Damaged, arrays_in
from lib.errors import InputError, NotFiniteError
from lib.files import write_whole


def read_bytes(path: Path, missing: str = "correct the path or copy the file there") -> bytes:
    """Content of a file. Raises InputError; `missing` is what to do where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: file is missing; {missing}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def write_array(path: Path, array: NDArray) -> None:
    """An npy, replaced at once. Raises InputError where it cannot be written."""
    file = io.BytesIO()
    np.save(file, array)
    write_whole(path, file.getvalue())


def write_arrays(path: Path, **arrays: NDArray) -> None:
    """An npz, replaced at once. Raises InputError where it cannot be written."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_whole(path, file.getvalue())


def parse_arrays(path: Path, data: bytes) -> dict[str, NDArray]:
    """Arrays of an npz by name, of an npy under the name ''. Never unpickles. Raises InputError for anything else."""
    try:
        return arrays_in(data)
    except Damaged as error:
        raise InputError(f"{path}: cannot be read as a numpy file ({error}); write it again") from error


def read_json(path: Path, missing: str = "correct the path or copy the file there") -> Any:
    """The content of a JSON file; NaN is left to who looks at numbers. Raises InputError for anything else."""
    try:
        return json.loads(read_bytes(path, missing).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a complete JSON file ({error}); write it again") from error


def numbers(path: Path, archive: dict[str, NDArray], shape: tuple[int | None, ...] | None, key: str = "") -> NDArray[np.float32]:
    """One array of an archive. Raises InputError where it is missing or `finite` refuses it."""
    return finite(_name(path, key), _entry(path, archive, key), shape)


def rows(path: Path, archive: dict[str, NDArray], shape: tuple[int | None, ...], key: str) -> NDArray[np.float32]:
    """The same for an array that holds a row for each frame: `finite` of each is left to who reads the frames."""
    return shaped(_name(path, key), _entry(path, archive, key), shape)


def _name(path: Path, key: str) -> str:
    return f"{path}: '{key}'" if key else str(path)


def _entry(path: Path, archive: dict[str, NDArray], key: str) -> NDArray:
    if key not in archive:
        raise InputError(f"{_name(path, key)}: key is missing; found {sorted(archive)}")
    return archive[key]


def finite(name: str, value: Any, shape: tuple[int | None, ...] | None, dtype: type = np.float32) -> NDArray:
    """What `shaped` gives, of numbers. Raises NotFiniteError where some are NaN, infinite or too large."""
    array = shaped(name, value, shape, dtype)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise NotFiniteError(f"{name}: {bad} of {array.size} values are NaN, infinite or too large; fit this frame again or remove it")
    return array


def shaped(name: str, value: Any, shape: tuple[int | None, ...] | None, dtype: type = np.float32) -> NDArray:
    """An array, or nested lists as JSON holds them. `name` says in errors which; None in `shape` is any length.

    Raises InputError for what is no number, has another shape or is empty.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name}: expected rows of equal length ({error})") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected numbers, found dtype {array.dtype}")
    if shape is not None and (array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True))):
        expected = "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
        raise InputError(f"{name}: expected shape {expected}, found {array.shape}")
    with np.errstate(over="ignore", invalid="ignore"):  # told below
        array = array.astype(dtype)
    if array.size == 0:
        raise InputError(f"{name}: the array is empty (shape {array.shape})")
    return array
