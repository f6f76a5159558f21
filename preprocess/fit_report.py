"""How well a fitted head agrees with the detections: numbers per frame and camera, and who stands out."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.geometry.head_pose import HeadPose
from preprocess.fit_config import FitConfig
from preprocess.fit_head import HeadFit
from preprocess.fit_observations import Observations, pull, visibility

TRUSTED = 0.5  # score times visibility from which a detection is part of the figures, of the largest where a detector is never so sure
OUTLIER_FACTOR, OUTLIER_PX = 2.5, 3.0  # a frame or camera stands out where its median is so many times that of all, and so large


@dataclass(frozen=True)
class Errors:
    """Distances of detected from projected landmarks, pixels at 512²; NaN where there is nothing to compare."""

    detections: int
    median: float
    high: float  # 95 %

    @staticmethod
    def of(distances: Float[Tensor, "*N"]) -> "Errors":
        """NaN among `distances` is left out."""
        kept = distances[~distances.isnan()]
        if len(kept) == 0:
            return Errors(0, float("nan"), float("nan"))
        ordered = kept.sort().values
        return Errors(len(kept), float(ordered[len(kept) // 2]), float(ordered[int(0.95 * (len(kept) - 1))]))

    def stands_out(self, of_all: "Errors") -> bool:
        """Far worse than the rest."""
        return self.detections > 0 and self.median > max(OUTLIER_FACTOR * of_all.median, OUTLIER_PX)

    def rounded(self) -> dict[str, float | int | None]:
        """For JSON."""
        return {"detections": self.detections, **{name: None if value != value else round(value, 3)
                                                  for name, value in (("median_px", self.median), ("high_px", self.high))}}


@dataclass(frozen=True)
class FitReport:
    """Errors by name."""

    overall: Errors
    frames: dict[str, Errors]
    cameras: dict[str, Errors]
    shifts: dict[str, tuple[float, float]]  # median of detected - projected per camera: the same everywhere in it is a wrong principal point
    unseen: list[str]
    distances: Float[Tensor, "F C 66"]

    def outlying_frames(self) -> list[str]:
        """Frames that stand out."""
        return [name for name, errors in self.frames.items() if errors.stands_out(self.overall)]

    def outlying_cameras(self) -> list[str]:
        """Cameras that stand out."""
        return [name for name, errors in self.cameras.items() if errors.stands_out(self.overall)]


def landmarks_in_world(fit: HeadFit) -> Float[Tensor, "F 66 3"]:
    """The fitted landmarks of all frames."""
    corners = fit.model.landmark_corners.unique()
    canonical = fit.model.part(corners).double().linearize_landmarks(fit.identity, fit.expression).points
    return fit.head.to_world(canonical)


def make_report(fit: HeadFit, seen: Observations, frames: list[str], cameras: list[str], config: FitConfig) -> FitReport:
    """Compares detections that a fit could trust (see `visibility`) with the projected landmarks."""
    rotation, translation = HeadPose(fit.head.pose, fit.head.scale).rotation(), fit.head.pose[:, 3:]
    face = fit.model.landmarks(fit.model.mean).double()
    trust = seen.scores * visibility(face, rotation, translation, seen.centers, config.jaw_yaw, config.side_yaw)
    residuals = pull(landmarks_in_world(fit), seen.projection, seen.pixels).residuals
    used = (trust >= TRUSTED * (1.0 if bool((trust >= TRUSTED).any()) else float(trust.max()))) & fit.seen[:, None, None]
    distances = torch.where(used, residuals.norm(dim=-1), torch.nan)
    shifts = {}
    for c, camera in enumerate(cameras):
        own = -residuals[:, c][used[:, c]]
        if len(own) > 0:
            x, y = own.median(dim=0).values.tolist()
            shifts[camera] = (x, y)
    return FitReport(
        Errors.of(distances), {name: Errors.of(distances[f]) for f, name in enumerate(frames)},
        {name: Errors.of(distances[:, c]) for c, name in enumerate(cameras)}, shifts,
        [name for name, known in zip(frames, fit.seen.tolist(), strict=True) if not known], distances)


def as_json(report: FitReport, fit: HeadFit, config: FitConfig, made_with: dict[str, str]) -> dict[str, object]:
    """What report.json holds."""
    return {
        "made_with": made_with,
        "overall": report.overall.rounded(),
        "noise_px": round(fit.noise, 3),
        "scale": float(fit.head.scale[0]),
        "scale_is_seen": fit.scale_is_seen,
        "identity": [round(value, 4) for value in fit.identity[:fit.identity_count].tolist()],
        "offset_of_landmarks": round(float(fit.offset().norm(dim=-1).mean()), 4),
        "outliers": {"frames": report.outlying_frames(), "cameras": report.outlying_cameras(), "frames_without_detections": report.unseen},
        "cameras": {name: errors.rounded() | {"shift_px": [round(value, 2) for value in report.shifts.get(name, ())]}
                    for name, errors in report.cameras.items()},
        "frames": {name: errors.rounded() for name, errors in report.frames.items()},
        "pictures": [[Errors.of(row).rounded()["median_px"] for row in frame] for frame in report.distances],  # [frame][camera]
        "priors": config.model_dump(mode="json"),
    }


def print_report(report: FitReport, fit: HeadFit) -> None:
    """A table of the cameras, and what stands out."""
    print(f"{'camera':>12}  {'detections':>10}  {'median':>7}  {'95 %':>7}  shift (x, y), pixels at 512x512")
    for name, errors in report.cameras.items():
        if errors.detections == 0:
            print(f"{name:>12}  {0:>10}")
            continue
        x, y = report.shifts[name]
        mark = "  <- stands out" if errors.stands_out(report.overall) else ""
        print(f"{name:>12}  {errors.detections:>10}  {errors.median:7.2f}  {errors.high:7.2f}  {x:+6.2f} {y:+6.2f}{mark}")
    print(f"{'all':>12}  {report.overall.detections:>10}  {report.overall.median:7.2f}  {report.overall.high:7.2f}")
    scale, offset = float(fit.head.scale[0]), float(fit.offset().norm(dim=-1).mean())
    print(f"the offset of this person moves landmarks by {offset:.3f} canonical units on average: what the model cannot say, the same in all frames")
    chosen = "" if fit.scale_is_seen else " (chosen: no two cameras see the head, so that its size and distance cannot be told apart)"
    print(f"scale {scale:.5g} world units per canonical unit{chosen}")
    for what, names in (("stand out", report.outlying_frames()), ("have no usable detections and repeat the nearest frame", report.unseen)):
        if names:
            print(f"{len(names)} of {len(report.frames)} frames {what}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}")
