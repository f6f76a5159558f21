"""Raw NeRSemble on disk: the one place that knows its file names, in each of the three shapes that people have.

    v1-zips      first edition, unpacked zips ("View 3, vertical"): sequence_<SEQ>_part-N/<id>/<SEQ>/cam_<serial>.mp4
    v1-subject   first edition, sorted by participant: <id>/<SEQ>/cam_<serial>.mp4
    v2           second edition (`nersemble-data download`): <id>/sequences/<SEQ>/images/cam_<serial>.mp4
"""

import glob
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from lib.datasets.arrays import finite, parse_arrays, read_bytes, read_json
from lib.datasets.layout import by_number, checked_camera
from lib.errors import InputError
from lib.files import name_fault
from lib.geometry.camera import Camera
from preprocess.color_correction import POLYNOMIALS, AffineColor, CheungColor, ColorCorrection
from preprocess.square_crop import RAW_HEIGHT, RAW_WIDTH

BACKGROUND = "BACKGROUND"
LISTED = 8  # names that a message lists before it counts the rest


@dataclass(frozen=True)
class RawLayout:
    """Paths under the root; {person}, {sequence} and {camera} stand for names, * for any text."""

    name: str
    calibration: str
    video: str
    sequence_part: int  # which part of a video's path is its sequence, from the end
    background: str
    color: str
    color_kind: str  # affine or cheung
    digits: int  # of the participant's number

    def path(self, pattern: str, root: Path, person: str, sequence: str = "", camera: str = "") -> Path:
        """A place for that file: where `pattern` leaves a choice, the first."""
        return root / pattern.replace("*", "1").format(person=person, sequence=sequence, camera=camera)

    def find(self, pattern: str, root: Path, person: str, sequence: str = "*", camera: str = "*") -> list[Path]:
        """Files that are there, sorted."""
        return sorted(root.glob(pattern.format(person=glob.escape(person) if person != "*" else person, sequence=sequence, camera=camera)))


_V1_CALIBRATION, _V1_COLOR = "camera_params/{person}/camera_params.json", "color_correction/{person}/{camera}.npy"
LAYOUTS = (
    RawLayout("v1-zips", _V1_CALIBRATION, "sequence_{sequence}_part-*/{person}/{sequence}/cam_{camera}.mp4", -2,
              "sequence_BACKGROUND_part-*/{person}/BACKGROUND/image_{camera}.jpg", _V1_COLOR, "affine", 3),
    RawLayout("v1-subject", _V1_CALIBRATION, "{person}/{sequence}/cam_{camera}.mp4", -2,
              "{person}/BACKGROUND/image_{camera}.jpg", _V1_COLOR, "affine", 3),
    RawLayout("v2", "{person}/calibration/camera_params.json", "{person}/sequences/{sequence}/images/cam_{camera}.mp4", -3,
              "{person}/sequences/BACKGROUND/image_{camera}.jpg", "{person}/calibration/color_calibration.json", "cheung", 3),
)


@dataclass(frozen=True)
class RawCapture:
    """One participant. `videos[sequence][camera]` are the files that are there; `person` is the id as the folders spell it."""

    root: Path
    layout: RawLayout
    person: str
    calibration: Path
    videos: dict[str, dict[str, Path]]

    def cameras(self, wanted: tuple[str, ...]) -> dict[str, Camera]:
        """The calibrated cameras by serial, sorted, in pixels of the calibration's picture; with `wanted` only those.

        Raises InputError for a serial that the calibration lacks, and for what is no calibration.
        """
        known = _read_calibration(self.calibration)
        missing = [camera for camera in wanted if camera not in known]
        if missing:
            raise InputError(f"--cameras: {self.calibration} has no '{missing[0]}'; it has {', '.join(known)}")
        return {camera: known[camera] for camera in sorted(wanted or known)}

    def background(self, camera: str) -> Path | None:
        """The empty scene, where there is one."""
        return next(iter(self.layout.find(self.layout.background, self.root, self.person, camera=camera)), None)

    def colors(self, kind: str, cameras: list[str]) -> dict[str, ColorCorrection]:
        """Colour corrections of these cameras. Raises InputError where this layout has another kind, or a camera has none."""
        if kind != self.layout.color_kind:
            raise InputError(f"--color {kind}: the layout {self.layout.name} comes with '{self.layout.color_kind}' corrections; "
                             f"give --color {self.layout.color_kind} or none")
        if kind == "cheung":
            return _read_cheung(self.layout.path(self.layout.color, self.root, self.person), cameras)
        return {camera: _read_affine(self.layout.path(self.layout.color, self.root, self.person, camera=camera)) for camera in cameras}


def open_raw(root: Path, person: str) -> RawCapture:
    """Finds out which layout `root` has. Raises InputError saying for each of them what was looked for and what was found."""
    if not root.is_dir():
        raise InputError(f"{root}: not a folder; expected the root of raw NeRSemble (see --help for its layouts)")
    looked, found = [], []
    for layout in LAYOUTS:
        spelled = [name for name in _spellings(person, layout.digits) if layout.find(layout.calibration, root, name)]
        name = spelled[0] if spelled else _spellings(person, layout.digits)[0]
        calibration, videos = layout.find(layout.calibration, root, name), _videos(layout, root, name)
        looked.append(f"{layout.name}: {layout.calibration.format(person=name)} {'found' if calibration else 'not found'}; "
                      f"{layout.video.format(person=name, sequence='*', camera='*')}: {sum(map(len, videos.values()))} found")
        if calibration and videos:
            found.append(RawCapture(root, layout, name, calibration[0], videos))
    if not found:
        title = f"{root}: no raw NeRSemble capture of participant '{person}' here. Looked for"
        raise InputError("\n  ".join([title, *looked, *_hints(root, person)]))
    if len(found) > 1:
        raise InputError(f"{root}: participant '{person}' is there in several layouts ({', '.join(raw.layout.name for raw in found)}); "
                         "move one of them elsewhere")
    return found[0]


def _videos(layout: RawLayout, root: Path, person: str) -> dict[str, dict[str, Path]]:
    videos: dict[str, dict[str, Path]] = {}
    for path in layout.find(layout.video, root, person):
        cameras = videos.setdefault(path.parts[layout.sequence_part], {})
        camera = path.stem.removeprefix("cam_")
        if camera in cameras:
            raise InputError(f"{path}: the same video is also {cameras[camera]}; remove one")
        cameras[camera] = path
    return {sequence: videos[sequence] for sequence in sorted(videos, key=by_number)}


def _spellings(person: str, digits: int) -> list[str]:
    """031 is also written 31."""
    names = [person, *([person.zfill(digits), str(int(person))] if person.isdecimal() else [])]
    return list(dict.fromkeys(names))


def _hints(root: Path, person: str) -> list[str]:
    entries = sorted((path.name + "/" * path.is_dir() for path in root.iterdir()), key=by_number)
    others = sorted({path.relative_to(root).parts[layout.calibration.split("/").index("{person}")]
                     for layout in LAYOUTS for path in layout.find(layout.calibration, root, "*")}, key=by_number)
    lines = [f"It holds {_listed(entries) or 'nothing'}."]
    if others:
        lines.append(f"Calibrated participants here: {_listed(others)}; is --id right?")
    above = [layout for layout in LAYOUTS for folder in list(root.resolve().parents)[:2] for name in _spellings(person, layout.digits)
             if layout.find(layout.calibration, folder, name)]
    if above:
        lines.append(f"A folder above it has the calibration ({above[0].name}): give that one, it is the root.")
    return lines


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f", ... ({len(names)} in all)" if len(names) > LISTED else "")


def _read_calibration(path: Path) -> dict[str, Camera]:
    try:
        data = read_json(path)
        poses = {str(camera): np.array(pose, dtype=np.float64) for camera, pose in data["world_2_cam"].items()}
        shared = data["intrinsics"]
        intrinsics = {camera: np.array(shared[camera] if isinstance(shared, dict) else shared, dtype=np.float64) for camera in poses}
        # Without a size, the matrix is one of the full pictures of the rig.
        width, height = int(data.get("width", RAW_WIDTH)), int(data.get("height", RAW_HEIGHT))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f'{path}: expected {{"world_2_cam": {{serial: 4x4}}, "intrinsics": 3x3}}, found something else '
                         f"({type(error).__name__}: {error})") from error
    strange = [name for name in poses if name_fault(name)]
    if strange:
        raise InputError(f"{path}: 'world_2_cam': expected serials of cameras, found {strange[0]!r}: {name_fault(strange[0])}")
    if not poses:
        raise InputError(f"{path}: 'world_2_cam' is empty")
    return {camera: _camera(path, camera, poses[camera], intrinsics[camera], width, height) for camera in sorted(poses)}


def _camera(path: Path, name: str, pose: Float[NDArray, "4 4"], intrinsics: Float[NDArray, "3 3"], width: int, height: int) -> Camera:
    if pose.shape not in ((4, 4), (3, 4)) or intrinsics.shape != (3, 3) or not (np.isfinite(pose).all() and np.isfinite(intrinsics).all()):
        raise InputError(f"{path}: camera '{name}': expected a finite 4x4 pose and 3x3 intrinsics, found shapes {pose.shape} and {intrinsics.shape}")
    name = f"{path}: camera '{name}'"
    extrinsic, lens = checked_camera(name, *(finite(name, value, None) for value in (pose[:3], intrinsics)))
    return Camera(extrinsic[None], lens[None], width, height)


def _read_affine(path: Path) -> AffineColor:
    try:
        stored = finite(str(path), parse_arrays(path, read_bytes(path)).get(""), (None, 4), np.float64)
        if len(stored) < 3:
            raise InputError(f"{path}: found shape {stored.shape}")
    except InputError as error:
        raise InputError(f"{path}: expected an affine colour correction of shape (4, 4), found something else ({error}); "
                         "without these files give --color none") from error
    return AffineColor(stored[:3, :3], stored[:3, 3])


def _read_cheung(path: Path, cameras: list[str]) -> dict[str, ColorCorrection]:
    try:
        stored = {str(camera): np.array(matrix, dtype=np.float64) for camera, matrix in read_json(path).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: expected {{serial: matrix}} ({error}); without this file give --color none") from error
    colors: dict[str, ColorCorrection] = {}
    for camera in cameras:
        matrix = stored.get(camera, np.zeros(0))
        if matrix.ndim != 2 or matrix.shape[0] != 3 or matrix.shape[1] not in POLYNOMIALS or not np.isfinite(matrix).all():
            raise InputError(f"{path}: camera '{camera}': expected a finite matrix of 3 rows and {', '.join(map(str, POLYNOMIALS))} columns, "
                             f"found {f'shape {matrix.shape}' if camera in stored else 'nothing'}; --color none leaves colours as they are")
        colors[camera] = CheungColor(matrix)
    return colors
