"""Landmarks that somebody has already: read from the published layout or from VHAP's, checked, told what is missing.

    <folder>/landmarks/<frame>/lmk_<camera>.npy                  (68,3) x, y in pixels, score; all zeros: nothing found
    <folder>/landmark2d/{STAR,face-alignment}/<camera>.npz       VHAP, of one sequence: face_landmark_2d (T,68,3), x and y as parts of width
                                                                 and height, -1: nothing found; bounding_box (T,5); rows in order of time
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from lib.datasets.arrays import parse_arrays, read_bytes, read_json
from lib.datasets.head_capture import Picture
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.files import write_whole
from preprocess.landmark_detectors import POINTS, Found

VHAP_DETECTORS = ("STAR", "face-alignment")
VHAP_CAMERA_PREFIX = "cam_"
FARTHEST = 1.0  # picture sizes outside the picture: further out, x and y are not in pixels of such pictures
LISTED = 5


@dataclass(frozen=True)
class LandmarkSet:
    """Landmarks of pictures of one size, and what they were found with."""

    points: dict[Picture, Float[NDArray, "68 3"]]
    size: int
    detector: str
    notes: tuple[str, ...]


def read_existing(source: Path, folder: CaptureFolder, pictures: list[Picture], original: int) -> LandmarkSet:
    """The landmarks of `pictures` (of `original` pixels) that `source` has.

    Raises InputError where it has none, and for arrays of another shape, with NaN, far outside the pictures, or of another number of frames.
    """
    published = source / "landmarks" if (source / "landmarks").is_dir() else source
    if any(published.glob("*/lmk_*.npy")):
        return _read_published(CaptureFolder(published.parent), published, pictures, original)
    for place in _vhap_places(source):
        if any(_holds_landmarks(path) for path in place.glob("*.npz")):
            return _read_vhap(place, folder, pictures, original)
    others = [str(path) for place in _vhap_places(source) for path in sorted(place.glob("*.npz"))]
    raise InputError(f"--from: {source}: expected landmarks/<frame>/lmk_<camera>.npy or VHAP's landmark2d/{{face-alignment,STAR}}/<camera>.npz; "
                     f"found {f'{others[0]} without face_landmark_2d' if others else 'neither'}")


def _vhap_places(source: Path) -> tuple[Path, ...]:
    return source, source / "landmark2d", *(source / "landmark2d" / name for name in VHAP_DETECTORS)


def write_points(folder: CaptureFolder, picture: Picture, points: Float[NDArray, "68 3"]) -> None:
    """Writes one file, whole or not at all."""
    data = io.BytesIO()
    np.save(data, points.astype(np.float32))
    write_whole(folder.detections_path(picture.frame, picture.camera), data.getvalue())


def write_detector(folder: CaptureFolder, detector: str, size: int) -> None:
    """Writes detector.json."""
    write_whole(folder.detector_path(), json.dumps({"size": size, "detector": detector}) + "\n")


def read_detector(folder: CaptureFolder) -> str | None:
    """What the landmarks of a folder were found with; None where it does not say."""
    path = folder.detector_path()
    try:
        name = read_json(path)["detector"] if path.exists() else None
    except (LookupError, TypeError) as error:
        raise InputError(f'{path}: expected {{"size": 2048, "detector": "..."}}, found something else ({type(error).__name__}: {error})') from error
    return None if name is None else str(name)


def detected(folder: CaptureFolder, pictures: list[Picture]) -> list[Picture]:
    """Those that have a file of landmarks."""
    return [picture for picture in pictures if folder.detections_path(picture.frame, picture.camera).exists()]


def as_array(found: Found) -> Float[NDArray, "68 3"]:
    """What the file of one picture holds."""
    return found.points.numpy()


def _read_published(owner: CaptureFolder, published: Path, pictures: list[Picture], original: int) -> LandmarkSet:
    points, problems, missing = {}, [], []
    for picture in pictures:
        path = published / picture.frame / f"lmk_{picture.camera}.npy"
        if not path.exists():
            missing.append(picture)
            continue
        try:
            points[picture] = _checked(path, _load(path), (POINTS, 3))
        except InputError as error:
            problems.append(str(error))
    _refuse(problems, published)
    wanted = {(picture.frame, picture.camera) for picture in pictures}
    others = [path for path in published.glob("*/lmk_*.npy") if (path.parent.name, path.stem.removeprefix("lmk_")) not in wanted]
    if not points:
        raise InputError(f"--from: {published}: none of its files belongs to a picture of the subject: it has "
                         f"{others[0].parent.name}/{others[0].name}, "
                         f"the subject frame {pictures[0].frame}, camera {pictures[0].camera}. Are frames and cameras named alike?")
    reach = max(float(array[:, :2].max()) for array in points.values())
    is_told = published.name == "landmarks" and owner.detector_path().exists()
    size = owner.detection_size(original, reach) if published.name == "landmarks" else original
    notes = [] if is_told else [f"no detector.json: points reach to {reach:.0f} px, taken as found in pictures of {size} x {size}"]
    for picture, array in points.items():
        if (line := _far_outside(array, size)) is not None:
            problems.append(f"{published / picture.frame / f'lmk_{picture.camera}.npy'}: {line}")
    _refuse(problems, published)
    if others:
        notes.append(f"{len(others)} files of other frames or cameras are not used, e.g. {others[0].parent.name}/{others[0].name}")
    return LandmarkSet(_clipped(points), size, (read_detector(owner) if is_told else None) or "unknown", (*notes, *_missing_note(missing, pictures)))


def _read_vhap(place: Path, folder: CaptureFolder, pictures: list[Picture], original: int) -> LandmarkSet:
    files = {path.stem.removeprefix(VHAP_CAMERA_PREFIX): path for path in sorted(place.glob("*.npz")) if _holds_landmarks(path)}
    cameras = list(dict.fromkeys(picture.camera for picture in pictures))
    if len(cameras) == 1 and set(files) <= set(VHAP_DETECTORS):  # one camera: VHAP names the file by the detector
        files = {cameras[0]: next(path for name in VHAP_DETECTORS for path in files.values() if path.stem == name)}
    frames, of_what = _vhap_frames(place, folder)
    points, problems = {}, []
    for camera in (camera for camera in cameras if camera in files):
        path = files[camera]
        try:
            rows = _checked(path, _load(path, "face_landmark_2d"), (len(frames), POINTS, 3), f"{of_what} has {len(frames)} frames")
        except InputError as error:
            problems.append(str(error))
            continue
        for frame, row in zip(frames, rows, strict=True):
            nothing = bool((row[:, :2] == -1.0).any())
            points[Picture(frame, camera)] = np.zeros_like(row) if nothing else row * np.float32([original, original, 1.0])
            if not nothing and (line := _far_outside(points[Picture(frame, camera)], original)) is not None:
                problems.append(f"{path}: row of frame {frame}: {line}")
    _refuse(problems, place)
    wanted = set(pictures)
    points = {picture: array for picture, array in points.items() if picture in wanted}
    if not points:
        raise InputError(f"--from: {place}: none of its cameras ({', '.join(list(files)[:LISTED])}) is one of the subject's "
                         f"({', '.join(cameras[:LISTED])})")
    name = place.name if place.name in VHAP_DETECTORS else next(iter(files.values())).stem
    notes = [f"VHAP, {name}: taken as found in the pictures of this subject; if VHAP saw them uncropped, they are elsewhere (look at the picture)",
             f"rows belong to {of_what}"]
    return LandmarkSet(_clipped(points), original, f"VHAP {name}", (*notes, *_missing_note([one for one in pictures if one not in points], pictures)))


def _vhap_frames(place: Path, folder: CaptureFolder) -> tuple[list[str], str]:
    """The frames that rows stand for: those of the sequence whose folder this is, else all."""
    frames = folder.frames()
    records = folder.records(frames)
    sequences = {record.sequence for record in records or ()}
    for part in (place, *place.parents):
        if records is not None and part.name in sequences:
            return [record.frame for record in records if record.sequence == part.name], f"sequence {part.name}"
    return frames, "the subject"


def _holds_landmarks(path: Path) -> bool:
    return "face_landmark_2d" in parse_arrays(path, read_bytes(path))


def _load(path: Path, key: str = "") -> NDArray:
    arrays = parse_arrays(path, read_bytes(path))
    if key not in arrays:
        raise InputError(f"{path}: expected {f'an array {key!r}' if key else 'one array'}, found {sorted(arrays)}; copy or write it again")
    return arrays[key]


def _checked(path: Path, array: NDArray, shape: tuple[int, ...], why: str = "") -> Float[NDArray, "*S 3"]:
    if array.shape != shape:
        raise InputError(f"{path}: expected shape {shape}{f' ({why})' if why else ''}, found {array.shape}")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected numbers, found dtype {array.dtype}")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise InputError(f"{path}: {bad} of {array.size} values are NaN or infinite; detect this picture again")
    return array.astype(np.float32)


def _far_outside(points: Float[NDArray, "68 3"], size: int) -> str | None:
    low, high = float(points[:, :2].min()), float(points[:, :2].max())
    if low >= -FARTHEST * size and high <= (1.0 + FARTHEST) * size:
        return None
    return f"points lie between {low:.0f} and {high:.0f}, far outside a picture of {size} pixels; were they found in larger pictures?"


def _clipped(points: dict[Picture, Float[NDArray, "68 3"]]) -> dict[Picture, Float[NDArray, "68 3"]]:
    """Scores of heat maps can be a little above 1."""
    return {picture: np.concatenate([array[:, :2], array[:, 2:].clip(0.0, 1.0)], axis=1) for picture, array in points.items()}


def _missing_note(missing: list[Picture], pictures: list[Picture]) -> list[str]:
    if not missing:
        return []
    named = ", ".join(f"frame {one.frame} camera {one.camera}" for one in missing[:LISTED])
    return [f"MISSING for {len(missing)} of {len(pictures)} pictures: {named}" + (", ..." if len(missing) > LISTED else "")]


def _refuse(problems: list[str], source: Path) -> None:
    if problems:
        more = f"\n  ... {len(problems)} in all" if len(problems) > LISTED else ""
        raise InputError(f"--from: {source}: nothing was written:\n  " + "\n  ".join(problems[:LISTED]) + more)
