"""Finds the 68 landmarks of the face in every picture of a subject, or takes over those that somebody has already (docs/own_data.md, 'Landmarks').

    python -m preprocess.landmarks SUBJECT                                          what is there, else what is installed
    python -m preprocess.landmarks SUBJECT --from FOLDER                            files of the published layout, or VHAP's landmark2d
    python -m preprocess.landmarks SUBJECT --detector face_alignment                pip install face-alignment
    python -m preprocess.landmarks SUBJECT --detector mediapipe --python mediapipe_env/bin/python

MediaPipe pins other versions of what is used here, so it gets an environment of its own:
    python3 -m venv mediapipe_env && mediapipe_env/bin/pip install mediapipe==0.10.21

Writes <subject>/landmarks/<frame>/lmk_<camera>.npy, (68,3) x, y in pixels and score in [0,1], all zeros where no face was found, and
landmarks/detector.json, which says what found them in pictures of which size. Prints what was found per camera, and draws one picture of
each. The same command again goes on where it was stopped. Exit code 2: a picture cannot be used, or no face was found at all.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lib.datasets.arrays import numbers, parse_arrays, read_bytes
from lib.datasets.head_capture import Picture
from lib.datasets.images import write_pixels
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.training.runtime import choose_device, is_terminal, run
from preprocess.landmark_detectors import INSTALL_MEDIAPIPE, Detector, UnusablePicture, has_face_alignment, read_square, started
from preprocess.landmark_files import as_array, detected, read_detector, read_existing, write_detector, write_points
from preprocess.landmark_sheet import LEAST_ON_HEAD, draw_sheet, image_path, share_on_heads, take_findings

LISTED = 10


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", type=Path, metavar="SUBJECT", help="a subject folder with images/<frame>/image_<camera>.jpg or .png")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="take landmarks that exist instead of detecting")
    parser.add_argument("--detector", choices=["auto", "face_alignment", "mediapipe"], default="auto", help="default: %(default)s")
    parser.add_argument("--python", type=Path, help="interpreter of the environment that has mediapipe")
    parser.add_argument("--device", default="auto", help="of face_alignment: cpu, cuda, cuda:<n> or auto (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="throw away the landmarks that are there")
    parser.add_argument("--output", type=Path, help="picture to write (default: results/landmarks/<subject>/landmarks.png)")
    options = parser.parse_args()
    folder = CaptureFolder(options.subject)
    output = options.output or Path("results") / "landmarks" / options.subject.resolve().name / "landmarks.png"
    if output.suffix not in (".png", ".jpg"):
        raise InputError(f"--output: {output}: expected a .png or .jpg file")
    pictures = list_pictures(folder)
    problems = provide(folder, pictures, options)
    findings = take_findings(folder, pictures)
    print("\n".join(findings.lines()))
    reach = max((float(points[:, :2].max()) for points in findings.points.values()), default=0.0)
    size = folder.detection_size(original_size(folder, pictures), reach)
    write_pixels(output, draw_sheet(folder, pictures, findings, size))
    print(f"wrote {output}")
    if not findings.points:
        problems.append("no face was found in any picture: are they upright, in colour, with the face filling a fifth of the width or more?")
    if problems:
        more = [f"... {len(problems)} in all"] if len(problems) > LISTED else []
        raise InputError("\n  ".join([f"{folder.root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *problems[:LISTED], *more]))


def provide(folder: CaptureFolder, pictures: list[Picture], options: argparse.Namespace) -> list[str]:
    """Puts landmarks into the folder by the way that was asked for; a line for each picture that cannot be used.

    Raises InputError where no way can be gone, and before anything of another origin would be mixed or overwritten.
    """
    there = [] if options.overwrite else detected(folder, pictures)
    if options.source is not None:
        take_over(options.source, folder, pictures, options.overwrite)
        return []
    if len(there) == len(pictures):
        print(f"{folder.root / 'landmarks'}: all {len(pictures)} pictures have their file, detector: {read_detector(folder) or 'not said'}; "
              "nothing to do (--overwrite detects again)")
        return []
    choice = options.detector
    if choice == "auto":
        if not there and (folder.root / "landmark2d").is_dir():
            print(f"{folder.root / 'landmark2d'}: taken over")
            take_over(folder.root, folder, pictures, options.overwrite)
            return []
        choice = "face_alignment" if has_face_alignment() else "mediapipe" if options.python is not None else None
    if choice is None:
        raise InputError(
            f"{folder.root / 'landmarks'}: {len(pictures) - len(there)} of {len(pictures)} pictures lack landmarks, and nothing is here to find them "
            "with. Three ways:\n  1. you have landmarks (published layout, or VHAP's landmark2d): --from FOLDER\n  2. pip install face-alignment "
            f"(downloads its weights at the first use)\n  3. {INSTALL_MEDIAPIPE}\n     then --python mediapipe_env/bin/python")
    device = choose_device(options.device, option="--device") if choice == "face_alignment" else torch.device("cpu")
    with started(choice, device, options.python) as detector:
        _claim(folder, pictures, detector.name, there, options.overwrite)
        return list(detect(detector, folder, [picture for picture in pictures if picture not in set(there)]))


def detect(detector: Detector, folder: CaptureFolder, pictures: list[Picture]) -> Iterator[str]:
    """Writes landmarks picture by picture; yields a line for each that cannot be used. Raises InputError for pictures of different sizes."""
    size = None
    for picture in tqdm(pictures, desc=detector.name, unit="picture", mininterval=0.5 if is_terminal() else 15.0):
        path = image_path(folder, picture)
        try:
            found = detector.find(path)
        except UnusablePicture as error:
            yield str(error)
            continue
        if size is None:
            size = folder.detection_size(found.size, 0.0) if folder.detector_path().exists() else found.size
            write_detector(folder, detector.name, size)
        if found.size != size:
            raise InputError(f"{path}: is {found.size} pixels wide, others are {size}; all pictures of a subject must have one size")
        write_points(folder, picture, as_array(found))


def take_over(source: Path, folder: CaptureFolder, pictures: list[Picture], overwrite: bool) -> None:
    """Copies checked landmarks. Raises InputError when they do not lie on the heads, or when others are there and would be lost."""
    original = original_size(folder, pictures)
    given = read_existing(source, folder, pictures, original)
    for note in given.notes:
        print(f"note: {note}")
    share = share_on_heads(folder, given.points, given.size)
    if share is not None and share < LEAST_ON_HEAD:
        raise InputError(f"--from: {source}: only {share:.0%} of the points fall on the mattes (median); nothing was written. Were they found in "
                         f"other pictures: before cropping, of another size than {given.size}, of other frames?")
    there = detected(folder, pictures)
    if there and not overwrite:
        other = next((one for one in there if one not in given.points or not np.array_equal(_stored(folder, one), given.points[one])), None)
        if other is not None or read_detector(folder) not in (None, given.detector):
            raise InputError(f"{folder.root / 'landmarks'}: has other landmarks already"
                             + (f", e.g. {folder.detections_path(other.frame, other.camera)}" if other else "") + "; --overwrite replaces them")
    for picture in there:
        if picture not in given.points:
            folder.detections_path(picture.frame, picture.camera).unlink()
    write_detector(folder, given.detector, given.size)
    for picture, points in given.points.items():
        write_points(folder, picture, points)
    print(f"{source}: landmarks of {len(given.points)} of {len(pictures)} pictures, found with {given.detector} in pictures of {given.size} pixels")


def list_pictures(folder: CaptureFolder) -> list[Picture]:
    """Every full picture, camera by camera within each frame."""
    pictures = []
    for frame in folder.frames():
        files = folder.files(frame)
        pictures += [Picture(frame, camera) for camera in sorted(files.pictured_cameras()) if files.image_name(camera)]
    if not pictures:
        raise InputError(f"{folder.root / 'images'}: no frame has an image_<camera>.jpg or .png")
    return pictures


def original_size(folder: CaptureFolder, pictures: list[Picture]) -> int:
    """Side of the first picture that can be decoded."""
    for picture in pictures:
        try:
            return read_square(image_path(folder, picture)).shape[2]
        except UnusablePicture as error:
            first_error = error
    raise InputError(f"{folder.root}: no picture can be used; the last: {first_error}")


def _claim(folder: CaptureFolder, pictures: list[Picture], name: str, there: list[Picture], overwrite: bool) -> None:
    """Makes sure that one detector finds all. Old files go only here, when the new detector has started."""
    if overwrite:
        for picture in detected(folder, pictures):
            folder.detections_path(picture.frame, picture.camera).unlink()
        folder.detector_path().unlink(missing_ok=True)
    elif there and read_detector(folder) != name:
        origin = read_detector(folder) or "unknown origin"
        raise InputError(f"{folder.root / 'landmarks'}: {len(there)} of {len(pictures)} pictures have landmarks of {origin}, the rest would "
                         f"be found with {name}; use the same detector, or --overwrite to find all again")


def _stored(folder: CaptureFolder, picture: Picture) -> NDArray:
    path = folder.detections_path(picture.frame, picture.camera)
    return numbers(path, parse_arrays(path, read_bytes(path)), None)


if __name__ == "__main__":
    run(main)
