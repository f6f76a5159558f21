"""Tracked faces as drivers: the coefficients an avatar takes, and where the head is."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.arrays import parse_arrays, read_bytes
from lib.datasets.layout import CaptureFolder, FrameParams, by_number, check_numbers, read_params_file
from lib.datasets.tracked import subject
from lib.datasets.tracked.files import Gaps, ReadOptions
from lib.datasets.tracked.record import FaceModel, FaceParams, TrackedFrame, TrackedSequence
from lib.datasets.tracked.sources import read_tracking, recognise
from lib.errors import InputError
from lib.tensors import TensorBundle

# FLAME in params.npz files: so many expression coefficients, then jaw (3) and eyes (6), as the published fitting writes them.
JOINTS = 9


@dataclass(frozen=True)
class DriverTrack(TensorBundle):
    """What moves an avatar. `poses` (rotation vector, translation) and `scales` are None where the files do not tell them."""

    expressions: Float[Tensor, "T E"]
    poses: Float[Tensor, "T 6"] | None
    scales: Float[Tensor, "T 1"] | None
    names: tuple[str, ...]  # file, and row: for messages
    holds: str  # what the coefficients are
    model: str | None  # name of the 3DMM, where the files tell
    sequences: tuple[str, ...]  # of every frame
    own_world: bool  # params.npz: `poses` are in the world of the avatar's training, `scales` of its canonical units, wherever the head is put
    units_per_metre: float = 1.0  # of the world that `poses` are in
    kept: tuple[int, ...] | None = None  # of params.npz files, the numbers of those that were not left out
    left_out: int = 0  # frames
    notes: tuple[str, ...] = ()


def track_of(paths: list[Path], skip_nan: bool = False) -> DriverTrack:
    """The driver in params.npz files, one per frame. Raises InputError where one is not readable or of another width."""
    gaps, params = Gaps(skip_nan), dict[int, FrameParams]()
    for number, path in enumerate(paths):
        with gaps.frame():
            params[number] = read_params_file(path)
    if not params:
        raise InputError(f"{paths[0]}: neither this nor any other of {len(paths)} files is a frame that can be used: all hold NaN")
    names, frames = [str(paths[number]) for number in params], list(params.values())
    for name, frame in zip(names, frames, strict=True):
        if len(frame.expression) != len(frames[0].expression):
            raise InputError(f"{name}: 'exp_coeff' has {len(frame.expression)} values, {names[0]} has {len(frames[0].expression)}")
    expressions, poses, scales = (torch.stack([getattr(frame, name) for frame in frames]) for name in ("expression", "pose", "scale"))
    model = FaceModel(*frames[0].model or (None,))
    holds = f"{expressions.shape[1]} values of exp_coeff" + (f", as of {model}" if model.name else "")
    sequences, unread = _sequences_of([paths[number] for number in params])
    return DriverTrack(expressions, poses, scales, tuple(names), holds, model.name, sequences, own_world=True, kept=tuple(params),
                       left_out=len(paths) - len(params), notes=(*gaps.notes(), *unread))


def read_driver(path: Path, expression_count: int | None, skip_nan: bool = False) -> DriverTrack:
    """A driver in whatever format is recognised, with as many coefficients as the avatar takes, if it has them; pictures are not needed."""
    if _is_params(path):
        return track_of([path])
    recognition = recognise(path)
    if recognition.reader.name == subject.FORMAT:
        files = sorted(path.glob("params/*/params.npz"), key=lambda file: by_number(file.parent.name))
        track = track_of(files, skip_nan)
        return dataclasses.replace(track, notes=(f"{path}: recognised as {subject.FORMAT} ({recognition.why})", *track.notes))
    sequence = read_tracking(path, ReadOptions(images=False, skip_nan=skip_nan))
    instants = sequence.instants()
    rows, holds = zip(*(coefficients(frame.params, sequence.model, expression_count) for frame in instants), strict=True)
    heads = [_head(frame) for frame in instants]
    poses = [head for head in heads if head is not None]
    scale = instants[0].params.scale
    notes = (f"{sequence.summary()} (recognised by {recognition.why}); drives by {holds[0]}", *sequence.notes, *_pose_note(sequence))
    if instants[0].params.eyelids is not None:
        notes += ("eyelids of these files are not used: no avatar takes them. Where this tracker closes the eyes by them, the avatar's stay open",)
    return DriverTrack(
        torch.stack(rows), torch.stack(poses) if len(poses) == len(instants) else None,
        None if not poses else torch.ones(len(instants), 1) if scale is None else torch.stack([frame.params.scale for frame in instants]),
        tuple(frame.where for frame in instants), holds[0], sequence.model.name, tuple(frame.sequence for frame in instants), own_world=False,
        units_per_metre=sequence.units_per_metre, notes=notes)


def _sequences_of(paths: list[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sequence of every file, by the frames.json of its subject ('' without one), and notes. Raises InputError for subjects whose files are of
    two fits or have one number twice."""
    found: dict[Path, list[str]] = {}
    for path in paths:
        if path.parent.parent.name == "params":
            found.setdefault(path.parents[2], []).append(path.parent.name)
    names, notes = dict[Path, str](), list[str]()
    for root, frames in found.items():
        folder = CaptureFolder(root)
        folder.require_whole_fit()
        check_numbers(root / "params", frames)
        try:
            records = folder.records(frames)
        except InputError as error:  # only smoothing asks for it here
            records = None
            notes.append(f"{error}: these frames count as one sequence")
        names |= {folder.params_path(record.frame): f"{root} {record.sequence}" for record in records or ()}
    return tuple(names.get(path, "") for path in paths), tuple(notes)


def _is_params(path: Path) -> bool:
    """Whether a file is one frame of a subject folder, whatever its name."""
    return path.is_file() and path.suffix == ".npz" and {"exp_coeff", "pose", "scale"} <= set(parse_arrays(path, read_bytes(path)))


def coefficients(params: FaceParams, model: FaceModel, count: int | None) -> tuple[Float[Tensor, "D"], str]:
    """What an avatar of `count` coefficients takes, and what that is: the expression, or with FLAME its first 50 (or all) with jaw and eyes.

    A caller must compare the width: what does not fit is returned as it is.
    """
    width = len(params.expression)
    plain = params.expression, f"{width} expression coefficients of {model}"
    if count in (None, width) or model.name != "FLAME" or params.jaw is None or params.eyes is None:
        return plain
    for kept in (width, subject.FLAME_EXPRESSIONS):
        if kept <= width and count == kept + JOINTS:
            joined = torch.cat([params.expression[:kept], params.jaw, params.eyes])
            return joined, f"{kept} of {width} expression coefficients, jaw and eyes of {model}"
    return plain


def _head(frame: TrackedFrame) -> Float[Tensor, "6"] | None:
    """The pose of the head itself: FLAME turns it by root and neck."""
    head = frame.head_pose()
    if head is None or frame.params.neck is None:
        return None if head is None else head.pose
    return torch.cat([roma.rotvec_composition((head.pose[:3], frame.params.neck)), head.pose[3:]])


def _pose_note(sequence: TrackedSequence) -> tuple[str, ...]:
    if sequence.pivot == "origin":
        return ()
    return ("with head_pose driver the head turns about the origin of its model, not about FLAME's root and neck joints, whose place these "
            "files do not tell: it may be some centimetres off (own keeps it where it was in the avatar's training)",)
