"""Do the parameters of a frame belong to its pictures? Every frame's pictures are compared with the 3D points of all frames.

By 2D detections where there are any, else by the pictures themselves (check_evidence.py). Frames between which the head hardly moves fit each
other's pictures as well as their own: that they are exchanged cannot be seen, and hardly matters.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.head_capture import HeadCapture, Picture
from lib.datasets.layout import LANDMARK_COUNT
from lib.geometry.camera import Camera
from preprocess.check_detections import Detections
from preprocess.check_evidence import Sight, agreement, sample, sample_pictures, texture
from preprocess.check_findings import Finding, Mark, Number, numbers

COMPARED = 64  # frames that fit worst, each of which is compared with each
LEAST_GAIN = 0.1  # of the correlation: by what another frame's points must fit better
LEAST_LANDMARKS = 10  # detected in all cameras together
LEAST_ERROR, LEAST_RATIO = 0.006, 2.0  # of the image size: error of a frame's own landmarks; how many times smaller another's must be


@dataclass(frozen=True)
class Mismatch:
    """The pictures of `frame` fit the parameters of `other` better than its own: `given` and `gained` are what `measure` says."""

    frame: str
    other: str
    mutual: bool
    given: float
    gained: float


def frame_findings(capture: HeadCapture, sight: Sight, detections: Detections | None) -> tuple[list[Finding], list[Mark]]:
    """Frames whose parameters are those of another frame. `sight`: some fitting cameras in all frames to judge."""
    findings, marks, judged = [], [], set()
    if detections is not None:
        fitting = detections.of_cameras([camera for camera in sight.cameras if camera in detections.cameras])
        errors = errors_of_detections(fitting)
        judged = {frame for frame, error in zip(fitting.frames, errors.diagonal(), strict=True) if bool(error.isfinite())}
        for one in mismatches_in_detections(fitting.frames, errors):
            size = capture.config.original_resolution
            findings.append(_finding(capture, one, f"2D detections are then {one.gained * size:.1f} px away instead of {one.given * size:.1f} px",
                                     numbers(error_px=one.given * size, error_then_px=one.gained * size)))
            marks.append(_mark(capture, one, sight.cameras[0]))
    for one in mismatches_in_pictures(sight) if not judged.issuperset(sight.frames) else []:
        if not {one.frame, one.other} <= judged:
            findings.append(_finding(capture, one, f"pictures correlate with those of the other frames by {one.gained:.2f} then instead of "
                                     f"{one.given:.2f}", numbers(correlation=one.given, correlation_then=one.gained)))
            marks.append(_mark(capture, one, sight.cameras[0]))
    return findings, marks


def _finding(capture: HeadCapture, one: Mismatch, wins: str, measured: tuple[Number, ...]) -> Finding:
    folder = capture.folder.params_path(one.frame).parent
    says = f"the parameters of frames {' and '.join(sorted((one.frame, one.other)))} are exchanged, or their pictures" if one.mutual else \
        f"the pictures of frame {one.frame} fit the parameters of frame {one.other} better than its own"
    return Finding("exchanged_frames" if one.mutual else "frame_misfit", f"{folder}: {says}; {wins}", (str(folder),), (one.frame, one.other),
                   numbers=measured)


def _mark(capture: HeadCapture, one: Mismatch, camera: str) -> Mark:
    seen = capture.camera(one.frame, [camera])
    landmarks = seen.project(capture.control_points[one.other][None, :LANDMARK_COUNT])[0]
    return Mark(Picture(one.frame, camera), f"as frame {one.other}", landmarks / seen.width)


def mismatches_in_pictures(sight: Sight) -> list[Mismatch]:
    """By correlation with the texture, -1 to 1."""
    columns = range(len(sight.cameras))
    samples = [sample(sight, column, sight.camera(column)) for column in columns]
    truth = texture(samples)
    own = torch.stack([agreement(one, truth) for one in samples]).mean(dim=0)
    whole = sight.decoded.all(dim=1).nonzero()[:, 0]
    worst = whole[own[whole].argsort()[:COMPARED]]
    count, points, normals = len(worst), sight.points[worst], sight.normals[worst]
    scores = torch.zeros(count, count)
    for row, frame in enumerate(worst.tolist()):
        for column in columns:
            camera = Camera(*(of[frame, column].expand(count, -1, -1) for of in (sight.world_to_camera, sight.intrinsics)), sight.size, sight.size)
            picture = sight.color[frame, column].expand(count, -1, -1, -1)
            scores[row] += agreement(sample_pictures(picture, points, normals, camera), truth) / len(columns)
    return _mismatches([sight.frames[index] for index in worst.tolist()], scores, scores.diagonal() + LEAST_GAIN)


def errors_of_detections(detections: Detections) -> Float[Tensor, "F F"]:
    """Median distance of what is detected in the pictures of one frame (rows) from the projected landmarks of another, of the image size; each
    camera's own shift is left out of it. NaN where hardly anything is detected."""
    count = len(detections.frames)
    errors = torch.full((count, count), torch.nan)
    own_shift = [detections.offsets(column, detections.camera(column)).median(dim=0).values for column in range(len(detections.cameras))]
    for row in range(count):
        distances = []
        for column, shift in enumerate(own_shift):
            sure = ~detections.found[row, column].isnan().any(dim=-1)
            if not shift.isfinite().all() or not sure.any():
                continue
            camera = Camera(*(of[row, column].expand(count, -1, -1) for of in (detections.world_to_camera, detections.intrinsics)),
                            detections.size, detections.size)
            offsets = (detections.found[row, column] - camera.project(detections.points)) / detections.size - shift
            distances.append(offsets.norm(dim=-1)[:, sure])
        if sum(part.shape[1] for part in distances) >= LEAST_LANDMARKS:
            errors[row] = torch.cat(distances, dim=1).median(dim=1).values
    return errors


def mismatches_in_detections(frames: tuple[str, ...], errors: Float[Tensor, "F F"]) -> list[Mismatch]:
    """By `errors_of_detections`."""
    own = errors.diagonal()
    limit = torch.where(own > LEAST_ERROR, own / LEAST_RATIO, 0.0)
    return [Mismatch(one.frame, one.other, one.mutual, -one.given, -one.gained)
            for one in _mismatches(list(frames), -errors.nan_to_num(torch.inf), -limit)]


def _mismatches(frames: list[str], scores: Float[Tensor, "F F"], least: Float[Tensor, "F"]) -> list[Mismatch]:
    """Rows whose largest score is another's and above the least."""
    if not frames:  # none was decoded by all cameras
        return []
    best = scores.argmax(dim=1).tolist()
    is_off = [best[row] != row and float(scores[row, best[row]]) > float(least[row]) for row in range(len(frames))]
    found = []
    for row, other in enumerate(best):
        mutual = is_off[other] and best[other] == row
        if is_off[row] and not (mutual and other < row):
            found.append(Mismatch(frames[row], frames[other], mutual, float(scores[row, row]), float(scores[row, other])))
    return found
