"""Writes a tracked subject as GaussianAvatars reads it (the layout of VHAP's export).

    python -m preprocess.export_gaussian_avatars SOURCE OUTPUT

SOURCE: a subject folder, or what any other tracker wrote that is recognised; the face model must be FLAME. Pictures are put on white. A
source that is divided into train, val and test stays so; else one camera is for validation and whole sequences are for tests.
transforms.json is written last: an export without it was interrupted, and the same command makes it again.
"""

import argparse
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.layout import by_number
from lib.datasets.tracked.record import FaceParams, TrackedFrame, TrackedSequence
from lib.datasets.tracked.sources import read_tracking
from lib.datasets.tracked.transforms import opengl_matrix
from lib.datasets.tracked.vhap import EXPORT
from lib.errors import InputError
from lib.files import write_whole
from lib.training.runtime import run
from preprocess.export_pictures import PictureTask, write_pictures

EXPRESSIONS, IDENTITIES = 100, 300  # of flame_param
FLAME_VERTICES, VERTICES = 5023, 5143  # VHAP adds teeth
CANONICAL_JAW = 0.3  # radians: the mouth is open where Gaussians are bound to the mesh
FRONT_CAMERA = "222200037"  # of NeRSemble
BLOCKS = 10  # parts of a single sequence, the last of which is for tests
FOLDERS = {"images", "fg_masks", "flame_param", "canonical_flame_param.npz", "sequences_trainval.txt", "sequences_test.txt",
           "transforms_train.json", "transforms_val.json", "transforms_test.json"}
Instant = tuple[str, int]  # sequence and timestep


@dataclass(frozen=True)
class Division:
    """What is not trained on."""

    val_camera: str | None
    test: frozenset[Instant]


@dataclass(frozen=True)
class ExportedFrame:
    """One picture as it is written: in units of the model, with the head where flame_param can say it."""

    frame: TrackedFrame
    world_to_camera: Float[Tensor, "3 4"]
    rotation: Float[Tensor, "3"]
    translation: Float[Tensor, "3"]
    timestep: int
    camera: int
    split: str | None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of a tracked subject")
    parser.add_argument("output", type=Path, help="folder to write: a new one, or that of an interrupted export")
    parser.add_argument("--val-camera", metavar="ID", help=f"camera for validation (default: {FRONT_CAMERA} where there is one, else the last)")
    parser.add_argument("--test-sequences", nargs="+", default=[], metavar="NAME",
                        help="sequences for tests (default: the last one; of a single one its last tenth)")
    parser.add_argument("--without-params", action="store_true", help="pictures and cameras only, for code that needs no face model")
    options = parser.parse_args()
    for line in export(options.source, options.output, options.val_camera, options.test_sequences, not options.without_params):
        print(line)


def export(source: Path, output: Path, val_camera: str | None = None, test_sequences: list[str] | None = None, params: bool = True) -> list[str]:
    """Writes the set; returns what to tell. Raises InputError for a source that cannot be written so, or an output that is in use."""
    _check_output(source, output)
    sequence = read_tracking(source)
    if params:
        _check_model(sequence)
    for frame in sequence.frames:
        if frame.image is None or frame.view is None or frame.camera is None:
            raise InputError(f"{frame.where}: has no picture with a camera; an export needs one for every frame")
    divided = any(frame.split for frame in sequence.frames) and not (val_camera or test_sequences)
    division = None if divided else divide(sequence, val_camera, test_sequences or [])
    frames = exported(sequence, division)
    print(sequence.summary())
    rows = [frame_row(frame, output, params) for frame in frames]
    tasks = [PictureTask(one.frame, output / row["file_path"], output / row["fg_mask_path"] if "fg_mask_path" in row else None)
             for one, row in zip(frames, rows, strict=True)]
    write_pictures(list({task.image_path: task for task in tasks}.values()), sequence.format != EXPORT, min(8, os.cpu_count() or 1))
    if params:
        _write_params(output, frames)
    _write_transforms(output, frames, rows)
    counts = {split: sum(frame.split == split for frame in frames) for split in ("train", "val", "test")}
    return [*sequence.notes, *_remarks(sequence, params), f"wrote {output}: " + ", ".join(f"{count} {split}" for split, count in counts.items())]


def divide(sequence: TrackedSequence, val_camera: str | None, test_sequences: list[str]) -> Division:
    """One camera, and whole sequences. Raises InputError for names that the source has not, and when nothing is left to train on."""
    cameras = sorted(sequence.cameras, key=by_number)
    if val_camera is not None and val_camera not in cameras:
        raise InputError(f"--val-camera: '{val_camera}' is not one of {cameras}")
    chosen = val_camera or (FRONT_CAMERA if FRONT_CAMERA in cameras else cameras[-1])
    if unknown := [name for name in test_sequences if name not in sequence.sequences]:
        raise InputError(f"--test-sequences: '{unknown[0]}' is not one of {list(sequence.sequences)}")
    instants = [(frame.sequence, frame.timestep) for frame in sequence.instants()]
    names = test_sequences or list(sequence.sequences[1:][-1:])
    test = [instant for instant in instants if instant[0] in names] if names else instants[len(instants) - len(instants) // BLOCKS:]
    if len(test) == len(instants):
        raise InputError(f"--test-sequences: {test_sequences} are all there are; leave one to train on")
    return Division(chosen if len(cameras) > 1 else None, frozenset(test))


def exported(sequence: TrackedSequence, division: Division | None) -> list[ExportedFrame]:
    """All frames, numbered by instant and camera."""
    timesteps = {instant: number for number, instant in enumerate(dict.fromkeys((frame.sequence, frame.timestep) for frame in sequence.frames))}
    cameras = {camera: number for number, camera in enumerate(sorted(sequence.cameras, key=by_number))}
    frames = []
    for frame in sequence.frames:
        instant = (frame.sequence, frame.timestep)
        split = frame.split if division is None else (
            "test" if instant in division.test else "val" if frame.camera == division.val_camera else "train")
        assert frame.camera is not None
        frames.append(ExportedFrame(frame, *placed(sequence, frame), timesteps[instant], cameras[frame.camera], split))
    return frames


def placed(sequence: TrackedSequence, frame: TrackedFrame) -> tuple[Float[Tensor, "3 4"], Float[Tensor, "3"], Float[Tensor, "3"]]:
    """World->camera, rotation and translation of FLAME in units of the model, which shift no pixel.

    FLAME turns about its root joint. A head that turns about the origin is left at rest, and its camera turned instead, as its root joint is
    not known here.
    """
    params, head = frame.params, frame.head_pose()
    assert frame.view is not None and head is not None
    view, scale = frame.view.world_to_camera[0].double(), head.scale.double()
    rest = torch.zeros(3)
    if params.rotation is None:
        return _scaled(view, scale), rest, rest
    if sequence.pivot == "root joint":
        return _scaled(view, scale), params.rotation, (head.pose[3:].double() / scale).float()
    turn, move = roma.rotvec_to_rotmat(head.pose[:3].double()), head.pose[3:, None].double()
    return _scaled(torch.cat([view[:, :3] @ turn, view[:, :3] @ move + view[:, 3:]], dim=1), scale), rest, rest


def _scaled(view: Tensor, scale: Tensor) -> Tensor:
    return torch.cat([view[:, :3], view[:, 3:] / scale], dim=1).float()


def frame_row(one: ExportedFrame, output: Path, params: bool) -> dict[str, Any]:
    """An element of `frames` in transforms.json. `sequence` is this project's; other readers leave it."""
    view, name = one.frame.view, f"{one.timestep:05d}_{one.camera:02d}.png"
    assert view is not None
    focal_x, focal_y, center_x, center_y = (view.intrinsics[0, row, column].item() for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    row = {
        "timestep_index": one.timestep, "timestep_index_original": one.frame.timestep, "timestep_id": one.frame.name,
        "camera_index": one.camera, "camera_id": one.frame.camera, "sequence": one.frame.sequence,
        "cx": center_x, "cy": center_y, "fl_x": focal_x, "fl_y": focal_y, "h": view.height, "w": view.width,
        "camera_angle_x": 2.0 * math.atan(view.width / (2.0 * focal_x)), "camera_angle_y": 2.0 * math.atan(view.height / (2.0 * focal_y)),
        "transform_matrix": opengl_matrix(one.world_to_camera).tolist(), "file_path": f"images/{name}",
    }
    row |= {"fg_mask_path": f"fg_masks/{name}"} if one.frame.mask is not None else {}
    return row | ({"flame_param_path": f"flame_param/{one.timestep:05d}.npz"} if params else {})


def _write_transforms(output: Path, frames: list[ExportedFrame], rows: list[dict[str, Any]]) -> None:
    shared = {key: rows[0][key] for key in ("cx", "cy", "fl_x", "fl_y", "h", "w", "camera_angle_x", "camera_angle_y")}

    def write(name: str, chosen: list[dict[str, Any]]) -> None:
        indices = {f"{kind}_indices": sorted({row[f"{kind}_index"] for row in chosen}) for kind in ("timestep", "camera")}
        write_whole(output / name, json.dumps({"frames": chosen} | shared | indices, indent=1))

    for file, splits in (("sequences_trainval.txt", ("train", "val")), ("sequences_test.txt", ("test",))):
        names = dict.fromkeys(one.frame.sequence for one in frames if one.split in splits)
        write_whole(output / file, "".join(f"{name}\n" for name in names))
    for split in ("train", "val", "test"):
        write(f"transforms_{split}.json", [row for one, row in zip(frames, rows, strict=True) if one.split == split])
    write("transforms.json", list({row["file_path"]: row for row in rows}.values()))


def _write_params(output: Path, frames: list[ExportedFrame]) -> None:
    """One npz per instant, and the neutral face with an open mouth."""
    for number, one in enumerate({one.timestep: one for one in frames}.values()):
        values = flame_param(one.frame.params, one.rotation, one.translation)
        if number == 0:
            still = {key: np.zeros_like(values[key]) for key in values if key not in ("shape", "static_offset")}
            jaw = np.array([[CANONICAL_JAW, 0.0, 0.0]], dtype=np.float32)
            _write_npz(output / "canonical_flame_param.npz", values | still | {"jaw_pose": jaw})
        _write_npz(output / "flame_param" / f"{one.timestep:05d}.npz", values)


def flame_param(params: FaceParams, rotation: Float[Tensor, "3"], translation: Float[Tensor, "3"]) -> dict[str, NDArray[np.float32]]:
    """Keys and shapes of VHAP; coefficients that the source lacks are 0."""
    def row(values: Tensor | None, width: int) -> NDArray[np.float32]:
        given = np.zeros(0, np.float32) if values is None else values.float().numpy()
        return np.pad(given, (0, width - len(given)))[None]

    offset = np.zeros((VERTICES, 3), np.float32) if params.static_offset is None else params.static_offset.numpy()
    offset = np.pad(offset, ((0, VERTICES - FLAME_VERTICES), (0, 0))) if len(offset) == FLAME_VERTICES else offset
    return {
        "translation": row(translation, 3), "rotation": row(rotation, 3), "neck_pose": row(params.neck, 3), "jaw_pose": row(params.jaw, 3),
        "eyes_pose": row(params.eyes, 6), "shape": row(params.identity, IDENTITIES)[0], "expr": row(params.expression, EXPRESSIONS),
        "static_offset": offset[None],
    }


def _write_npz(path: Path, arrays: dict[str, NDArray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def _check_output(source: Path, output: Path) -> None:
    if output.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{output}: lies within {source} or around it; choose another folder")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder to write")
    found = {path.name.removesuffix(".partial") for path in output.iterdir()} if output.is_dir() else set()
    if "transforms.json" in found or found - FOLDERS:
        raise InputError(f"{output}: holds {sorted(found - FOLDERS | found & {'transforms.json'})[0]}; choose a new folder, or remove this one first")


def _check_model(sequence: TrackedSequence) -> None:
    params = sequence.frames[0].params
    if sequence.model.name != "FLAME":
        raise InputError(f"{sequence.root}: is tracked with {sequence.expression_count} coefficients of {sequence.model}, and flame_param takes "
                         "FLAME only. Track the subject with FLAME (VHAP does), or write --without-params: pictures and cameras alone")
    if len(params.expression) > EXPRESSIONS or (params.identity is not None and len(params.identity) > IDENTITIES):
        raise InputError(f"{sequence.root}: has {len(params.expression)} expression coefficients; flame_param takes {EXPRESSIONS}, "
                         f"and {IDENTITIES} of the identity")


def _remarks(sequence: TrackedSequence, params: bool) -> list[str]:
    """What is lost, and what GaussianAvatars will not see."""
    first, lines = sequence.frames[0].params, []
    absent = [name for name in ("identity", "neck", "jaw", "eyes", "static_offset") if getattr(first, name) is None]
    if params and absent:
        lines.append(f"the source has no {', '.join(absent)}: written as 0")
    if params and first.eyelids is not None:
        lines.append("eyelids are left out: flame_param has no place for them")
    if params and first.rotation is not None and sequence.pivot == "origin":
        lines.append("the head turns about its model's origin here: it is written at rest, with cameras that move")
    views = [frame.view for frame in sequence.frames if frame.view is not None]
    off = max(max(abs(view.intrinsics[0, 0, 2].item() - view.width / 2), abs(view.intrinsics[0, 1, 2].item() - view.height / 2)) for view in views)
    skew = max(abs(view.intrinsics[0, 1, 1].item() / view.intrinsics[0, 0, 0].item() - 1.0) for view in views)
    if off > 1.0 or skew > 0.005:
        lines.append(f"GaussianAvatars takes principal points for centred and pixels for square; here they are up to {off:.1f} pixels off and "
                     f"{100 * skew:.1f} % apart, which it will show as a shift")
    return lines


if __name__ == "__main__":
    run(main)
