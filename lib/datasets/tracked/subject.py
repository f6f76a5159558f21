"""The subject folder of this project and of Gaussian Head Avatar: params/<frame>/params.npz, pictures and cameras where there are some."""

from pathlib import Path

import numpy as np
import torch

from lib.datasets.arrays import numbers, parse_arrays, read_bytes
from lib.datasets.images import read_image
from lib.datasets.layout import CaptureFolder, FrameParams, by_number
from lib.datasets.tracked.files import Look, ReadOptions
from lib.datasets.tracked.record import FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.errors import InputError
from lib.geometry.camera import Camera

FORMAT = "subject folder (Gaussian Head Avatar)"
FLAME_EXPRESSIONS = 50  # of its 59; then jaw 3, eyes 6


def look(path: Path) -> Look:
    """A folder with params/<frame>/params.npz."""
    frames = _frames(path)
    return Look(bool(frames), f"{len(frames)} x params/<frame>/params.npz" if frames else "no params/<frame>/params.npz")


def read(path: Path, options: ReadOptions) -> TrackedSequence:
    """One record per frame and camera; per frame where there are no pictures. The head moves about the origin of its model."""
    folder, names = CaptureFolder(path), _frames(path)
    records = folder.records(names)
    sizes: dict[str, tuple[int, int]] = {}
    frames, model = [], FaceModel(None)
    for number, name in enumerate(names):
        found, model = _params(folder, name)
        record = records[number] if records is not None else None
        instant = TrackedFrame(name, path.resolve().name if record is None else record.sequence, number, found, str(folder.params_path(name)),
                               time=None if record is None else record.time)
        listed = folder.files(name)
        cameras = sorted(camera for camera in listed.pictured_cameras() if listed.has_camera(camera) and listed.image_name(camera))
        if not cameras:
            frames.append(instant)
        for camera in cameras:
            image, mask = (listed.image_name(camera, kind) for kind in ("image", "mask"))
            assert image is not None
            picture = folder.images_path(name) / image
            if camera not in sizes:  # one rig, one size; HeadCapture checks every picture when it is used
                sizes[camera] = tuple(read_image(picture).shape[1:])
            if mask is None and options.images:
                raise InputError(f"{folder.image_path(name, camera, 'mask')}: mask is missing; matte this picture or leave the frame out")
            height, width = sizes[camera]
            extrinsic, intrinsic = folder.read_camera(name, camera)
            frames.append(TrackedFrame(
                name, instant.sequence, number, found, instant.where, camera, Camera(extrinsic[None], intrinsic[None], width, height),
                picture, None if mask is None else folder.images_path(name) / mask, time=instant.time))
    notes = [] if records is not None else ["no frames.json: all frames are one sequence"]
    return TrackedSequence(FORMAT, path, model, "origin", tuple(frames), tuple(notes))


def _frames(path: Path) -> list[str]:
    return sorted((file.parent.name for file in path.glob("params/*/params.npz")), key=by_number) if path.is_dir() else []


def _params(folder: CaptureFolder, frame: str) -> tuple[FaceParams, FaceModel]:
    path, stored = folder.params_path(frame), folder.read_params(frame)
    archive = parse_arrays(path, read_bytes(path))
    identity = torch.from_numpy(numbers(path, archive, None, "id_coeff").reshape(-1)) if np.size(archive.get("id_coeff", ())) else None
    model = FaceModel(*stored.model or (None,))
    return face_params(stored, identity, model), model


def face_params(stored: FrameParams, identity: torch.Tensor | None, model: FaceModel) -> FaceParams:
    """params.npz as parameters of a face; FLAME's jaw and eyes are the last 9 of its coefficients."""
    expression, rest = (stored.expression.split((FLAME_EXPRESSIONS, 9)) if model.name == "FLAME" else (stored.expression, None))
    return FaceParams(expression, identity, stored.pose[:3], stored.pose[3:], stored.scale,
                      jaw=None if rest is None else rest[:3], eyes=None if rest is None else rest[3:])
