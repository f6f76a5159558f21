"""A video of one camera, or a folder of images -> subject folder with one camera, named 0 (README, 'subject folder').

    python -m preprocess.video SOURCE --output SUBJECT

The world is the camera's: extrinsic = identity, OpenCV axes (x right, y down, z forward), so the head stands at positive z, and fitting the
3DMM finds where. The focal length comes from --focal or --camera; otherwise it is guessed as that of a phone's main camera (28 mm on 35 mm film,
by the diagonal) and said so: a wrong guess puts the head nearer or farther and makes its shape flatter or deeper, while it still falls on its
pixels. Times of a video are its own; images are taken 25 times a second. Any interruption is harmless: the same command goes on. Mattes,
landmarks and the 3DMM are made by later steps.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from tqdm import tqdm

from lib.datasets.images import read_image
from lib.datasets.layout import IMAGE_SUFFIXES, LOWRES_SIZE, FrameRecord, by_number, read_camera_file
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.training.runtime import is_terminal, run
from preprocess.frame_writer import Lens, SubjectWriter, gigabytes
from preprocess.raw_videos import decode, read_video
from preprocess.square_crop import SquareCrop, within

CAMERA = "0"
PHONE_MM, FILM_DIAGONAL_MM = 28.0, math.hypot(36.0, 24.0)
IMAGE_RATE = 25.0
LARGEST_SIZE = 1024  # unless asked for


@dataclass(frozen=True)
class Source:
    """Pictures of one camera. `times` are seconds from the first; `read` gives those with the asked numbers, in order."""

    path: Path
    times: tuple[float, ...]
    read: Callable[[list[int]], Iterator[tuple[int, UInt8[NDArray, "H W 3"]]]]


@dataclass(frozen=True)
class Intrinsics:
    """What is known of the camera: a focal length in pixels, a file, or nothing."""

    focal: float | None = None
    file: Path | None = None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a video, or a folder of .jpg and .png files, which are sorted by number")
    parser.add_argument("--output", type=Path, required=True, metavar="SUBJECT", help="folder to be made")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--focal", type=float, metavar="PX", help="focal length in pixels of the source; its centre is the principal point")
    known.add_argument("--camera", type=Path, metavar="NPZ", help="file with extrinsic (not used) and intrinsic (3,3), in pixels of the source")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every n-th picture (default: %(default)s)")
    parser.add_argument("--crop", type=int, nargs=3, metavar=("LEFT", "TOP", "SIDE"),
                        help="square in pixels of the source; outside is black (default: the largest one around the centre)")
    parser.add_argument("--size", type=int, help=f"of the pictures written, pixels (default: the side of the crop, at most {LARGEST_SIZE})")
    options = parser.parse_args()
    for option, value in (("--every", options.every), ("--size", options.size or 1)):
        if value < 1:
            raise InputError(f"{option}: expected 1 or more, found {value}")
    if options.focal is not None and not 0 < options.focal < math.inf:
        raise InputError(f"--focal: expected a positive number of pixels, found {options.focal:g}")
    extract(open_source(options.source), options.output, Intrinsics(options.focal, options.camera), options.every,
            tuple(options.crop) if options.crop else None, options.size)


def extract(source: Source, output: Path, known: Intrinsics, every: int = 1, crop: tuple[int, int, int] | None = None, size: int | None = None,
            ) -> None:
    """Makes the subject folder, or goes on with it. Raises InputError for anything in the source that cannot be used."""
    numbers = list(range(0, len(source.times), every))
    first = next(source.read(numbers[:1]))[1]
    height, width = first.shape[:2]
    side = min(width, height)
    left, top, side = crop or ((width - side) // 2, (height - side) // 2, side)
    square = within(SquareCrop(left, top, side, size or min(side, LARGEST_SIZE)), width, height)
    camera = _camera(known, width, height)
    frames = {number: f"{row:04d}" for row, number in enumerate(numbers)}
    records = [FrameRecord(frame, source.path.stem, source.times[number]) for number, frame in frames.items()]
    made_with = {
        "source": source.path.name, "every": str(every), "crop": f"{left} {top} {side}", "size": str(square.size), "lowres": str(LOWRES_SIZE),
        "focal": " ".join(f"{value:.6g}" for value in camera.intrinsics[0, :2].flatten().tolist()),
    }
    with SubjectWriter(output, made_with, records, {CAMERA: Lens(camera, square)}) as writer:
        if writer.is_complete():
            print(f"{output} is complete: nothing to do")
            return
        needed = writer.require_space(writer.lenses[CAMERA].bytes_of(first))
        print(f"{len(records)} frames at {square.size}x{square.size}, about {gigabytes(needed)} to write")
        writer.begin()
        pending = set(writer.pending(CAMERA, list(frames.values())))
        wanted = [number for number, frame in frames.items() if frame in pending]
        for number, pixels in tqdm(source.read(wanted), total=len(records), initial=len(records) - len(wanted), desc="extracting", unit="picture",
                                   mininterval=0.5 if is_terminal() else 15.0):
            if pixels.shape[:2] != (height, width):
                raise InputError(f"{source.path}: picture {number} has {pixels.shape[1]}x{pixels.shape[0]} pixels, the first one {width}x{height}; "
                                 "all must be of one size")
            writer.write(frames[number], CAMERA, pixels)
        writer.finish()
    print(f"wrote {output}: {len(records)} frames of one camera, named {CAMERA}")


def open_source(path: Path) -> Source:
    """A video file, or a folder of images. Raises InputError where it is neither."""
    if path.is_dir():
        paths = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=lambda file: by_number(file.name))
        if not paths:
            raise InputError(f"{path}: no image in this folder; expected {' or '.join('*' + suffix for suffix in IMAGE_SUFFIXES)} files")
        times = tuple(round(number / IMAGE_RATE, 6) for number in range(len(paths)))
        return Source(path, times, lambda wanted: ((number, read_image(paths[number]).permute(1, 2, 0).numpy()) for number in wanted))
    if not path.exists():
        raise InputError(f"{path}: not there; expected a video or a folder of images")
    video = read_video(path)
    if video.lost:
        print(f"note: {path}: is cut off, {video.lost} frames that it promises are not there; copy it again")
    numbers = {stamp: number for number, stamp in enumerate(video.stamps)}

    def read(wanted: list[int]) -> Iterator[tuple[int, UInt8[NDArray, "H W 3"]]]:
        for stamp, pixels in decode(video, frozenset(video.stamps[number] for number in wanted), threads=os.cpu_count() or 1):
            yield numbers[stamp], pixels
    return Source(path, tuple(round(video.seconds(stamp - video.stamps[0]), 6) for stamp in video.stamps), read)


def _camera(known: Intrinsics, width: int, height: int) -> Camera:
    """World = camera, a batch of one; says where the intrinsics come from."""
    if known.file is not None:
        intrinsics = read_camera_file(known.file)[1]
        if not (0 <= float(intrinsics[0, 2]) <= width and 0 <= float(intrinsics[1, 2]) <= height):
            raise InputError(f"{known.file}: the principal point ({intrinsics[0, 2]:.0f}, {intrinsics[1, 2]:.0f}) lies outside the source's "
                             f"{width}x{height} pixels; expected an intrinsic in pixels of the source")
    else:
        focal = known.focal or PHONE_MM / FILM_DIAGONAL_MM * math.hypot(width, height)
        intrinsics = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
        if known.focal is None:
            degrees = math.degrees(2 * math.atan(max(width, height) / 2 / focal))
            print(f"note: the focal length is a guess: {focal:.0f} pixels, as of a phone's main camera ({degrees:.0f} degrees, longer side); "
                  "--focal or --camera say better")
    return Camera(torch.eye(3, 4)[None], intrinsics[None].float(), width, height)


if __name__ == "__main__":
    run(main)
