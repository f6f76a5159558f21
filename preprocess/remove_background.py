"""Writes the mattes of a subject folder: mask_<camera>.jpg and mask_lowres_<camera>.jpg beside every image, 255 where the person is.

    python -m preprocess.remove_background SUBJECT                              the best way that can be had here
    python -m preprocess.remove_background SUBJECT --matter classical           without learned weights

background/image_<camera>.jpg is the empty scene as the camera sees it. Without it `classical` and `background_matting_v2` work against an estimate
from the pictures themselves, which is weaker, or refuse. The whole person is kept, shoulders too. Mattes that are there are kept (--overwrite
replaces them), also your own: a small one that is missing is made from the large one. So the same command goes on after an
interruption. A picture that cannot be used stops nothing: the others are done, all such are named at the end, and the exit code is 2.
results/matting/<subject>/mattes.png shows some of the mattes: look at it.
"""

import argparse
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from lib.datasets.images import read_image, resize, to_uint8, write_image, write_pixels
from lib.datasets.layout import LOWRES_SIZE, CaptureFolder, FrameFiles, by_number
from lib.datasets.sampler import spread
from lib.errors import InputError
from lib.training.runtime import is_terminal, run
from preprocess.matting import NAMES, WEIGHTS, WEIGHTS_FOLDER, Matting, open_matting
from preprocess.matting_plate import NoEstimate, estimate_background
from preprocess.matting_sheet import Looked, draw_sheet

ESTIMATED_FROM = 8  # pictures of a camera
LEAST_COVERED, MOST_COVERED = 0.01, 0.95  # of a picture, by a person
ODD = 1.4  # times more or less covered than the median picture of the camera: worth a look
SHOWN_CAMERAS, SHOWN_FRAMES = 4, 2
LISTED = 10


@dataclass(frozen=True)
class Task:
    """One picture to be matted; `done` where its matte is there already, `lacks_small` where that is a large one alone."""

    frame: str
    camera: str
    path: Path
    lowres_only: bool
    done: bool
    lacks_small: bool


@dataclass
class Outcome:
    """What a run has come to so far; several threads add to it."""

    covered: dict[Task, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", type=Path, help="subject folder")
    parser.add_argument("--matter", choices=["auto", *NAMES], default="auto",
                        help=f"auto: the first of {', '.join(WEIGHTS)} whose weights are in {WEIGHTS_FOLDER}/, else classical (default: %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help=f"TorchScript file of its authors (default: looked for in {WEIGHTS_FOLDER}/)")
    parser.add_argument("--device", default="auto", help="of the networks: cpu, cuda, cuda:<n> or auto (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace mattes that are there")
    options = parser.parse_args()
    folder = CaptureFolder(options.subject)
    tasks = find_tasks(folder, options.overwrite)
    has_backgrounds = any(folder.background_path(camera).exists() for camera in tasks)
    matting = open_matting(options.matter, options.weights, options.device, has_backgrounds)
    outcome = remove_background(folder, tasks, matting)
    sheet = Path("results") / "matting" / options.subject.resolve().name / "mattes.png"
    rows = shown(folder, tasks)
    if rows:
        write_image(sheet, draw_sheet(rows))
        print(f"wrote {sheet}: picture, matte, person on magenta, softest part of the outline")
    if outcome.problems:
        more = [f"... {len(outcome.problems)} problems in all"] if len(outcome.problems) > LISTED else []
        raise InputError("\n  ".join([f"{options.subject}: {len(outcome.covered)} mattes written, but not all", *outcome.problems[:LISTED], *more]))


def find_tasks(folder: CaptureFolder, overwrite: bool) -> dict[str, list[Task]]:
    """The pictures of every camera in order of time. Raises InputError where there is none."""
    tasks: dict[str, list[Task]] = {}
    for frame in folder.frames():
        files = folder.files(frame)
        for camera in sorted(files.pictured_cameras(), key=by_number):
            name = files.image_name(camera)
            lowres_only = name is None
            path = folder.images_path(frame) / (name or files.image_name(camera, lowres=True) or "")
            done = not overwrite and _has_matte(folder, frame, files, camera, lowres_only)
            lacks_small = done and not _has_matte(folder, frame, files, camera, lowres=True)
            tasks.setdefault(camera, []).append(Task(frame, camera, path, lowres_only, done, lacks_small))
    if not tasks:
        raise InputError(f"{folder.root / 'images'}: no frame has an image_<camera>.jpg or .png")
    return tasks


def _has_matte(folder: CaptureFolder, frame: str, files: FrameFiles, camera: str, lowres: bool) -> bool:
    """Whether it is there and can be decoded."""
    name = files.image_name(camera, "mask", lowres)
    try:
        return name is not None and len(read_image(folder.images_path(frame) / name)) > 0
    except InputError:
        return False


def remove_background(folder: CaptureFolder, tasks: dict[str, list[Task]], matting: Matting) -> Outcome:
    """Writes the mattes of all tasks that are not done. Problems of single pictures are in the outcome."""
    outcome, lock, stop = Outcome(), threading.Lock(), threading.Event()
    pending = sum(not task.done for camera in tasks.values() for task in camera)
    total = sum(len(camera) for camera in tasks.values())
    kept = f"; {total - pending} have theirs already (--overwrite replaces them)" if pending < total else ""
    print(f"{folder.root}: {total} pictures of {len(tasks)} cameras, matting {pending} with {matting.name}{kept}")
    alone = [task for camera in tasks.values() for task in camera if task.lacks_small]
    for task in tqdm(alone, desc="small mattes", unit="picture", mininterval=0.5 if is_terminal() else 15.0, disable=not alone):
        _write_small(folder, task)
    if alone:
        print(f"made the small mattes of {len(alone)} pictures from their large ones")
    threads = 1 if matting.single else torch.get_num_threads()
    before = cv2.getNumThreads()
    with tqdm(total=pending, desc="matting", unit="picture", mininterval=0.5 if is_terminal() else 15.0) as progress:

        def work(camera: str) -> None:
            try:
                for task, result in matte_camera(folder, tasks[camera], matting, outcome.notes):
                    with lock:
                        progress.update()
                        if isinstance(result, InputError):
                            outcome.problems.append(str(result))
                        else:
                            outcome.covered[task] = result
                    if stop.is_set():
                        return
            except InputError as error:  # of the camera: none of its pictures has a matte
                with lock:
                    progress.update(sum(not task.done for task in tasks[camera]))
                    outcome.problems.append(str(error))

        cv2.setNumThreads(1 if threads > 1 else before)  # pictures are shared out already
        try:
            with ThreadPoolExecutor(threads) as pool:
                futures = [pool.submit(work, camera) for camera in tasks if not all(task.done for task in tasks[camera])]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    stop.set()
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            cv2.setNumThreads(before)
    for line in sorted(outcome.notes) + odd_ones(outcome):
        print(line)
    outcome.problems.sort()
    return outcome


def matte_camera(folder: CaptureFolder, tasks: list[Task], matting: Matting, notes: list[str]) -> Iterator[tuple[Task, float | InputError]]:
    """Writes the mattes of one camera; of every task that was not done the share covered by the person, or what is wrong with it.

    Raises InputError where there is no background and one is needed.
    """
    background = find_background(folder, tasks, notes) if matting.needs_background else None
    sequences = folder.records([task.frame for task in tasks])
    matter, sequence = matting.begin(), None
    last = max(k for k, task in enumerate(tasks) if not task.done)
    for k, task in enumerate(tasks[:last + 1]):
        if sequences is not None and sequences[k].sequence != sequence:
            matter, sequence = matting.begin(), sequences[k].sequence
        if task.done and not matting.remembers:
            continue
        try:
            picture = read_image(task.path)
            if picture.shape[1] != picture.shape[2]:
                raise InputError(f"{task.path}: expected a square picture, found {picture.shape[2]}x{picture.shape[1]} pixels; "
                                 "crop it and its camera")
            empty = None if background is None else resize(background, picture.shape[1]).float() / 255.0
            alpha = matter(picture[None].float() / 255.0, empty)[0]
            covered = float(alpha.mean())
            if not LEAST_COVERED <= covered <= MOST_COVERED:
                raise InputError(f"{task.path}: the matte covers {covered:.0%} of the picture, which is no person, so it is not written; is somebody "
                                 f"in the picture, and does {folder.background_path(task.camera)} show the same view?")
            if not task.done:
                _write(folder, task, to_uint8(alpha.expand(3, -1, -1)))
        except InputError as error:
            if not task.done:
                yield task, error
        else:
            if not task.done:
                yield task, covered


def find_background(folder: CaptureFolder, tasks: list[Task], notes: list[str]) -> UInt8[Tensor, "3 H W"]:
    """The empty scene of a camera: its photograph, else an estimate. Raises InputError where neither can be had."""
    camera = tasks[0].camera
    path = folder.background_path(camera)
    if path.exists():
        background = read_image(path)
        if background.shape[1] != background.shape[2]:
            raise InputError(f"{path}: expected a square picture like the images, found {background.shape[2]}x{background.shape[1]} pixels")
        return background
    pictures = []
    for task in spread(tasks, ESTIMATED_FROM):
        try:
            pictures.append(read_image(task.path).permute(1, 2, 0).numpy())
        except InputError:  # told when its turn comes
            continue
    pictures = [np.ascontiguousarray(picture) for picture in pictures if picture.shape == pictures[0].shape]
    try:
        if not pictures:
            raise NoEstimate("none of its pictures can be read")
        plate = estimate_background(pictures)
    except NoEstimate as error:
        raise InputError(f"{path}: camera {camera} has no picture of the empty scene, and none can be estimated ({error}); provide it, or weights "
                         "of robust_video_matting, which needs none (--matter robust_video_matting says where they belong)") from error
    notes.append(f"camera {camera}: {path} is missing, so the empty scene was estimated from {len(pictures)} pictures, which is weaker: "
                 "look at its mattes")
    return torch.from_numpy(plate).permute(2, 0, 1).contiguous()


def _write(folder: CaptureFolder, task: Task, matte: UInt8[Tensor, "3 H W"]) -> None:
    """Black where the crop is padding; the small one last, of what is in the file of the large one."""
    visible = folder.files(task.frame).image_name(task.camera, "visible", lowres=task.lowres_only)
    if visible is not None:
        seen = read_image(folder.images_path(task.frame) / visible)[:1]
        matte = torch.where(resize(seen, matte.shape[1]) >= 128, matte, 0)
    if task.lowres_only:
        write_pixels(folder.image_path(task.frame, task.camera, "mask", lowres=True), resize(matte, LOWRES_SIZE))
        return
    folder.image_path(task.frame, task.camera, "mask", lowres=True).unlink(missing_ok=True)  # never beside another's large one
    write_pixels(folder.image_path(task.frame, task.camera, "mask"), matte)
    _write_small(folder, task)


def _write_small(folder: CaptureFolder, task: Task) -> None:
    name = folder.files(task.frame).image_name(task.camera, "mask")
    matte = read_image(folder.images_path(task.frame) / (name or ""))
    write_pixels(folder.image_path(task.frame, task.camera, "mask", lowres=True), resize(matte, LOWRES_SIZE))


def odd_ones(outcome: Outcome) -> list[str]:
    """A line for each of the pictures that are covered unlike the others of their camera."""
    by_camera: dict[str, list[Task]] = {}
    for task in outcome.covered:
        by_camera.setdefault(task.camera, []).append(task)
    lines = []
    for camera, tasks in sorted(by_camera.items()):
        usual = median(outcome.covered[task] for task in tasks)
        lines += [f"look at frame {task.frame}, camera {camera}: the matte covers {outcome.covered[task]:.0%} of it, usual is {usual:.0%}"
                  for task in tasks if not usual / ODD <= outcome.covered[task] <= usual * ODD]
    return lines[:LISTED] + ([f"... {len(lines)} such pictures in all"] if len(lines) > LISTED else [])


def shown(folder: CaptureFolder, tasks: dict[str, list[Task]]) -> list[Looked]:
    """Some frames of some cameras, of those that have a matte."""
    rows = []
    for camera in spread(list(tasks), SHOWN_CAMERAS):
        for task in spread(tasks[camera], SHOWN_FRAMES):
            name = folder.files(task.frame).image_name(camera, "mask", lowres=task.lowres_only)
            try:
                if name is not None:
                    picture, matte = read_image(task.path), read_image(folder.images_path(task.frame) / name)
                    rows.append(Looked(f"camera {camera}   frame {task.frame}", picture, resize(matte, picture.shape[1])[0]))
            except InputError:  # told already
                continue
    return rows


if __name__ == "__main__":
    run(main)
