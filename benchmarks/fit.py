"""How well and how fast a head is fitted (preprocess.fit_3dmm), on demo heads whose truth is known, as JSON.

    python -m benchmarks.fit [--silhouettes bald demo slick] [--frames 60] [--similarities 100] [--small] [--output FILE]

Detections are the projected landmarks of the demo rig at 512²: clean, with 2 pixels of noise and 20 % anywhere in the picture, and the
same with 1 pixel and 10 % from one camera. Poses are compared with the truth as they are, and after one similarity of the canonical frame that
all frames share: a model that does not hold the person has an origin, axes and unit of its own. Canonical units are about decimetres, two
a head. `similarities`: the world is turned, scaled by 0.01 to 100 and shifted, four frames each.
"""

import argparse
import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.face_models.contract import FaceModel
from lib.face_models.ict import FACE_ROWS, read_ict
from lib.files import write_whole
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from lib.training.runtime import run
from preprocess.demo_head import DemoHead
from preprocess.demo_performance import SEQUENCES, Performance
from preprocess.demo_presets import PRESETS
from preprocess.demo_subject import FRAME_PERIOD_S, rig
from preprocess.fit_config import FitConfig
from preprocess.fit_head import HeadFit, fit_head
from preprocess.fit_observations import SIZE, Observations, pull
from preprocess.fit_outline import Mattes, distance_field
from preprocess.fit_report import landmarks_in_world
from preprocess.fit_start import similarity

HEADS = ("lee_perry_smith", "ict_1", "makehuman")
FRONT_CAMERA = 7
RECOVERED_UNITS = 0.02  # a fit in another world is the same head where its landmarks are as near to the truth as this, on average


@dataclass(frozen=True)
class Condition:
    """What is done to the projected landmarks. `noise`: pixels per axis."""

    noise: float
    outliers: float
    cameras: tuple[int, ...]


CONDITIONS = {
    "clean": Condition(0.0, 0.0, tuple(range(16))), "noisy": Condition(2.0, 0.2, tuple(range(16))),
    "one_view": Condition(1.0, 0.1, (FRONT_CAMERA,)),
}


@dataclass(frozen=True)
class Truth:
    """A performance of a demo head in the demo world."""

    expression: Float[Tensor, "F E"]
    head: HeadPose
    vertices: Float[Tensor, "F M 3"]  # the face, world
    landmarks: Float[Tensor, "F 66 3"]


@dataclass(frozen=True)
class Detected:
    """Detections of a condition, their true places, and which are outliers."""

    seen: Observations
    pixels: Float[Tensor, "F C 66 2"]
    outlier: Bool[Tensor, "F C 66"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--similarities", type=int, default=100)
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--silhouettes", nargs="*", default=[], metavar="PRESET", help="demo presets to draw, and to fit with and without mattes")
    parser.add_argument("--small", action="store_true", help="5 frames, one head, 2 similarities: whether it works at all")
    parser.add_argument("--output", type=Path, help="JSON file (default: standard output)")
    options = parser.parse_args()
    heads, frames, similarities = (["ict_1"], 5, 2) if options.small else (options.heads, options.frames, options.similarities)
    figures = measure(heads, frames, similarities)
    figures["silhouettes"] = {name: with_and_without_mattes(name) for name in options.silhouettes}
    text = json.dumps(figures, indent=1)
    if options.output:
        write_whole(options.output, text)
    else:
        print(text)


def measure(heads: list[str], frames: int, similarities: int) -> dict[str, object]:
    """All figures."""
    model, config = read_ict(), FitConfig()
    result: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(), "frames": frames}
    for name in heads:
        truth = perform(name, frames)
        result[name] = {key: compare(*timed_fit(model, detect(truth, condition, 0).seen, config), truth, detect(truth, condition, 0))
                        for key, condition in CONDITIONS.items()}
    recovered = [recovers(model, perform(heads[0], 4), config, seed) for seed in range(similarities)]
    result["similarities"] = {"tried": len(recovered), "recovered": sum(distance <= RECOVERED_UNITS for distance in recovered),
                              "worst_landmark_distance_units": round(max(recovered, default=0.0), 5)}
    return result


def with_and_without_mattes(preset: str, frames: int = 10, size: int = 256) -> dict[str, object]:
    """Distances of vertices from the truth, canonical units, with detections that are off by a pixel, 10 % anywhere."""
    look, cameras = dataclasses.asdict(PRESETS[preset]), rig(size)
    head, truth = DemoHead(**look, texture_size=2 * size), perform(look["identity"], frames)
    detected, config = detect(truth, Condition(1.0, 0.1, tuple(range(16))), 0), FitConfig()

    def mattes(chosen: list[int]) -> Mattes:
        fields = []
        for frame in chosen:
            pose = HeadPose(truth.head.pose[frame].float(), truth.head.scale[frame].float())
            vertices = pose.to_world(head.vertices(truth.expression[frame].float()))
            drawn = [head.draw(vertices, cameras.rows(slice(c, c + 1))).mask[0, 0] for c in range(16)]
            fields.append(torch.stack([distance_field((mask >= 0.5).to(torch.uint8).numpy()) for mask in drawn]))
        return Mattes(torch.stack(fields), torch.ones(len(chosen), 16, dtype=torch.bool))

    result = {}
    for key, read in (("without", None), ("with", mattes)):
        fit = fit_head(read_ict(), detected.seen, 1e6 * torch.arange(frames, dtype=torch.float64), config, read)
        vertices = torch.stack([fit.vertices(frame)[FACE_ROWS] for frame in range(frames)])
        far = (vertices - truth.vertices).norm(dim=-1) / truth.head.scale[:, None, 0]
        result[key] = spread_of(far) | {"mean": round(float(far.mean()), 5)}
    return result


def perform(name: str, frames: int) -> Truth:
    """Frames spread over all sequences, as in the demo subject."""
    head = DemoHead(name, "lps", "iris_brown", texture_size=16)
    moments = []
    for number, part in enumerate(np.array_split(np.arange(frames), len(SEQUENCES))):
        performance = Performance(head, SEQUENCES[number], seed=0)
        moments += [performance.at(position * FRAME_PERIOD_S) for position in range(len(part))]
    pose = HeadPose(torch.stack([moment.head.pose for moment in moments]).double(), torch.stack([moment.head.scale for moment in moments]).double())
    vertices = pose.to_world(torch.stack([head.vertices(moment.expression) for moment in moments]).double())
    return Truth(torch.stack([moment.expression for moment in moments]).double(), pose, vertices[:, FACE_ROWS], vertices[:, head.landmark_rows])


def detect(truth: Truth, condition: Condition, seed: int) -> Detected:
    """Projects and disturbs."""
    cameras, frames, random = rig(SIZE), len(truth.landmarks), torch.Generator().manual_seed(seed)
    rows = list(condition.cameras)
    camera = Camera(*(value[rows].double().expand(frames, *value[rows].shape).clone() for value in (cameras.world_to_camera, cameras.intrinsics)),
                    SIZE, SIZE)
    shape = (frames, len(rows), truth.landmarks.shape[1])
    projection = camera.intrinsics @ camera.world_to_camera
    true = pull(truth.landmarks, projection, torch.zeros(*shape, 2, dtype=torch.float64)).residuals
    pixels = true + condition.noise * torch.randn(true.shape, generator=random, dtype=torch.float64)
    outlier = torch.rand(shape, generator=random) < condition.outliers
    pixels[outlier] = SIZE * torch.rand(int(outlier.sum()), 2, generator=random, dtype=torch.float64)
    return Detected(Observations(camera, pixels, torch.ones(shape, dtype=torch.float64)), true, outlier)


def timed_fit(model: FaceModel, seen: Observations, config: FitConfig) -> tuple[HeadFit, float]:
    """A fit and its seconds. Frames are no neighbours in time, as in the demo subject."""
    began = time.perf_counter()
    fit = fit_head(model, seen, 1e6 * torch.arange(len(seen.scores), dtype=torch.float64), config)
    return fit, time.perf_counter() - began


def compare(fit: HeadFit, seconds: float, truth: Truth, detected: Detected) -> dict[str, object]:
    """Errors against the truth."""
    landmarks = landmarks_in_world(fit)
    to_truth = pull(landmarks, detected.seen.projection, detected.pixels).residuals.norm(dim=-1)
    to_detected = pull(landmarks, detected.seen.projection, detected.seen.pixels).residuals.norm(dim=-1)
    size = float(truth.head.scale[0])
    count = int(fit.model.written or len(fit.model.mean))
    vertices = torch.stack([fit.vertices(frame)[:count] for frame in range(len(truth.landmarks))])
    far = (vertices - truth.vertices).norm(dim=-1) / size
    rigid = torch.cat([_rigid(a, b) for a, b in zip(vertices.split(1), truth.vertices.split(1), strict=True)]) / size
    return {
        "seconds": round(seconds, 2), "noise_found_px": round(fit.noise, 2), "scale": round(float(fit.head.scale[0]), 5),
        "px_to_truth": spread_of(to_truth),
        "px_to_detected_inliers": spread_of(to_detected[~detected.outlier]), "px_to_detected": spread_of(to_detected),
        "as_it_is": pose_errors(fit.head, truth), "aligned": pose_errors(aligned(fit, truth), truth),
        "vertices_units": spread_of(far), "vertices_units_aligned_per_frame": spread_of(rigid),
        "expression_mean_error": round(float((fit.expression - truth.expression).abs().mean()), 4),
    }


def aligned(fit: HeadFit, truth: Truth) -> HeadPose:
    """The poses of the fit if its canonical frame were, up to one similarity for all frames, that of the truth."""
    face = fit.model.landmarks(fit.model.vertices(fit.identity.to(fit.model.mean), torch.zeros(fit.expression.shape[1]))).double()
    in_truth = truth.head.to_canonical(fit.head.to_world(face.expand(len(truth.landmarks), -1, -1)))
    scale, rotation, translation = similarity(face, in_truth.mean(dim=0, keepdim=True), torch.ones(1, len(face), dtype=torch.float64))
    turned = fit.head.rotation() @ rotation[0].T
    scales = fit.head.scale / scale
    place = fit.head.pose[:, 3:] - (scales * (turned @ translation[0]))
    return HeadPose(torch.cat([roma.rotmat_to_rotvec(turned), place], dim=1), scales)


def pose_errors(head: HeadPose, truth: Truth) -> dict[str, object]:
    """Degrees, and translation in percent of the size of a head (two canonical units)."""
    degrees = torch.rad2deg(roma.rotmat_geodesic_distance(head.rotation(), truth.head.rotation()))
    percent = 100.0 * (head.pose[:, 3:] - truth.head.pose[:, 3:]).norm(dim=1) / (2.0 * truth.head.scale[:, 0])
    return {"rotation_deg": spread_of(degrees), "translation_percent": spread_of(percent)}


def recovers(model: FaceModel, truth: Truth, config: FitConfig, seed: int) -> float:
    """Mean distance of landmarks from the truth, canonical units, when the noisy cameras stand in a world of another unit, rotation and origin."""
    random = np.random.default_rng(seed)
    unit, origin = float(10.0 ** random.uniform(-2, 2)), torch.from_numpy(random.normal(size=3))
    turn = _rotation(random)
    seen = detect(truth, CONDITIONS["noisy"], seed).seen
    rotation, translation = seen.camera.world_to_camera.split([3, 1], dim=-1)
    # x' = unit * turn x + origin, so that a camera sees x at unit times its depth.
    moved = torch.cat([rotation @ turn.T, unit * translation - rotation @ turn.T @ origin[:, None]], dim=-1)
    camera = Camera(moved, seen.camera.intrinsics, SIZE, SIZE)
    fit, _ = timed_fit(model, Observations(camera, seen.pixels, seen.scores), config)
    wanted = unit * truth.landmarks @ turn.T + origin
    return float((landmarks_in_world(fit) - wanted).norm(dim=-1).mean() / (unit * truth.head.scale[0, 0]))


def spread_of(values: Tensor) -> dict[str, float]:
    """Median, 95 % and largest."""
    ordered = values.flatten().sort().values
    return {name: round(float(ordered[int(part * (len(ordered) - 1))]), 4) for name, part in (("median", 0.5), ("high", 0.95), ("max", 1.0))}


def _rigid(vertices: Float[Tensor, "1 M 3"], target: Float[Tensor, "1 M 3"]) -> Float[Tensor, "1 M"]:
    """Distances after the best rigid motion and scale of this frame."""
    scale, rotation, translation = similarity(vertices[0], target, torch.ones_like(target[..., 0]))
    return (scale * vertices @ rotation.transpose(1, 2) + translation - target).norm(dim=-1)


def _rotation(random: np.random.Generator) -> Float[Tensor, "3 3"]:
    """Uniformly random."""
    quaternion = torch.from_numpy(random.normal(size=4))
    return roma.unitquat_to_rotmat(quaternion / quaternion.norm())


if __name__ == "__main__":
    run(main)
