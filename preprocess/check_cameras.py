"""Cameras that do not fit their pictures, and what would: the likely mistakes are tried, and the one under which things agree is told.

2D detections judge where there are any (distance of projected from detected landmarks), else the pictures themselves (check_evidence.py), which
need two cameras. A hypothesis is told with what it wins; it is no proof.
"""

import dataclasses
import math
from statistics import mean, median

import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.head_capture import HeadCapture, Picture
from lib.datasets.layout import LANDMARK_COUNT
from lib.geometry.camera import Camera
from preprocess.check_detections import Detections
from preprocess.check_evidence import Sight
from preprocess.check_findings import Finding, Mark, numbers
from preprocess.check_hypotheses import CONVENTIONS, ERROR_SCALE, Change, DetectionEvidence, Evidence, PictureEvidence, Verdict

LARGEST_ERROR = 0.02  # of the image size: landmarks of a camera may lie that far from detections
LARGEST_SHIFT = 0.02  # of the image size: ... or that far aside
LEAST_GAIN, LEAST_SCORE = 0.15, 0.5  # a hypothesis must explain this much more than the camera as it is, and this much in all
TRIED_CAMERAS, TRIED_PAIRS = 4, 6  # the worst ones
LEAST_HINT, FEW = 0.05, 4  # gain at first sight; of so few cameras a wrong one spoils what the others are compared with, so that all is tried
FARTHEST = 1e6  # pixels: JSON has no infinity
SAME_FACTOR, OTHER_SIZE = 0.03, 0.04  # a principal point wrong by one factor in x and y, and by at least this, is of a picture of another size


def camera_findings(capture: HeadCapture, sight: Sight, detections: Detections | None) -> tuple[list[Finding], list[Mark]]:
    """Cameras that do not fit, and where their landmarks should lie."""
    findings, marks = [], []
    judged: set[str] = set()
    if detections is not None:
        evidence = DetectionEvidence(detections)
        judged = set(evidence.cameras)
        verdicts = diagnose(evidence)
        findings += [_finding(capture, one, evidence) for one in verdicts]
        marks += [mark for one in verdicts for mark in _marks(capture, one, sight.frames[len(sight.frames) // 2])]
        findings += _misfits(capture, detections, {camera for one in verdicts for camera in one.cameras})
    if len(sight.cameras) < 2:
        print("one camera: pictures of other cameras that could contradict it are missing")
        return findings, marks
    evidence = PictureEvidence(sight)
    scores = evidence.given().tolist()
    print(f"pictures of a camera correlate with what the others see by {median(scores):.2f} "
          f"({min(scores):.2f} for camera {evidence.cameras[scores.index(min(scores))]}); 1 is best")
    for one in diagnose(evidence) if not judged.issuperset(evidence.cameras) else []:
        if not judged.issuperset(one.cameras):
            findings.append(_finding(capture, one, evidence))
            marks += _marks(capture, one, sight.frames[len(sight.frames) // 2])
    return findings, marks


def _misfits(capture: HeadCapture, detections: Detections, explained: set[str]) -> list[Finding]:
    """Prints a line per camera; cameras far from their detections that no hypothesis explains."""
    size, found = capture.config.original_resolution, []
    for column, camera in enumerate(detections.cameras):
        offsets = detections.offsets(column, detections.camera(column))
        error = float(offsets.norm(dim=1).median())
        pictures = detections.of_cameras([camera]).pictures
        print(f"camera {camera}: landmarks are {error * size:.1f} px from those of {pictures} detections")
        if error > LARGEST_ERROR and camera not in explained:
            x, y = (offsets.median(dim=0).values * size).tolist()
            found.append(Finding(
                "camera_misfit", f"{capture.folder.root / 'cameras'}: camera {camera}: projected 3D landmarks miss the detected ones by "
                f"{error * size:.1f} px (median; detected - projected: {x:+.1f}, {y:+.1f}; expected below {LARGEST_ERROR * size:.1f}), and no usual "
                "mistake explains it: is the calibration of another day, or the 3DMM fit of other pictures?", cameras=(camera,),
                numbers=numbers(error_px=min(error * size, FARTHEST))))
    return found


def _finding(capture: HeadCapture, verdict: Verdict, evidence: Evidence) -> Finding:
    size, cameras = capture.config.original_resolution, verdict.cameras
    every = "all cameras" if len(cameras) == len(evidence.cameras) > 1 else f"camera{'s' if len(cameras) > 1 else ''} {', '.join(cameras)}"
    if isinstance(evidence, DetectionEvidence):
        given, gained = (_error(score) * size for score in (verdict.given, verdict.gained))
        wins = f"2D detections are then {gained:.1f} px away instead of {given:.1f} px" if math.isfinite(given) else \
            f"2D detections are then {gained:.1f} px away, as given the head is behind the camera"
        measured = numbers(error_px=min(given, FARTHEST), error_then_px=gained)
    else:
        wins = f"the picture{'s correlate' if len(cameras) > 1 else ' correlates'} with what the other cameras see by {verdict.gained:.2f} then " \
            f"instead of {verdict.given:.2f}"
        measured = numbers(correlation=verdict.given, correlation_then=verdict.gained)
    says = verdict.says
    if verdict.kind == "exchanged_cameras":
        says = "their files are exchanged, or their pictures"
        every = f"cameras {' and '.join(sorted(cameras))}"
    elif verdict.kind == "principal_point":
        says = _principal_point(verdict, evidence, size)
        measured += numbers(shift_x_px=verdict.shift[0] * size, shift_y_px=verdict.shift[1] * size)
    path = capture.folder.camera_path(capture.frames[0], cameras[0])
    place = path if len(cameras) == 1 else path.parent
    return Finding(verdict.kind, f"{place}: {every}: {says}; {wins}", (str(path),), cameras=cameras, numbers=measured)


def _principal_point(verdict: Verdict, evidence: Evidence, size: int) -> str:
    """What a shift may come from."""
    cx, cy = (evidence.camera(verdict.columns[0]).intrinsics[0, :2, 2] / evidence.camera(verdict.columns[0]).width).tolist()
    then_x, then_y = cx + verdict.shift[0], cy + verdict.shift[1]
    off_x, off_y = (round(-part * size, 1) + 0.0 for part in verdict.shift)  # no -0.0
    where = f"the principal point ({cx * size:.0f}, {cy * size:.0f}) does not fit, ({then_x * size:.0f}, {then_y * size:.0f}) does " \
        f"(off by {off_x:+.1f}, {off_y:+.1f} px)"
    factor_x, factor_y = cx / max(then_x, 1e-3), cy / max(then_y, 1e-3)
    if abs(factor_x / factor_y - 1.0) < SAME_FACTOR and abs(factor_x - 1.0) > OTHER_SIZE:
        factor = (factor_x + factor_y) / 2.0
        return f"{where}: cx and cy are both {factor:.2f} times what fits. 'intrinsic' seems not to have been rescaled after a crop: " \
            "cx and cy belong to pictures of another size than the focal lengths"
    axis = "cx is shifted" if abs(verdict.shift[1]) < LARGEST_SHIFT / 2 else "cy is shifted" if abs(verdict.shift[0]) < LARGEST_SHIFT / 2 else \
        "cx and cy are shifted"
    mirrored = [name for name, value, then in (("cx", cx, then_x), ("cy", cy, then_y)) if abs(value - then) > LARGEST_SHIFT and
                abs(1.0 - value - then) < LARGEST_SHIFT / 2]
    return f"{where}: {axis}. " + (f"{mirrored[0]} seems to be counted from the other side of the picture" if mirrored else
                                   "'intrinsic' seems to be of another crop of the pictures, or a crop's offset was not subtracted")


def _marks(capture: HeadCapture, verdict: Verdict, frame: str) -> list[Mark]:
    marks = []
    for camera, undo in zip(verdict.cameras, verdict.undo, strict=True):
        landmarks = capture.control_points[frame][None, :LANDMARK_COUNT]
        then = undo(capture.camera(frame, [camera])) if verdict.kind != "exchanged_cameras" else \
            capture.camera(frame, [next(other for other in verdict.cameras if other != camera)])
        marks.append(Mark(Picture(frame, camera), verdict.kind.replace("_", " "), then.project(landmarks)[0] / then.width))
    return marks


def _error(score: float) -> float:
    """The median distance of a score, of the image size."""
    return max(0.0, -math.log(score) * ERROR_SCALE) if score > 0 else math.inf


def diagnose(evidence: Evidence) -> list[Verdict]:
    """Mistakes of cameras, each undone before the next is looked for: a wrong camera makes right ones look wrong."""
    verdicts: list[Verdict] = []
    while len(verdicts) < len(evidence.cameras):
        given = evidence.given()
        tried = [(evidence.changed(one), one) for one in _candidates(evidence, given)]
        better = []
        for after, one in tried:
            columns = list(one.columns)
            own = dataclasses.replace(one, given=float(given[columns].mean()), gained=float(after.given()[columns].mean()))
            # A shift has free numbers and a convention none, one mistake of all is simpler than one each: those are taken for little less.
            handicap = (0.03 if one.kind == "principal_point" else 0.0) - 0.01 * len(columns)
            if own.gained >= max(own.given + LEAST_GAIN, LEAST_SCORE):
                better.append((float(after.given().mean()) - handicap, after, own))
        if not better:
            break
        _, evidence, verdict = max(better, key=lambda row: row[0])
        verdicts.append(verdict)
    return _merged(verdicts)


def _candidates(evidence: Evidence, given: Float[Tensor, "C"]) -> list[Verdict]:
    """What may be wrong: the best convention and shift of all cameras together and of the worst cameras alone, the best exchanges.

    Only what looks better at once, the other cameras being as they are: all of it is then tried with everything else compared anew.
    """
    count, found = len(evidence.cameras), []
    def propose(gain: float, kind: str, says: str, columns: tuple[int, ...], *undo: Change, shift: tuple[float, float] = (0.0, 0.0)) -> None:
        if gain >= (LEAST_HINT if count > FEW else -1.0):
            found.append(Verdict(kind, says, tuple(evidence.cameras[column] for column in columns), columns, undo, shift=shift))

    enough = evidence.best - LEAST_GAIN  # who has more cannot gain what a verdict needs
    worst = [column for column in given.argsort().tolist() if float(given[column]) < enough]
    if count > 1 and float(given.mean()) < enough:
        everything, shift = tuple(range(count)), evidence.together_aside()
        before, shifted, *scores = evidence.together([lambda camera: camera, _aside(shift), *(one.undo for one in CONVENTIONS)]).tolist()
        best = max(range(len(CONVENTIONS)), key=lambda index: scores[index])
        propose(scores[best] - before, CONVENTIONS[best].kind, CONVENTIONS[best].says, everything, *[CONVENTIONS[best].undo] * count)
        if max(map(abs, shift)) > LARGEST_SHIFT:
            propose(shifted - before, "principal_point", "", everything, *[_aside(shift)] * count, shift=shift)
    for column in worst[:TRIED_CAMERAS]:
        before = float(given[column])
        scores = [evidence.alone(column, one.undo) for one in CONVENTIONS]
        best = max(range(len(CONVENTIONS)), key=lambda index: scores[index])
        propose(scores[best] - before, CONVENTIONS[best].kind, CONVENTIONS[best].says, (column,), CONVENTIONS[best].undo)
        shift = evidence.aside(column)
        if max(map(abs, shift)) > LARGEST_SHIFT:
            propose(evidence.alone(column, _aside(shift)) - before, "principal_point", "", (column,), _aside(shift), shift=shift)
    if not worst:
        return found
    files = [_file_of(evidence.camera(column)) for column in range(count)]
    score = torch.tensor([[evidence.alone(column, other) for other in files] for column in range(count)])
    gains = score + score.T - given[:, None] - given
    pairs = sorted(((a, b) for a in range(count) for b in range(a) if a in worst or b in worst), key=lambda pair: -float(gains[pair]))
    for a, b in pairs[:TRIED_PAIRS]:
        propose(float(gains[a, b]), "exchanged_cameras", "", (a, b), files[b], files[a])
    return found


def _merged(verdicts: list[Verdict]) -> list[Verdict]:
    """Cameras with the same wrong convention in one verdict."""
    merged: dict[object, list[Verdict]] = {}
    for one in verdicts:
        merged.setdefault((one.kind, one.says) if one.says else one, []).append(one)
    return [dataclasses.replace(
        group[0], cameras=tuple(camera for one in group for camera in one.cameras), columns=tuple(column for one in group for column in one.columns),
        undo=tuple(undo for one in group for undo in one.undo), given=mean(one.given for one in group), gained=mean(one.gained for one in group),
    ) for group in merged.values()]


def _aside(shift: tuple[float, float]) -> Change:
    def change(camera: Camera) -> Camera:
        moved = torch.zeros(3, 3)
        moved[:2, 2] = torch.tensor(shift) * camera.width
        return dataclasses.replace(camera, intrinsics=camera.intrinsics + moved)
    return change


def _file_of(other: Camera) -> Change:
    return lambda camera: other
