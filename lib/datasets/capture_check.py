"""Does a readable capture make sense? Measures of scale, pose, cameras and mattes, and what is wrong when they do not agree."""

import math
from dataclasses import dataclass
from statistics import mean, median

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.datasets.head_capture import FOREGROUND, HeadCapture, Picture
from lib.datasets.layout import LANDMARK_COUNT
from lib.datasets.sampler import spread
from lib.errors import InputError
from lib.geometry.head_pose import HeadPose
from lib.geometry.tetmesh import BoundingBox

CHECKED_FRAMES, CHECKED_PICTURES = 64, 8
# A fitted face fills about this part of the longest side of its model_bbox (a BFM face about 0.55, with the neck up to 0.85).
TYPICAL_FILL, FILL_FACTOR = 0.55, 3.0
LEAST_INSIDE = 0.5  # share of landmarks inside the picture: below, the cameras belong to something else
# What a box needs around the control points of a face, in widths of the face: hair and skull at the sides, above, behind; neck; a nose that moves.
SIDE_MARGIN, TOP_MARGIN, BOTTOM_MARGIN, FRONT_MARGIN, BACK_MARGIN = 0.35, 0.5, 0.35, 0.15, 0.75
BOX_STEP = 0.05  # canonical units: sides are rounded outwards to this
STRAY = 0.5  # of the width: frames whose box is further from the typical one are left out
LEAST_ON_HEAD = 0.8  # share of landmarks inside the matte, mean of some pictures: the jaw line lies on the outline, so a few miss
FULL_MATTE = 0.98  # share of the picture: above, nothing was matted


@dataclass(frozen=True)
class FaceBounds:
    """Boxes of the control points (landmarks and 3DMM vertices) in F frames, canonical units."""

    frames: tuple[str, ...]
    low: Float[Tensor, "F 3"]
    high: Float[Tensor, "F 3"]

    def sticking_out(self, model_bbox: BoundingBox) -> list[str]:
        """Axes along which some frame leaves `model_bbox` by more than the two decimals that people write."""
        box = torch.tensor(model_bbox)
        out = (self.low.amin(dim=0) < box[:, 0] - 0.01) | (self.high.amax(dim=0) > box[:, 1] + 0.01)
        return [axis for axis, is_out in zip("xyz", out.tolist(), strict=True) if is_out]

    def problems(self, capture: HeadCapture, model_bbox: BoundingBox) -> list[str]:
        """One line when frames do not fit `model_bbox`: far too large or small, or centred outside."""
        box = torch.tensor(model_bbox)
        fitting = TYPICAL_FILL * float((box[:, 1] - box[:, 0]).max())
        size, centre = self.high - self.low, (self.high + self.low) / 2.0
        ratio = size.amax(dim=1) / fitting
        misfit = (ratio > FILL_FACTOR) | (ratio < 1.0 / FILL_FACTOR)
        outside = ((centre < box[:, 0]) | (centre > box[:, 1])).any(dim=1)
        bad = (misfit | outside).nonzero()[:, 0].tolist()
        if not bad:
            return []
        first = bad[0]
        what = f"{float(ratio[first]):.2g} times what fits" if misfit[first] else "the centre is outside"
        return [f"{capture.folder.params_path(self.frames[first])}: the face spans {_numbers(size[first], ' x ')} canonical units around "
                f"({_numbers(centre[first])}), meshheadmodule.model_bbox is {_box(model_bbox)}: {what} ({len(bad)} of {len(self.frames)} frames "
                "looked at). Either 'scale' or 'pose' do not belong to lmk_3d.npy and vertices.npy of the frame (other world units?), "
                "or model_bbox is not in the units of this 3DMM"]


@dataclass(frozen=True)
class PictureMeasure:
    """Shares in [0,1]: of the 66 landmarks inside the picture and inside the matte, and of the picture covered by the matte."""

    picture: Picture
    inside_picture: float
    inside_matte: float
    coverage: float


@dataclass(frozen=True)
class PoseJump:
    """How far the head moves between two neighbouring frames of a sequence, canonical units, and by how much it turns."""

    before: str
    after: str
    distance: float
    degrees: float


@dataclass(frozen=True)
class CaptureReport:
    """What was measured before training."""

    frames: int
    cameras: int
    sequences: int
    expressions: int
    scale: float
    bounds: FaceBounds
    model_bbox: BoundingBox
    measures: tuple[PictureMeasure, ...]
    largest_jump: PoseJump | None

    def lines(self) -> tuple[str, ...]:
        """The report for people."""
        low, high = self.bounds.low.amin(dim=0), self.bounds.high.amax(dim=0)
        extent = tuple((round(a, 2), round(b, 2)) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        worst = min(self.measures, key=lambda measure: measure.inside_matte)
        coverage = [measure.coverage for measure in self.measures]
        jump, on_head = self.largest_jump, mean(measure.inside_matte for measure in self.measures)
        out = self.bounds.sticking_out(self.model_bbox)
        return (
            f"{self.frames} frames x {self.cameras} cameras" + (f" in {self.sequences} sequences" if self.sequences > 1 else "")
            + f", {self.expressions} expression coefficients, {self.scale:.3g} world units per canonical unit",
            f"face in canonical units: {_box(extent)}; model_bbox {_box(self.model_bbox)}"
            + (f": cuts the face along {', '.join(out)}" if out else ""),
            f"landmarks: {mean(measure.inside_picture for measure in self.measures):.0%} inside the picture, "
            f"{on_head:.0%} inside the matte "
            f"(worst of {len(self.measures)} pictures: {worst.inside_matte:.0%}, frame {worst.picture.frame}, camera {worst.picture.camera})",
            *([f"LESS THAN {LEAST_ON_HEAD:.0%} of the landmarks are on the head: cameras, mattes and 3DMM fit do not belong together; stop this, and "
               "`python -m preprocess.check_subject --config` with this file tells what does not fit"] if on_head < LEAST_ON_HEAD else []),
            f"mattes cover {mean(coverage):.0%} of the picture ({min(coverage):.0%} to {max(coverage):.0%})",
            *([f"largest head movement between neighbouring frames: {jump.distance:.2f} canonical units ({jump.before} to {jump.after})"]
              if jump else []),
        )


def check_capture(capture: HeadCapture, model_bbox: BoundingBox) -> CaptureReport:
    """The cheap check before every training: parameters of up to 64 frames and the mattes of up to 8 pictures.

    Raises InputError when the face does not fit `model_bbox` (canonical units), when landmarks project outside the pictures, or
    when a matte is black or covers its picture; the message says what was measured and what is the likely cause.
    """
    bounds = face_bounds(capture, spread(capture.frames, CHECKED_FRAMES))
    _refuse(bounds.problems(capture, model_bbox))
    measures = tuple(measure_picture(capture, picture, capture.matte(picture) >= FOREGROUND) for picture in _spread_pictures(capture))
    _refuse(picture_problems(capture, measures))
    return CaptureReport(
        frames=len(capture.frames), cameras=len(capture.camera_ids), sequences=len(set(capture.sequence_of.values())),
        expressions=capture.expression_count, scale=median(float(params.scale) for params in capture.params.values()),
        bounds=bounds, model_bbox=model_bbox, measures=measures,
        largest_jump=max(pose_jumps(capture), key=lambda jump: jump.distance, default=None),
    )


def face_bounds(capture: HeadCapture, frames: list[str]) -> FaceBounds:
    """Boxes of the control points of the given frames."""
    params = [capture.params[frame] for frame in frames]
    head = HeadPose(torch.stack([one.pose for one in params]), torch.stack([one.scale for one in params]))
    points = head.to_canonical(torch.stack([capture.control_points[frame] for frame in frames]))
    return FaceBounds(tuple(frames), points.amin(dim=1), points.amax(dim=1))


def chosen_box(bounds: FaceBounds) -> BoundingBox:
    """A `model_bbox` for this subject, canonical units: what the control points of all frames fill and a margin for the rest of the head.

    Margins are parts of the face's width (0.35 at the sides and below, 0.5 above, 0.15 in front, 0.75 behind), so that a 3DMM of any units gets a
    box like the published one; y is up and z forward, as in BFM, FLAME and FaceVerse. Hair that stands out further wants a larger box.
    """
    low, high = bounds.low.median(dim=0).values, bounds.high.median(dim=0).values
    width = float(high[0] - low[0])
    usual = ((bounds.low - low).abs().amax(dim=1) <= STRAY * width) & ((bounds.high - high).abs().amax(dim=1) <= STRAY * width)
    below = torch.tensor([SIDE_MARGIN, BOTTOM_MARGIN, BACK_MARGIN]) * width
    above = torch.tensor([SIDE_MARGIN, TOP_MARGIN, FRONT_MARGIN]) * width
    step = BOX_STEP * 10.0 ** math.floor(math.log10(width))  # of a face as wide as 1 to 10 units
    starts = torch.floor((bounds.low[usual].amin(dim=0) - below) / step) * step
    ends = torch.ceil((bounds.high[usual].amax(dim=0) + above) / step) * step
    x, y, z = ((round(start, 4), round(end, 4)) for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
    return x, y, z


def measure_picture(capture: HeadCapture, picture: Picture, matte: Bool[Tensor, "H W"]) -> PictureMeasure:
    """Where the 66 landmarks fall in a picture whose head is `matte`."""
    camera = capture.camera(picture.frame, [picture.camera])
    points = camera.to_camera(capture.control_points[picture.frame][None, :LANDMARK_COUNT])
    pixels = camera.to_pixels(points)[0]
    column, row = pixels.floor().unbind(dim=1)
    # Points behind the camera divide by a negative depth and may seem to fall inside.
    inside = (points[0, :, 2] > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    on_head = matte[row[inside].long(), column[inside].long()]
    return PictureMeasure(picture, float(inside.float().mean()), float(on_head.sum()) / LANDMARK_COUNT, float(matte.float().mean()))


def picture_problems(capture: HeadCapture, measures: tuple[PictureMeasure, ...]) -> list[str]:
    """One line each for cameras that look elsewhere and for mattes that cover everything."""
    found = []
    if median(measure.inside_picture for measure in measures) < LEAST_INSIDE:
        worst = min(measures, key=lambda measure: measure.inside_picture)
        path = capture.folder.camera_path(worst.picture.frame, worst.picture.camera)
        found.append(f"{path}: only {worst.inside_picture:.0%} of the landmarks of frame {worst.picture.frame} project inside the picture of camera "
                     f"{worst.picture.camera} (median of {len(measures)} pictures: {median(measure.inside_picture for measure in measures):.0%}). "
                     "Expected 'extrinsic' world->camera with OpenCV axes (x right, y down, z forward) in the units of lmk_3d.npy, and 'intrinsic' "
                     f"in pixels of dataset.original_resolution, which is {capture.config.original_resolution}")
    full = [measure for measure in measures if measure.coverage > FULL_MATTE]
    if full:
        path = capture.folder.image_path(full[0].picture.frame, full[0].picture.camera, "mask")
        found.append(f"{path}: the matte covers {full[0].coverage:.0%} of the picture ({len(full)} of {len(measures)} pictures looked at); "
                     "expected 255 on the head and 0 elsewhere: matte the background")
    return found


def pose_jumps(capture: HeadCapture) -> list[PoseJump]:
    """The head's movement between neighbouring frames of each sequence."""
    jumps = []
    for before, after in zip(capture.frames, capture.frames[1:], strict=False):
        if capture.sequence_of[before] == capture.sequence_of[after]:
            one, other = capture.params[before], capture.params[after]
            turn = roma.rotvec_geodesic_distance(one.pose[:3], other.pose[:3])
            jumps.append(PoseJump(before, after, float((other.pose[3:] - one.pose[3:]).norm() / other.scale), math.degrees(float(turn))))
    return jumps


def _spread_pictures(capture: HeadCapture) -> list[Picture]:
    """Different frames seen by different cameras."""
    frames, cameras = spread(capture.frames, CHECKED_PICTURES), spread(capture.camera_ids, CHECKED_PICTURES)
    return list(dict.fromkeys(Picture(frames[k % len(frames)], cameras[k % len(cameras)]) for k in range(CHECKED_PICTURES)))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise InputError(problems[0])


def _numbers(values: Float[Tensor, "3"], between: str = ", ") -> str:
    return between.join(f"{value:.2f}" for value in values.tolist())


def _box(box: BoundingBox) -> str:
    return ", ".join(f"{axis} {low:g} to {high:g}" for axis, (low, high) in zip("xyz", box, strict=True))
