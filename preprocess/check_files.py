"""Files that are missing, cannot be read, say nothing, or are there twice: cheap enough to look at every one."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lib.datasets.capture_check import FULL_MATTE
from lib.datasets.head_capture import FOREGROUND, HeadCapture
from lib.datasets.images import look_at, read_image
from lib.datasets.inventory import Inventory
from lib.datasets.layout import LOWRES_SIZE
from lib.errors import InputError
from preprocess.check_findings import Finding, numbers

DECODED_BYTES = 32e6  # mattes of folders up to this size are all decoded; in larger ones those whose size is unlike that of their camera's others
UNLIKE = 1.6  # factor: an empty or full matte compresses better than an outline
KINDS = ("image", "mask", "visible")


def missing_findings(inventory: Inventory) -> list[Finding]:
    """What is not there, with the command that makes it."""
    return [Finding("missing_file", f"{one}; {one.way_out}", (str(one.path),), (one.frame,), (one.camera,) if one.camera else ())
            for one in inventory.missing()]


def unreadable_findings(inventory: Inventory) -> list[Finding]:
    """What the readers of parameters, points and cameras refuse. Missing files are told elsewhere."""
    folder, found = inventory.folder, []
    for frame, files in inventory.files.items():
        readers: list[tuple[Path, str | None, Callable[[], object]]] = []
        if (path := folder.params_path(frame)).name in files.params:
            readers.append((path, None, lambda frame=frame: folder.read_params(frame)))
        if {folder.landmarks_path(frame).name, folder.vertices_path(frame).name} <= files.params:
            readers.append((folder.landmarks_path(frame), None, lambda frame=frame: folder.read_control_points(frame)))
        readers += [(folder.camera_path(frame, camera), camera, lambda frame=frame, camera=camera: folder.read_camera(frame, camera))
                    for camera in inventory.camera_ids if files.has_camera(camera)]
        for path, camera, read in readers:
            try:
                read()
            except InputError as error:
                found.append(Finding("unreadable_file", f"{error} (frame {frame}{f', camera {camera}' if camera else ''})",
                                     (str(path),), (frame,), (camera,) if camera else ()))
    return found


@dataclass(frozen=True)
class PictureFindings:
    """What is wrong with pictures themselves, and with their sizes."""

    broken: list[Finding]
    sizes: list[Finding]


def picture_findings(inventory: Inventory, original_resolution: int, full: bool) -> PictureFindings:
    """Pictures that are cut off, mattes that are black or cover everything; pictures that are not of the size that intrinsics refer to, as their
    headers tell, one finding for a camera. Each file is opened once; `full` decodes all of them."""
    broken, mattes, others = [], defaultdict(list), defaultdict(list)
    for frame, camera, kind, path in _pictures(inventory):
        try:
            stored = look_at(path)
            if full:
                read_image(path)
        except InputError as error:
            broken.append(Finding("unreadable_picture", f"{error} (frame {frame}, camera {camera})", (str(path),), (frame,), (camera,)))
            continue
        size, expected = (stored.width, stored.height), LOWRES_SIZE if "_lowres_" in path.name else original_resolution
        if any(size) and size != (expected, expected):
            others[camera].append((frame, path, size))
        if kind == "mask":
            mattes[camera, path.name].append((stored.bytes, frame, path))
    total = sum(size for group in mattes.values() for size, _, _ in group)
    for (camera, _), group in mattes.items():
        usual = median(size for size, _, _ in group)
        for size, frame, path in group:
            if full or total <= DECODED_BYTES or not usual / UNLIKE < size < usual * UNLIKE:
                broken += _matte_findings(path, frame, camera)
    must = f"full pictures and mattes must have dataset.original_resolution, {original_resolution}, lowres ones {LOWRES_SIZE}"
    return PictureFindings(broken, [
        Finding("picture_size", f"{path}: {width}x{height} pixels (frame {frame}, camera {camera}; {len(group)} of its pictures); {must}",
                (str(path),), (frame,), (camera,))
        for camera, group in others.items() for frame, path, (width, height) in group[:1]])


def duplicate_findings(capture: HeadCapture, inventory: Inventory) -> list[Finding]:
    """Frames with the parameters of another one, or with its very pictures."""
    found, first = [], {}
    for frame in capture.frames:
        same = first.setdefault(capture.digest(frame), frame)
        if same != frame:
            path = str(capture.folder.params_path(frame))
            found.append(Finding("duplicate_params", f"{path}: frame {frame} has the parameters and landmarks of frame {same}; no two frames have "
                                 "the same: fit it again, or remove one of the two", (path,), (same, frame)))
    by_size = defaultdict(list)
    for frame, camera, kind, path in _pictures(inventory):
        if kind == "image" and "_lowres_" not in path.name:
            by_size[camera, path.stat().st_size].append((frame, path))
    twins = defaultdict(list)
    for (camera, _), group in by_size.items():
        seen: dict[bytes, str] = {}
        for frame, path in group if len(group) > 1 else []:
            same = seen.setdefault(hashlib.sha256(path.read_bytes()).digest(), frame)
            if same != frame:
                twins[same, frame].append((camera, path))
    for (same, frame), pictures in sorted(twins.items()):
        cameras = tuple(camera for camera, _ in pictures)
        found.append(Finding("duplicate_picture", f"{pictures[0][1]}: frame {frame} has the very picture of frame {same} ({len(pictures)} of "
                             f"{len(inventory.camera_ids)} cameras); no camera records the same bytes twice: extract the frame again, or remove it",
                             tuple(str(path) for _, path in pictures), (same, frame), cameras))
    return found


def _pictures(inventory: Inventory) -> Iterator[tuple[str, str, str, Path]]:
    """Frame, camera, kind and path of all pictures that are there, full and lowres."""
    for frame, files in inventory.files.items():
        for camera in inventory.camera_ids:
            for kind in KINDS:
                names: Iterable[str | None] = (files.image_name(camera, kind), files.image_name(camera, kind, lowres=True))
                for name in names:
                    if name is not None:
                        yield frame, camera, kind, inventory.folder.images_path(frame) / name


def _matte_findings(path: Path, frame: str, camera: str) -> list[Finding]:
    try:
        matte = read_image(path)[0]
    except InputError as error:
        return [Finding("unreadable_picture", f"{error} (frame {frame}, camera {camera})", (str(path),), (frame,), (camera,))]
    coverage, largest = float((matte >= FOREGROUND).float().mean()), int(matte.max())
    if 0.0 < coverage <= FULL_MATTE:
        return []
    what = f"is black (largest value {largest})" if coverage == 0.0 else f"covers {coverage:.0%} of the picture"
    return [Finding("blank_matte", f"{path}: the matte {what} (frame {frame}, camera {camera}); expected 255 on the head and 0 elsewhere: matte this "
                    f"picture again (`python -m preprocess.remove_background {path.parent.parent.parent}`), or leave this frame or camera out",
                    (str(path),), (frame,), (camera,), numbers(coverage=coverage))]
