"""metrical-tracker checkpoints, alone or beside the pictures of FlashAvatar and HyperGaussians.

    <output>/checkpoint/<frame>.frame    torch file: flame {exp (1,100), shape (1,300), jaw (1,6), eyes (1,12), eyelids (1,2)}: rotations as
                                         their first two rows; opencv {R (1,3,3), t (1,3): world->camera, K (1,3,3) pixels};
                                         img_size (height, width)
    <code>/dataset/<id>/{imgs,alpha}/<n>.jpg    FlashAvatar: picture n belongs to frame n - 1; HyperGaussians: .png, picture n to frame n
    <code>/metrical-tracker/output/<id>/        its checkpoints

Root and neck of FLAME stay as they are: the camera moves. Units are metres.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from lib.archives import load_torch
from lib.datasets.arrays import finite
from lib.datasets.tracked.files import FolderFiles, Gaps, Look, ReadOptions, numbered
from lib.datasets.tracked.record import FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.datasets.tracked.rotations import rotation_vectors
from lib.errors import InputError
from lib.face_models.pickles import NUMPY, StoredArray, StoredType, without_stand_ins
from lib.geometry.camera import Camera

FORMAT = "metrical-tracker (FlashAvatar, HyperGaussians)"
MODEL = FaceModel("FLAME", "2020 (MICA, with eyelids)")
FRAMES = r"(\d+)\.frame"
OFFSETS = {".jpg": 1, ".png": 0}  # of the picture from the frame: FlashAvatar counts pictures from 1, HyperGaussians from 0
TRAIN_LIMIT, TEST_FRAMES = 10000, 500  # FlashAvatar's division


def look(path: Path) -> Look:
    """Checkpoints here, in checkpoint/, or where FlashAvatar looks for them."""
    folder = _checkpoints(path)
    missing = "no checkpoint/<frame>.frame, nor ../../metrical-tracker/output/<id>/checkpoint"
    return Look(folder is not None, f"{folder}/*.frame" if folder else missing)


def read(path: Path, options: ReadOptions) -> TrackedSequence:
    """One moving camera around a head at rest; the last 500 frames are for tests where there are more."""
    folder = _checkpoints(path)
    assert folder is not None
    found = numbered(folder, FRAMES)
    subject = path if (path / "imgs").is_dir() else _pictures_of(folder)
    files = FolderFiles(subject or folder, options)
    offset, suffix = _offset(subject, list(found), options) if subject else (0, "")
    gaps, frames = Gaps(options.skip_nan), []
    for row, (number, file) in enumerate(found.items()):
        image, mask = (None if subject is None else files.picture(subject / kind / f"{number + offset:05d}{suffix}", str(file), what)
                       for kind, what in (("imgs", "image"), ("alpha", "mask")))
        split = None if len(found) <= TEST_FRAMES else "test" if row >= len(found) - TEST_FRAMES else "train" if row < TRAIN_LIMIT else None
        with gaps.frame():
            params, view = read_frame(file)
            frames.append(TrackedFrame(f"{number:05d}", (subject or folder.resolve().parent).name, number, params, str(file), "0", view,
                                       image, mask, split=split))
    none = f"no dataset/{folder.resolve().parent.name}/imgs beside it: no pictures"
    notes = [f"picture of frame n: n + {offset} ({suffix[1:]})" if subject else none]
    if len(found) <= TEST_FRAMES:
        notes.append(f"{len(found)} frames: FlashAvatar's division takes the last {TEST_FRAMES} for tests and needs more, so none is made")
    return TrackedSequence(FORMAT, path, MODEL, "origin", tuple(frames), (*files.notes, *gaps.notes(), *notes))


def read_frame(path: Path) -> tuple[FaceParams, Camera]:
    """One .frame file. Nothing in it is executed: whatever is no array or plain value is refused."""
    content = _load(path)
    flame, opencv = (content.get(key) if isinstance(content, dict) else None for key in ("flame", "opencv"))
    if not isinstance(flame, dict) or not isinstance(opencv, dict):
        raise InputError(f"{path}: expected a checkpoint of metrical-tracker with 'flame' and 'opencv', found another")

    def numbers(part: dict[str, Any], key: str, size: int | None) -> torch.Tensor:
        name = f"{path}: '{key}'"
        if key not in part:
            raise InputError(f"{name}: key is missing; found {sorted(map(str, part))}")
        array = finite(name, part[key], None).reshape(-1)
        return torch.from_numpy(finite(name, array, (size,)))

    params = FaceParams(
        expression=numbers(flame, "exp", None), identity=numbers(flame, "shape", None),
        jaw=rotation_vectors(numbers(flame, "jaw", 6), f"{path}: 'jaw'"), eyes=rotation_vectors(numbers(flame, "eyes", 12), f"{path}: 'eyes'"),
        eyelids=numbers(flame, "eyelids", 2) if "eyelids" in flame else None)
    height, width = (int(value) for value in finite(f"{path}: 'img_size'", content.get("img_size"), (2,)))
    rotation, move, lens = numbers(opencv, "R", 9), numbers(opencv, "t", 3), numbers(opencv, "K", 9)
    return params, Camera(torch.cat([rotation.reshape(1, 3, 3), move[None, :, None]], dim=2), lens.reshape(1, 3, 3), width, height)


def _load(path: Path) -> Any:
    """Arrays of numpy by the stand-ins of lib/face_models/pickles.py; all else by what torch allows."""
    allowed = [StoredArray, StoredType, *((stand_in, f"{module}.{name}") for (module, name), stand_in in NUMPY.items())]
    try:
        return without_stand_ins(load_torch(path, allowed))
    except UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), str(error).splitlines()[0])
        raise InputError(f"{path}: refused, as it holds more than arrays and plain values and might run code: {reason}") from error
    except Exception as error:  # a damaged file can raise nearly anything in the unpickler
        raise InputError(f"{path}: not a readable torch file ({type(error).__name__}: {error}); copy it again") from error


def _checkpoints(path: Path) -> Path | None:
    candidates = (path, path / "checkpoint", path.absolute().parent.parent / "metrical-tracker" / "output" / path.absolute().name / "checkpoint")
    return next((folder for folder in candidates if numbered(folder, FRAMES)), None)


def _pictures_of(checkpoints: Path) -> Path | None:
    """FlashAvatar's dataset/<id> of metrical-tracker/output/<id>/checkpoint."""
    parents = checkpoints.absolute().parents
    subject = parents[3] / "dataset" / parents[0].name if len(parents) > 3 else None
    return subject if subject is not None and (subject / "imgs").is_dir() else None


def _offset(subject: Path, frames: list[int], options: ReadOptions) -> tuple[int, str]:
    """How the picture of a frame is numbered, and its suffix: as that code writes them, or the other way where only that fits."""
    pictures = {suffix: set(numbered(subject / "imgs", rf"(\d+)\{suffix}")) for suffix in OFFSETS}
    suffix = max(pictures, key=lambda name: len(pictures[name]))
    usual = OFFSETS[suffix]
    if options.image_offset is not None:
        return options.image_offset, suffix
    fits = [offset for offset in (usual, 1 - usual) if {frame + offset for frame in frames} <= pictures[suffix]]
    if not fits and options.images:
        missing = sorted({frame + usual for frame in frames} - pictures[suffix])
        raise InputError(f"{subject / 'imgs'}: {len(pictures[suffix])} pictures for {len(frames)} frames; picture {missing[0]:05d}{suffix} of frame "
                         f"{missing[0] - usual} is missing, counted from either 0 or 1; copy it there, remove its .frame, or give image_offset")
    return (fits or [usual])[0], suffix
