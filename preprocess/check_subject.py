"""Checks a subject folder before anything is trained on it (README, 'subject folder').

    python -m preprocess.check_subject SUBJECT                              all its cameras, size of its first image
    python -m preprocess.check_subject --config FILE [key=value ...]        as a stage-1 YAML file uses it

Prints what is there, what is derived, how large the head is and how well mattes, cameras and 3D landmarks agree per camera; where
landmarks/ holds 2D detections, compares them with the projected 3D landmarks. Draws four views as one picture, outside the subject
folder. Exit code 0 when nothing is wrong, else 2 and the list of problems.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.capture_check import (
    CHECKED_FRAMES,
    PictureMeasure,
    face_bounds,
    measure_picture,
    picture_problems,
    pose_jumps,
)
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture
from lib.datasets.images import read_image, write_image
from lib.datasets.inventory import Inventory, take_inventory
from lib.datasets.layout import JAW_ROWS, LANDMARK_COUNT, CaptureFolder
from lib.datasets.sampler import spread
from lib.errors import InputError
from lib.geometry.tetmesh import BoundingBox
from lib.training.runtime import is_terminal, run
from preprocess.check_sheet import draw_sheet

LISTED = 10  # problems of one kind that are named; the rest is counted
SAMPLED_FRAMES = 4  # seen by every camera, unless --full
LEAST_ON_HEAD = 0.8  # share of landmarks inside the matte, mean of a camera: the jaw line lies on the outline, so a few miss
LARGEST_ERROR = 0.02  # of the image size: median distance of projected from detected landmarks of a camera
LARGEST_JUMP = 1.0  # canonical units, half a head


@dataclass(frozen=True)
class Reprojection:
    """Detected minus projected landmarks of one camera, pixels of the original resolution; medians over `pictures`."""

    pictures: int
    error: float
    shift: tuple[float, float]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="SUBJECT | key=value", help="a subject folder; with --config, keys to replace")
    parser.add_argument("--config", type=Path, metavar="FILE", help="stage-1 YAML file: its dataset section and meshheadmodule.model_bbox are used")
    parser.add_argument("--full", action="store_true", help=f"decode every picture instead of {SAMPLED_FRAMES} frames of every camera")
    parser.add_argument("--output", type=Path, help="picture to write (default: results/check/<subject>/landmarks.png)")
    options = parser.parse_intermixed_args()
    if options.config is not None:
        config = read_config(Arguments(options.config, tuple(options.words)), MeshHeadTrainConfig)
        dataset, model_bbox = config.dataset, config.meshheadmodule.model_bbox
    elif len(options.words) == 1:
        dataset, model_bbox = whole_folder(Path(options.words[0])), MeshHeadConfig().model_bbox
    else:
        raise InputError(f"command line: expected one subject folder or --config FILE, found {len(options.words)} folders (--help says more)")
    output = options.output or Path("results") / "check" / dataset.dataroot.resolve().name / "landmarks.png"
    if output.suffix not in (".png", ".jpg"):
        raise InputError(f"--output: {output}: expected a .png or .jpg file")
    if output.resolve().is_relative_to(dataset.dataroot.resolve()):
        raise InputError(f"--output: {output} lies in the subject folder, into which nothing is written; choose another place")
    problems = check(dataset, model_bbox, options.full, output)
    if problems:
        raise InputError("\n  ".join([f"{dataset.dataroot}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *problems]))
    print("nothing is wrong" if options.full else "nothing is wrong in what was looked at (--full decodes every picture)")


def whole_folder(root: Path) -> HeadCaptureConfig:
    """A configuration for all cameras of a folder, at the size of its first image. Raises InputError where there is none."""
    folder = CaptureFolder(root)
    for frame in folder.frames():
        files = folder.files(frame)
        for camera in sorted(files.pictured_cameras()):
            name = files.image_name(camera)
            if name is not None:
                size = read_image(folder.images_path(frame) / name).shape[1]
                cameras = set().union(*(folder.files(other).pictured_cameras() for other in folder.frames()))
                return HeadCaptureConfig(dataroot=root, camera_ids=tuple(sorted(cameras)), original_resolution=size, resolution=min(size, 512))
    raise InputError(f"{root / 'images'}: no frame has an image_<camera>.jpg or .png")


def check(config: HeadCaptureConfig, model_bbox: BoundingBox, full: bool, output: Path) -> list[str]:
    """Prints what is found and returns what is wrong, one line each. Raises InputError where nothing can be looked at."""
    config = config.model_copy(update={"cache_gb": 0.0})
    inventory = take_inventory(CaptureFolder(config.dataroot), config.camera_ids, config.resolution)
    print(f"{config.dataroot}: {len(inventory.files)} frames x {len(inventory.camera_ids)} cameras, "
          f"original_resolution {config.original_resolution}, checked at {config.resolution}")
    print(f"cameras: {', '.join(inventory.camera_ids)}")
    problems = _some([f"{missing}; {missing.way_out}" for missing in inventory.missing()], "missing files")
    problems += _some(_unreadable(inventory), "files that cannot be used")
    if problems:
        print("pictures and landmarks are compared once these files are there")
        return problems

    capture = HeadCapture(config)
    for note in capture.notes:
        print(f"note: {note}")
    bounds = face_bounds(capture, capture.frames if full else spread(capture.frames, CHECKED_FRAMES))
    for name, low, high, box in zip("xyz", bounds.low.amin(dim=0).tolist(), bounds.high.amax(dim=0).tolist(), model_bbox, strict=True):
        out = ", which cuts the face" if name in bounds.sticking_out(model_bbox) else ""
        print(f"face, {name}: {low:.2f} to {high:.2f} canonical units (model_bbox {box[0]:g} to {box[1]:g}{out})")
    problems += bounds.problems(capture, model_bbox)
    _print_jumps(capture)

    frames = capture.frames if full else spread(capture.frames, SAMPLED_FRAMES)
    measures, unreadable = look_at([Picture(frame, camera) for camera in capture.camera_ids for frame in frames], capture)
    problems += _some(unreadable, "pictures that cannot be used")
    reprojections, detection_problems = compare_detections(capture)
    problems += _some(detection_problems, "detections that cannot be used")
    for camera in capture.camera_ids:
        seen = [measure for measure in measures if measure.picture.camera == camera]
        print(_camera_line(camera, seen, reprojections.get(camera)))
    problems += _matte_problems(capture, measures) + _reprojection_problems(capture, reprojections)
    if measures:
        problems += picture_problems(capture, measures)
        frame = measures[len(measures) // 2].picture.frame
        decoded = {measure.picture for measure in measures}
        cameras = [camera for camera in capture.camera_ids if Picture(frame, camera) in decoded]
        write_image(output, draw_sheet(capture, model_bbox, frame, cameras))
        print(f"wrote {output}")
    return problems


def look_at(pictures: list[Picture], capture: HeadCapture) -> tuple[tuple[PictureMeasure, ...], list[str]]:
    """Decodes pictures; their measures, and a line for each that cannot be decoded or has no head."""
    measures, problems = [], []
    for picture in tqdm(pictures, desc="pictures", unit="picture", mininterval=0.5 if is_terminal() else 15.0):
        try:
            item = capture.item(picture.frame, [picture.camera])
        except InputError as error:
            problems.append(str(error))
        else:
            measures.append(measure_picture(capture, picture, item.masks[0, 0] >= 0.5))
    return tuple(measures), problems


def compare_detections(capture: HeadCapture) -> tuple[dict[str, Reprojection], list[str]]:
    """Per camera how far 2D detections lie from the projected 3D landmarks; and a line for each file that cannot be read."""
    found: dict[Picture, Float[Tensor, "66 2"]] = {}
    problems = []
    for picture in (Picture(frame, camera) for frame in capture.frames for camera in capture.camera_ids):
        try:
            detected = capture.folder.read_detections(picture.frame, picture.camera)
        except InputError as error:
            problems.append(str(error))
        else:
            if detected is not None:
                found[picture] = detected[:, :2]
    if not found:
        print("no 2D landmarks in landmarks/: cameras are judged by mattes alone")
        return {}, problems
    original, reach = capture.config.original_resolution, max(float(detected.max()) for detected in found.values())
    size = capture.folder.detection_size(original, reach)
    print(f"2D landmarks of {len(found)} pictures reach to {reach:.0f} px: taken as detected in pictures of {size} x {size}")
    result = {}
    for camera in capture.camera_ids:
        differences = [
            detected * (original / size) - project_landmarks(capture, picture) for picture, detected in found.items() if picture.camera == camera
        ]
        if differences:
            # From the side a detector puts the jaw line on the visible outline, which is no point of the model.
            inner = torch.stack(differences)[:, JAW_ROWS.stop:].flatten(0, 1)
            shift = inner.median(dim=0).values.tolist()
            result[camera] = Reprojection(len(differences), float(inner.norm(dim=1).median()), (shift[0], shift[1]))
    return result, problems


def project_landmarks(capture: HeadCapture, picture: Picture) -> Float[Tensor, "66 2"]:
    """The 3D landmarks in pixels of the original resolution."""
    original = capture.config.original_resolution
    camera = capture.camera(picture.frame, [picture.camera]).resized(original, original)
    return camera.project(capture.control_points[picture.frame][None, :LANDMARK_COUNT])[0]


def _unreadable(inventory: Inventory) -> list[str]:
    """What the readers of parameters, points and cameras refuse. Missing files are told elsewhere."""
    folder = inventory.folder
    readers: list[Callable[[], object]] = []
    for frame, files in inventory.files.items():
        if folder.params_path(frame).name in files.params:
            readers.append(lambda frame=frame: folder.read_params(frame))
        if {folder.landmarks_path(frame).name, folder.vertices_path(frame).name} <= files.params:
            readers.append(lambda frame=frame: folder.read_control_points(frame))
        readers += [lambda frame=frame, camera=camera: folder.read_camera(frame, camera)
                    for camera in inventory.camera_ids if files.has_camera(camera)]
    problems = []
    for read in readers:
        try:
            read()
        except InputError as error:
            problems.append(str(error))
    return problems


def _print_jumps(capture: HeadCapture) -> None:
    jumps = sorted(pose_jumps(capture), key=lambda jump: -jump.distance)
    if not jumps:
        return
    print(f"head movement between neighbouring frames: {mean(jump.distance for jump in jumps):.2f} canonical units on average, "
          f"largest {jumps[0].distance:.2f} ({jumps[0].before} to {jumps[0].after})")
    far = [jump for jump in jumps if jump.distance > LARGEST_JUMP]
    # No problem by itself: without frames.json a cut between sequences looks the same.
    for line in _some([f"look at frames {jump.before} and {jump.after}: the head jumps by {jump.distance:.2f}" for jump in far], "jumps"):
        print(line)


def _camera_line(camera: str, seen: list[PictureMeasure], reprojection: Reprojection | None) -> str:
    parts = [f"camera {camera}:"]
    if seen:
        coverage = [measure.coverage for measure in seen]
        parts.append(f"matte covers {mean(coverage):4.0%} ({min(coverage):.0%} to {max(coverage):.0%}), "
                     f"landmarks in the picture {mean(measure.inside_picture for measure in seen):4.0%}, "
                     f"in the matte {mean(measure.inside_matte for measure in seen):4.0%}")
    else:
        parts.append("no picture could be decoded")
    if reprojection is not None:
        parts.append(f"| {reprojection.error:.1f} px from {reprojection.pictures} detections")
    return " ".join(parts)


def _matte_problems(capture: HeadCapture, measures: tuple[PictureMeasure, ...]) -> list[str]:
    """One line naming the cameras whose landmarks miss the head."""
    shares: dict[str, list[float]] = {}
    for measure in measures:
        shares.setdefault(measure.picture.camera, []).append(measure.inside_matte)
    off = [f"{camera} ({mean(values):.0%})" for camera, values in shares.items() if mean(values) < LEAST_ON_HEAD]
    if not off:
        return []
    return [f"{capture.folder.root / 'cameras'}: in {len(off)} of {len(shares)} cameras less than {LEAST_ON_HEAD:.0%} of the landmarks fall on the "
            f"matte: {', '.join(off)}. Are camera, matte and 3DMM fit of the same frame, and the intrinsics of the same crop?"]


def _reprojection_problems(capture: HeadCapture, reprojections: dict[str, Reprojection]) -> list[str]:
    """One line naming the cameras whose landmarks lie far from the detected ones."""
    limit = LARGEST_ERROR * capture.config.original_resolution
    off = [f"{camera} by {one.error:.1f} px (detected - projected: {one.shift[0]:+.1f}, {one.shift[1]:+.1f})"
           for camera, one in reprojections.items() if one.error > limit]
    if not off:
        return []
    return [f"{capture.folder.root / 'cameras'}: in {len(off)} of {len(reprojections)} cameras projected 3D landmarks miss the detected ones by more "
            f"than {limit:.1f} px (median): {'; '.join(off)}. The same shift everywhere is a wrong principal point ('intrinsic' of another crop), "
            "different ones a wrong 'extrinsic' or 3DMM fit"]


def _some(lines: Iterable[str], what: str) -> list[str]:
    """The first few, and how many there are."""
    lines = list(lines)
    return lines[:LISTED] + ([f"... {len(lines)} {what} in all"] if len(lines) > LISTED else [])


if __name__ == "__main__":
    run(main)
