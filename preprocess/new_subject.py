"""Writes the three YAML files of a subject (stage 1, stage 2, reenactment) from what is in its folder; docs/own_data.md.

    python -m preprocess.new_subject SUBJECT [--name NAME] [--preset published|demo] [--output config] [--driver FOLDER]

Looks at the subject first, as check_subject does, and refuses one in which something is wrong (--force writes all the same). Measures
model_bbox, chooses what is held out, and says why. Settings are those of config/*_N031.yaml (published) or config/demo_*.yaml (demo: small, for
two CPU cores). Every key stands in the files with its documentation; keys that are left out, with what then holds, behind a '#'.
A file that somebody has edited is not overwritten (--overwrite does).
"""

import argparse
import re
from pathlib import Path

from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.capture_check import face_bounds
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.datasets.images import read_image
from lib.datasets.layout import CaptureFolder, read_params_file
from lib.errors import InputError
from lib.files import write_whole
from lib.training.runtime import run
from preprocess.check_subject import check
from preprocess.subject_files import PRESETS, STAGES, Plan, gaussian_head_file, mesh_head_file, reenactment_file
from preprocess.subject_measures import measure
from preprocess.subject_yaml import is_edited

CHECKED_AT = 512  # pixels: pictures are looked at no larger


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", type=Path, metavar="SUBJECT", help="a prepared subject folder, as it is to stand in dataset.dataroot")
    parser.add_argument("--name", help="of the runs and files (default: the folder's)")
    parser.add_argument("--preset", choices=list(PRESETS), default="published", help="settings to start from (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("config"), help="folder for the three files (default: %(default)s)")
    parser.add_argument("--driver", type=Path, help="folder with params/<frame>/params.npz to move it (default: SUBJECT/driver, else SUBJECT)")
    parser.add_argument("--force", action="store_true", help="write the files although something is wrong with the subject")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were edited")
    options = parser.parse_args()
    name = options.name or options.subject.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"--name: '{name}': expected letters, digits, '_', '-' and '.'; it becomes part of file names")
    paths = {stage: options.output / f"{stage}_{name}.yaml" for stage in STAGES}
    edited = [path for path in paths.values() if path.exists() and is_edited(path)]
    if edited and not options.overwrite:
        raise InputError(f"{edited[0]}: exists and is not as new_subject left it ({len(edited)} of {len(paths)} files); choose another --name or "
                         "--output, or --overwrite")
    plan = look_at(options.subject, name, options.preset, options.driver, options.force)
    texts = {"train_meshhead": mesh_head_file(plan), "train_gaussianhead": gaussian_head_file(plan), "reenactment": reenactment_file(plan)}
    for stage, text in texts.items():
        write_whole(paths[stage], text)
        read_config(Arguments(paths[stage], ()), STAGES[stage])
        print(f"wrote {paths[stage]}")
    print("\n".join(_next(paths)))


def look_at(subject: Path, name: str, preset: str, driver: Path | None, force: bool) -> Plan:
    """Checks and measures. Raises InputError when something is wrong, unless `force`; always when nothing can be measured."""
    dataset, published_box = found_dataset(subject), MeshHeadConfig().model_bbox
    sheet = Path("results") / "check" / subject.resolve().name / "landmarks.png"
    try:
        capture = HeadCapture(dataset)
        measures = measure(capture)
    except InputError as error:
        problems = check(dataset, published_box, False, sheet) or [str(error)]
        raise InputError("\n  ".join([f"{subject}: cannot be used; no file was written:", *problems])) from error
    problems = [*check(dataset, measures.model_bbox, False, sheet), *measures.problems]
    # The measured box fits by itself; the published one tells whether the head has the size that thresholds and the first sphere assume.
    problems += face_bounds(capture, capture.frames).problems(capture, published_box)
    if problems and not force:
        raise InputError("\n  ".join([f"{subject}: something is wrong; no file was written (--force writes them all the same):", *problems]))
    for problem in problems:
        print(f"ignored (--force): {problem}")
    for what, choice in (("camera", measures.held_out_camera), ("sequence", measures.held_out_sequence)):
        print(f"held-out {what}: {f'{choice.name}, ' if choice.name else ''}{choice.reason}")
    if driver is None:
        driver = subject / "driver" if (subject / "driver" / "params").is_dir() else subject
    _check_driver(driver, capture)
    return Plan(name, preset, capture, measures, driver)


def found_dataset(root: Path) -> HeadCaptureConfig:
    """All cameras of the folder, and the size of its first full picture. Raises InputError where there is none."""
    folder = CaptureFolder(root)
    files = {frame: folder.files(frame) for frame in folder.frames()}
    cameras = sorted(set().union(*(one.pictured_cameras() for one in files.values())))
    full = next((folder.images_path(frame) / name for frame, one in files.items() for camera in cameras if (name := one.image_name(camera))), None)
    if full is None:
        raise InputError(f"{root / 'images'}: no frame has an image_<camera>.jpg or .png")
    size = read_image(full).shape[2]
    return HeadCaptureConfig(dataroot=root, camera_ids=tuple(cameras), original_resolution=size, resolution=min(size, CHECKED_AT), cache_gb=0.0)


def _check_driver(driver: Path, capture: HeadCapture) -> None:
    first = next(iter(sorted(driver.glob("params/*/params.npz"))), None)
    if first is None:
        raise InputError(f"--driver: {driver}: expected params/<frame>/params.npz, found none")
    count = len(read_params_file(first).expression)
    if count != capture.expression_count:
        raise InputError(f"{first}: the driver has {count} expression coefficients, {capture.folder.root} has {capture.expression_count}; "
                         "give --driver parameters of the same 3DMM")


def _next(paths: dict[str, Path]) -> list[str]:
    mesh, gaussian, reenactment = (paths[stage] for stage in STAGES)
    weights = read_config(Arguments(gaussian, ()), STAGES["train_gaussianhead"]).loss
    lpips = [] if weights.lpips == 0 or (weights.lpips_weights / "vgg16.pth").exists() else [
        "  python -m preprocess.lpips_weights                    # or loss.lpips=0 below"]
    return ["look at the files, then:", f"  python train_meshhead.py --config {mesh}", *lpips, f"  python train_gaussianhead.py --config {gaussian}",
            f"  python evaluate.py --config {gaussian}", f"  python reenactment.py --config {reenactment}"]


if __name__ == "__main__":
    run(main)
