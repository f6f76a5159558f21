"""Pictures of a tracked sequence to PNG files on white with their mattes; from image files, or from videos."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from lib.datasets.images import read_image, write_pixels
from lib.datasets.tracked.record import TrackedFrame
from lib.datasets.video import open_video
from lib.errors import InputError
from lib.files import write_whole
from lib.training.runtime import is_terminal


@dataclass(frozen=True)
class PictureTask:
    """A picture and where it goes; `mask_path` where there is a matte."""

    frame: TrackedFrame
    image_path: Path
    mask_path: Path | None


def write_pictures(tasks: list[PictureTask], on_white: bool, threads: int) -> None:
    """Writes all of them, each file at once. `on_white`: what the matte leaves out becomes white, unless the source has done so.

    Raises InputError for a picture that cannot be read, or whose matte or camera is of another size.
    """
    videos: dict[Path, list[PictureTask]] = {}
    for task in tasks:
        if task.frame.video_frame is not None and task.frame.image is not None:
            videos.setdefault(task.frame.image, []).append(task)
    single = [task for task in tasks if task.frame.video_frame is None]
    bar = tqdm(total=len(tasks), desc="pictures", unit="picture", mininterval=0.5 if is_terminal() else 15.0)
    with bar, ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_write_single, task, on_white) for task in single]
        futures += [pool.submit(_write_video, part, on_white, bar) for part in videos.values()]
        try:
            for future in as_completed(futures):
                bar.update(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_single(task: PictureTask, on_white: bool) -> int:
    assert task.frame.image is not None
    mask = read_image(task.frame.mask)[0] if task.frame.mask is not None and task.mask_path is not None else None
    _write(task, read_image(task.frame.image), mask, on_white)
    return 1


def _write_video(tasks: list[PictureTask], on_white: bool, bar: tqdm) -> int:
    """The tasks of one video, which is decoded once."""
    wanted = {task.frame.video_frame: task for task in tasks}
    image, mask = tasks[0].frame.image, tasks[0].frame.mask
    assert image is not None
    with ExitStack() as stack:
        masks = _decoded(mask, stack) if mask is not None else None
        for number, pixels in enumerate(_decoded(image, stack)):
            matte = next(masks, None) if masks is not None else None
            if masks is not None and matte is None:
                raise InputError(f"{mask}: ends before picture {number} of {image}; copy it again")
            if (task := wanted.pop(number, None)) is not None:
                _write(task, pixels, None if matte is None else matte[0], on_white)
                bar.update(1)
            if not wanted:
                break
    if wanted:
        raise InputError(f"{image}: ends before picture {min(number for number in wanted if number is not None)}; copy it again")
    return 0


def _decoded(path: Path, stack: ExitStack) -> Iterator[UInt8[Tensor, "3 H W"]]:
    try:
        container = stack.enter_context(open_video(path))
        for frame in container.decode(video=0):
            yield torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a video ({error}); copy it again") from error


def _write(task: PictureTask, image: UInt8[Tensor, "3 H W"], mask: UInt8[Tensor, "H W"] | None, on_white: bool) -> None:
    view, frame = task.frame.view, task.frame
    if view is not None and image.shape[1:] != (view.height, view.width):
        raise InputError(f"{frame.image}: has {image.shape[2]}x{image.shape[1]} pixels, its camera ({frame.where}) {view.width}x{view.height}")
    if mask is not None and mask.shape != image.shape[1:]:
        raise InputError(f"{frame.mask}: has {mask.shape[1]}x{mask.shape[0]} pixels, its picture {image.shape[2]}x{image.shape[1]}")
    if mask is not None and on_white:
        share = mask.float() / 255.0
        image = (image * share + 255.0 * (1.0 - share)).round().byte()
    write_pixels(task.image_path, image)
    if mask is not None and task.mask_path is not None:
        write_whole(task.mask_path, cv2.imencode(".png", mask.numpy())[1].tobytes())
