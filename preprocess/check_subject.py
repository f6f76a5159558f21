"""Checks a subject folder before anything is trained on it (README, 'subject folder').

    python -m preprocess.check_subject SUBJECT                              all its cameras, size of its first image
    python -m preprocess.check_subject --config FILE [key=value ...]        as a stage-1 YAML file uses it

Says which files are missing and what makes them, which cannot be used or are there twice; how large the head is and which model_bbox fits;
frames whose 3DMM does not belong to their pictures or to the other frames; cameras that do not fit their pictures and under which mistake they
would (axes, camera->world, units, principal point, exchanged with another), by 2D detections of landmarks/ where there are any, else by the
pictures alone; cameras whose colours differ. Draws what is wrong, and writes all of it as JSON; nothing into the subject folder.
Exit code 0 when nothing is wrong, else 2 and the list of problems.
"""

import argparse
from pathlib import Path
from statistics import mean

from jaxtyping import Float
from torch import Tensor

from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.capture_check import CHECKED_FRAMES, FULL_MATTE, LEAST_ON_HEAD, chosen_box, face_bounds, measure_picture, picture_problems
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig, Picture
from lib.datasets.images import read_image, write_image
from lib.datasets.inventory import take_inventory
from lib.datasets.layout import LOWRES_SIZE, CaptureFolder
from lib.datasets.sampler import spread
from lib.errors import InputError
from lib.geometry.tetmesh import BoundingBox
from lib.training.runtime import run
from preprocess.check_cameras import camera_findings
from preprocess.check_colors import color_findings
from preprocess.check_detections import read_detections
from preprocess.check_evidence import Sight, frontal, see
from preprocess.check_files import duplicate_findings, missing_findings, picture_findings, unreadable_findings
from preprocess.check_findings import Finding, Mark, Number, numbers, told, write_report
from preprocess.check_frames import frame_findings
from preprocess.check_sheet import draw_sheet
from preprocess.check_tracking import tracking_findings

SAMPLED_FRAMES = 6  # seen by every camera
FRAME_CAMERAS, FRAMES_SEEN = 3, 400  # the most frontal cameras see that many frames, unless --full


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="SUBJECT | key=value", help="a subject folder; with --config, keys to replace")
    parser.add_argument("--config", type=Path, metavar="FILE", help="stage-1 YAML file: its dataset section and meshheadmodule.model_bbox are used")
    parser.add_argument("--full", action="store_true", help="decode every picture, of full size too, instead of some of every camera")
    parser.add_argument("--output", type=Path, help="picture to write (default: results/check/<subject>/landmarks.png)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="report to write (default: report.json beside the picture)")
    options = parser.parse_intermixed_args()
    if options.config is not None:
        folders = [word for word in options.words if "=" not in word]
        if folders:
            raise InputError(f"command line: '{folders[0]}': with --config the YAML names the subject; write dataset.dataroot={folders[0]}, or leave "
                             "--config out")
        config = read_config(Arguments(options.config, tuple(options.words)), MeshHeadTrainConfig)
        dataset, model_bbox = config.dataset, config.meshheadmodule.model_bbox
    elif len(options.words) == 1:
        dataset, model_bbox = whole_folder(Path(options.words[0])), MeshHeadConfig().model_bbox
    else:
        raise InputError(f"command line: expected one subject folder or --config FILE, found {len(options.words)} folders (--help says more)")
    output = options.output or Path("results") / "check" / dataset.dataroot.resolve().name / "landmarks.png"
    report = options.json or output.with_name("report.json")
    if output.suffix not in (".png", ".jpg"):
        raise InputError(f"--output: {output}: expected a .png or .jpg file")
    for option, path in (("--output", output), ("--json", report)):
        if path.resolve().is_relative_to(dataset.dataroot.resolve()):
            raise InputError(f"{option}: {path} lies in the subject folder, into which nothing is written; choose another place")
    problems = check(dataset, model_bbox, options.full, output, report)
    if problems:
        raise InputError("\n  ".join([f"{dataset.dataroot}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *problems]))
    print("nothing is wrong" if options.full else "nothing is wrong in what was looked at (--full decodes every picture)")


def whole_folder(root: Path) -> HeadCaptureConfig:
    """A configuration for all cameras of a folder, at the size of its first image. Raises InputError where there is none that can be read."""
    if not root.is_dir():
        raise InputError(f"{root}: expected a subject folder, found {'a file' if root.exists() else 'nothing'} there")
    folder = CaptureFolder(root)
    files = {frame: folder.files(frame) for frame in folder.frames()}
    cameras = tuple(sorted(set().union(*(frame.pictured_cameras() for frame in files.values()))))
    refused: list[InputError] = []
    for frame, camera in ((frame, camera) for frame in files for camera in cameras):
        name = files[frame].image_name(camera)
        if name is not None:
            try:
                size = read_image(folder.images_path(frame) / name).shape[1]
            except InputError as error:  # one bad file is told with all others
                refused.append(error)
            else:
                return HeadCaptureConfig(dataroot=root, camera_ids=cameras, original_resolution=size, resolution=min(size, 512))
    raise refused[0] if refused else InputError(f"{root / 'images'}: no frame has an image_<camera>.jpg or .png")


def check(config: HeadCaptureConfig, model_bbox: BoundingBox, full: bool, output: Path, report: Path | None = None) -> list[str]:
    """Prints what is found and returns what is wrong, one line each. Writes a picture (`output`) and a JSON report (default: beside it).

    Raises InputError where nothing can be looked at.
    """
    report = report or output.with_name("report.json")
    try:
        findings, measured, sheet = _look(config, model_bbox, full)
    except InputError as error:
        write_report(report, config.dataroot, [Finding("unusable", str(error))])
        raise
    if sheet is not None:  # what the disk refuses here says nothing of the subject
        write_image(output, sheet)
        print(f"wrote {output}")
    write_report(report, config.dataroot, findings, measured)
    print(f"wrote {report}")
    for line in told(finding for finding in findings if not finding.is_problem):
        print(line)
    return told(finding for finding in findings if finding.is_problem)


def _look(
    config: HeadCaptureConfig, model_bbox: BoundingBox, full: bool,
) -> tuple[list[Finding], tuple[Number, ...], Float[Tensor, "3 H W"] | None]:
    """What is found and measured, and the sheet, where there is anything to show."""
    inventory = take_inventory(CaptureFolder(config.dataroot), config.camera_ids, config.resolution)
    print(f"{config.dataroot}: {len(inventory.files)} frames x {len(inventory.camera_ids)} cameras, "
          f"original_resolution {config.original_resolution}, resolution {config.resolution}")
    print(f"cameras: {', '.join(inventory.camera_ids)}")
    pictures = picture_findings(inventory, config.original_resolution, full)
    findings = [*missing_findings(inventory), *unreadable_findings(inventory), *pictures.sizes]
    blocked = bool(findings)
    findings += pictures.broken
    if blocked:
        print("pictures and landmarks are compared once these files are there and right")
        return findings, (), None

    for note in HeadCapture(config).notes:
        print(f"note: {note}")
    # Measures are made on small pictures: the lowres files where there are any.
    capture = HeadCapture(config.model_copy(update={"cache_gb": 0.0, "resolution": min(config.resolution, LOWRES_SIZE)}))
    findings += duplicate_findings(capture, inventory)
    found, measured = _bounds(capture, model_bbox, full)
    findings += found + tracking_findings(capture)

    sight, undecoded = see(capture, spread(capture.frames, SAMPLED_FRAMES), capture.camera_ids)
    detections, unreadable = read_detections(capture)
    if detections is None:
        print("no 2D landmarks in landmarks/: cameras and frames are judged by the pictures alone")
    findings += [Finding("unreadable_detection", line) for line in unreadable]
    if detections is not None and any(finding.kind == "landmark_order" for finding in findings):
        print("2D landmarks are compared once the rows of lmk_3d.npy are right")
        detections = None
    wrong_cameras, marks = camera_findings(capture, sight, detections)
    findings += wrong_cameras
    explained = {camera for finding in wrong_cameras for camera in finding.cameras}
    seen = {camera for column, camera in enumerate(sight.cameras) if bool(sight.decoded[:, column].any())}
    fitting = [camera for camera in capture.camera_ids if camera in seen and camera not in explained]

    if not fitting:
        print("frames and colours are compared once there are cameras that fit")
    else:
        chosen = frontal(capture, capture.frames[0], fitting)[:FRAME_CAMERAS]
        frames, undecoded_frames = see(capture, capture.frames if full else spread(capture.frames, FRAMES_SEEN), chosen)
        wrong_frames, frame_marks = frame_findings(capture, frames, detections)
        findings += wrong_frames + color_findings(capture, sight.of_cameras(fitting))
        marks, undecoded = marks + frame_marks, undecoded + undecoded_frames
    known = {file for finding in findings for file in finding.files}
    findings += [Finding("unreadable_picture", line, frames=(picture.frame,), cameras=(picture.camera,)) for picture, line in dict(undecoded).items()
                 if not any(line.startswith(file) for file in known)]
    findings += _matte_findings(capture, sight, explained)
    marks += [Mark(Picture(finding.frames[0], finding.cameras[0]), finding.kind.replace("_", " "))
              for finding in findings if finding.kind in ("blank_matte", "unreadable_picture")]
    decoded = {Picture(frame, camera) for row, frame in enumerate(sight.frames) for column, camera in enumerate(sight.cameras)
               if sight.decoded[row, column]}
    sheet = None
    if decoded:
        frame = max(sight.frames, key=lambda frame: sum(picture.frame == frame for picture in decoded))
        cameras = [camera for camera in capture.camera_ids if Picture(frame, camera) in decoded]
        sheet = draw_sheet(capture, model_bbox, frame, cameras, marks)
    return findings, measured, sheet


def _bounds(capture: HeadCapture, model_bbox: BoundingBox, full: bool) -> tuple[list[Finding], tuple[Number, ...]]:
    bounds = face_bounds(capture, capture.frames if full else spread(capture.frames, CHECKED_FRAMES))
    box, measured = chosen_box(bounds), []
    lowest, highest = bounds.low.amin(dim=0).tolist(), bounds.high.amax(dim=0).tolist()
    for name, low, high, given, fitting in zip("xyz", lowest, highest, model_bbox, box, strict=True):
        out = ", which cuts the face" if name in bounds.sticking_out(model_bbox) else ""
        print(f"face, {name}: {low:.2f} to {high:.2f} canonical units (model_bbox {given[0]:g} to {given[1]:g}{out})")
        measured += numbers(**{f"face_{name}_low": low, f"face_{name}_high": high, f"box_{name}_low": fitting[0], f"box_{name}_high": fitting[1]})
    print(f"model_bbox that fits this subject: {[list(side) for side in box]} (the face in all frames and a margin for skull, hair and neck)")
    return [Finding("face_outside_box", line) for line in bounds.problems(capture, model_bbox)], tuple(measured)


def _matte_findings(capture: HeadCapture, sight: Sight, explained: set[str]) -> list[Finding]:
    """Prints a line per camera; mattes and cameras that do not fit, where nothing else explains it."""
    measures = [measure_picture(capture, Picture(frame, camera), sight.matte[row, column])
                for column, camera in enumerate(sight.cameras) for row, frame in enumerate(sight.frames) if sight.decoded[row, column]]
    off = {}
    for camera in sight.cameras:
        seen = [measure for measure in measures if measure.picture.camera == camera]
        if not seen:
            print(f"camera {camera}: no picture could be decoded")
            continue
        coverage, on_head = [measure.coverage for measure in seen], mean(measure.inside_matte for measure in seen)
        print(f"camera {camera}: matte covers {mean(coverage):4.0%} ({min(coverage):.0%} to {max(coverage):.0%}), "
              f"landmarks in the picture {mean(measure.inside_picture for measure in seen):4.0%}, in the matte {on_head:4.0%}")
        if on_head < LEAST_ON_HEAD and camera not in explained:
            off[camera] = on_head
    unexplained = tuple(measure for measure in measures if measure.picture.camera not in explained and measure.coverage <= FULL_MATTE)
    findings = [Finding("landmarks_outside", line) for line in picture_problems(capture, unexplained)] if unexplained else []
    if off and not findings:
        shares = ", ".join(f"{camera} ({share:.0%})" for camera, share in off.items())
        findings.append(Finding("landmarks_off_matte", f"{capture.folder.root / 'cameras'}: in {len(off)} of {len(sight.cameras)} cameras less than "
                        f"{LEAST_ON_HEAD:.0%} of the landmarks fall on the matte: {shares}. "
                        "Are camera, matte and 3DMM fit of the same frame, and the intrinsics of the same crop?", cameras=tuple(off)))
    return findings


if __name__ == "__main__":
    run(main)
