"""NeRSemble benchmark: videos with a FLAME tracking per sequence.

    <id>/sequences/<SEQ>/tracking/flame2023_tracking_v2.npz   shape (1,300), expression (T,100), rotation_matrices (T,3,3), translation, jaw,
                                                              neck (T,3), eyes (T,6), scale (1,1), frames (T,): numbers of the videos' pictures
    <id>/sequences/<SEQ>/{images,alpha_maps}/cam_<serial>.mp4
    <id>/calibration/camera_params.json                       world_2_cam {serial: 4x4, OpenCV}, intrinsics {serial: 3x3} or one 3x3

The head is x_world = R (scale · x) + translation, about the origin of FLAME. `rotation` holds Euler angles, which the matrices replace.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from lib.datasets.arrays import finite, numbers, parse_arrays, read_bytes, read_json, rows
from lib.datasets.layout import checked_camera
from lib.datasets.tracked.files import FolderFiles, Gaps, Look, ReadOptions
from lib.datasets.tracked.record import FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.datasets.tracked.rotations import matrix_vector
from lib.datasets.video import open_video
from lib.errors import InputError
from lib.geometry.camera import Camera

FORMAT = "NeRSemble benchmark"
MODEL = FaceModel("FLAME", "2023")
NAMES = ("flame2023_tracking_v2.npz", "flame2023_tracking.npz")  # in order of preference: the first version has errors
SHAPES: dict[str, tuple[int, ...]] = {"rotation_matrices": (3, 3), "translation": (3,), "jaw": (3,), "neck": (3,), "eyes": (6,)}


def look(path: Path) -> Look:
    """A tracking file, a sequence, or a participant."""
    files = _tracking_files(path)
    return Look(bool(files), f"{len(files)} x tracking/{files[0].name}" if files else f"no sequences/<SEQ>/tracking/{NAMES[0]}")


def read(path: Path, options: ReadOptions) -> TrackedSequence:
    """All tracked sequences; one record per timestep and video, or per timestep where there is no video or pictures are not needed."""
    found = _tracking_files(path)
    files = FolderFiles(path if path.is_dir() else path.parent.parent, options)
    gaps = Gaps(options.skip_nan)
    frames = [frame for file in found for frame in _sequence(file, files, gaps)]
    old = [f"{file}: is the first version, which is known to have errors" for file in found if file.name == NAMES[1]]
    return TrackedSequence(FORMAT, path, MODEL, "origin", tuple(frames), (*files.notes, *gaps.notes(), *old))


def _tracking_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name in NAMES else []
    folders = [path, *sorted(path.glob("sequences/*"))]
    return [next(file for name in NAMES if (file := folder / "tracking" / name).is_file())
            for folder in folders if any((folder / "tracking" / name).is_file() for name in NAMES)]


@dataclass(frozen=True)
class _Video:
    path: Path
    camera: str
    mask: Path | None
    view: Camera
    pictures: int  # 0: the file does not say


def _sequence(file: Path, files: FolderFiles, gaps: Gaps) -> list[TrackedFrame]:
    archive = parse_arrays(file, read_bytes(file))
    expression = rows(file, archive, (None, None), "expression")
    count = len(expression)
    identity, scale = (torch.from_numpy(numbers(file, archive, None, key).reshape(-1)) for key in ("shape", "scale"))
    if len(scale) != 1:
        raise InputError(f"{file}: 'scale': expected one number for all frames, found {len(scale)}")
    moving = {"expression": expression} | {key: _rows(file, archive, key, shape, count) for key, shape in SHAPES.items()}
    timesteps = finite(f"{file}: 'frames'", _rows(file, archive, "frames", (), count), None).astype(int).tolist()
    folder = file.resolve().parent.parent
    videos = _videos(file.parent.parent, files) if files.options.images else []  # without them nothing needs a camera either
    frames = []
    for row, timestep in enumerate(timesteps):
        with gaps.frame():
            where = f"{file}: row {row}"
            here = {key: torch.from_numpy(finite(f"{where}: '{key}'", values[row], None)) for key, values in moving.items()}
            rotation = matrix_vector(here.pop("rotation_matrices"), f"{where}: 'rotation_matrices'")
            params = FaceParams(identity=identity, rotation=rotation, scale=scale, **here)
            frames += _pictures(TrackedFrame(f"{timestep:05d}", folder.name, timestep, params, where), videos)
    return frames


def _pictures(frame: TrackedFrame, videos: list[_Video]) -> list[TrackedFrame]:
    """A frame as each video shows it; as it is where there is none."""
    for video in videos:
        if video.pictures and frame.timestep >= video.pictures:
            raise InputError(f"{frame.where} belongs to picture {frame.timestep}, but {video.path} has {video.pictures}; download it again")
    return [dataclasses.replace(frame, camera=video.camera, view=video.view, image=video.path, mask=video.mask, video_frame=frame.timestep)
            for video in videos] or [frame]


def _rows(path: Path, archive: dict[str, NDArray], key: str, shape: tuple[int, ...], count: int) -> NDArray[np.float32]:
    values = rows(path, archive, (None, *shape), key)
    if len(values) != count:
        raise InputError(f"{path}: '{key}' has {len(values)} timesteps, 'expression' has {count}; download it again")
    return values


def _videos(sequence: Path, files: FolderFiles) -> list[_Video]:
    paths = sorted(sequence.glob("images/cam_*.mp4"))
    if not paths:
        return []
    calibration = sequence.parent.parent / "calibration" / "camera_params.json"
    videos = []
    for path in paths:
        pictures, width, height = _video_size(path)
        mask = sequence / "alpha_maps" / path.name
        videos.append(_Video(path, path.stem.removeprefix("cam_"), files.picture(mask, str(path), "mask") if mask.parent.is_dir() else None,
                             read_calibration(calibration, path.stem.removeprefix("cam_"), (width, height)).resized(width, height), pictures))
    return videos


def read_calibration(path: Path, serial: str, size: tuple[int, int] | None) -> Camera:
    """One camera (a batch of one) of a camera_params.json, of pictures as large as it says, or else of `size` (width, height).

    Raises InputError where the camera is missing, is none, or neither tells the size.
    """
    content: Any = read_json(path)
    try:
        extrinsic, intrinsic = content["world_2_cam"][serial], content["intrinsics"]
        intrinsic = intrinsic[serial] if isinstance(intrinsic, dict) else intrinsic
        said = (content.get("width"), content.get("height"))
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: camera '{serial}' is missing; expected world_2_cam and intrinsics with it") from error
    name = f"{path}: camera '{serial}'"
    matrix, lens = checked_camera(name, finite(name, extrinsic, (4, 4))[:3], finite(name, intrinsic, (3, 3)))
    width, height = (int(finite(f"{path}: width and height", value or other, ())) for value, other in zip(said, size or (0, 0), strict=True))
    if width < 1 or height < 1:
        raise InputError(f"{path}: does not say to which 'width' and 'height' its intrinsics refer, and nothing else does; "
                         "for a submission, write evaluation.submission.calibration_size: [width, height]")
    return Camera(matrix[None], lens[None], width, height)


def _video_size(path: Path) -> tuple[int, int, int]:
    """Pictures (0: not said), width and height in pixels."""
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            return stream.frames, stream.width, stream.height
    except (av.FFmpegError, OSError, IndexError, AttributeError, ValueError) as error:  # a stream without codec has no width
        raise InputError(f"{path}: cannot be read as a video ({error}); download it again") from error
