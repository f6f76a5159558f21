"""Models that are a mean and two bases in a file: shapes are checked, the origin becomes the centroid of the mean."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lib.errors import InputError
from lib.face_models.contract import FaceModel, vertex_landmarks

LARGEST = 1e30  # of any number in a face model: sums and products of it are finite in float32


def array(path: Path, content: dict[str, Any], key: str, width: int | None = None) -> NDArray:
    """A numeric array of a file; with `width`, at least that many entries of the last dimension, of which the first are taken.

    Raises InputError naming file, key, what was expected and found.
    """
    if key not in content:
        raise InputError(f"{path}: '{key}' is missing; found {', '.join(sorted(content))}. Is it another version of the model?")
    try:
        value = np.asarray(content[key])
    except ValueError as error:
        raise InputError(f"{path}: '{key}': expected rows of equal length ({error})") from error
    with np.errstate(invalid="ignore"):  # numpy warns of some kinds of NaN, which are told here
        is_fine = value.dtype.kind in "fiu" and value.size > 0 and bool((np.abs(value.astype(np.float64)) < LARGEST).all())
    if not is_fine:
        raise InputError(f"{path}: '{key}': expected finite numbers, found {value.dtype} of shape {value.shape}")
    if width is None:
        return value
    if value.ndim < 2 or value.shape[-1] < width:
        raise InputError(f"{path}: '{key}': expected at least {width} columns, found shape {value.shape}; is it another version of the model?")
    return value[..., :width]


def triples(path: Path, content: dict[str, Any], key: str) -> NDArray:
    """An array as rows of three. Raises InputError as `array`, and where it cannot be."""
    value = array(path, content, key)
    if value.size % 3:
        raise InputError(f"{path}: '{key}': expected rows of three numbers, found shape {value.shape}")
    return value.reshape(-1, 3)


def rows_of(path: Path, key: str, value: NDArray, count: int, first: int = 0) -> NDArray[np.int64]:
    """Numbers of `count` rows, counted from `first` in the file and from 0 here. Raises InputError for others."""
    if value.min() < first or value.max() >= first + count:
        raise InputError(f"{path}: '{key}': expected rows {first} to {count - 1 + first}, found {value.min()} to {value.max()}")
    return value.astype(np.int64) - first


def linear_model(
    path: Path, name: str, content: dict[str, Any], identity_count: int, expression_count: int, first_row: int, expression_spread: float,
    bounded: bool,
) -> FaceModel:
    """From the keys meanshape, idBase, exBase, tri and keypoints; rows of `tri` and `keypoints` count from `first_row`."""
    mean = triples(path, content, "meanshape").astype(np.float32)
    bases = []
    for key, width in (("idBase", identity_count), ("exBase", expression_count)):
        basis = array(path, content, key, width)
        if basis.size != mean.size * width:
            raise InputError(f"{path}: '{key}': expected {mean.size} rows (3 for each of the {len(mean)} vertices of 'meanshape'), "
                             f"found shape {basis.shape}")
        bases.append(torch.from_numpy(basis.astype(np.float32).reshape(len(mean), 3, width)).permute(2, 0, 1).contiguous())
    triangles = rows_of(path, "tri", triples(path, content, "tri"), len(mean), first_row)
    landmarks = rows_of(path, "keypoints", array(path, content, "keypoints").reshape(-1), len(mean), first_row)
    try:
        corners, weights = vertex_landmarks(landmarks)
    except InputError as error:
        raise InputError(f"{path}: 'keypoints': {error}") from error
    return FaceModel(
        name=name, mean=torch.from_numpy(mean - mean.mean(axis=0)), identity=bases[0], expression=bases[1], triangles=torch.from_numpy(triangles),
        landmark_corners=corners, landmark_weights=weights, identity_spread=torch.ones(identity_count),
        expression_spread=torch.full((expression_count,), expression_spread), bounded=torch.full((expression_count,), bounded),
    )
