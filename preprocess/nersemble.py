"""Raw NeRSemble -> subject folder: pictures, cameras, visible maps, empty scenes and frames.json (README, 'subject folder').

    python -m preprocess.nersemble RAW --id 031 --output SUBJECT

RAW is the root of a download in any of its layouts, which is found out and named:
    v1-zips      RAW/sequence_<SEQ>_part-N/<id>/<SEQ>/cam_<serial>.mp4      with RAW/camera_params/<id>/camera_params.json
    v1-subject   RAW/<id>/<SEQ>/cam_<serial>.mp4                            with RAW/camera_params/<id>/camera_params.json
    v2           RAW/<id>/sequences/<SEQ>/images/cam_<serial>.mp4           with RAW/<id>/calibration/camera_params.json

Every n-th frame is taken of every sequence, frames are numbered through all of them. Frames of several cameras belong together by their times;
a frame that not all cameras have is left out and said so. Any interruption is harmless: the same command goes on. Mattes, landmarks and the
3DMM are made by later steps.
"""

import argparse
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from lib.datasets.images import read_image
from lib.datasets.layout import LOWRES_SIZE, FrameRecord
from lib.errors import InputError
from lib.training.runtime import is_terminal, run
from preprocess.alignment import Aligned, align
from preprocess.frame_writer import Lens, SubjectWriter, gigabytes
from preprocess.raw_layouts import BACKGROUND, RawCapture, open_raw
from preprocess.raw_videos import Video, decode, read_video
from preprocess.square_crop import PUBLISHED_CROP, square_crop

SKIPPED = ("tongue", "GLASSES", "FREE", BACKGROUND)  # sequences whose names contain one of these are taken only when asked for by name
COLORS = ("none", "affine", "cheung")
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Extraction:
    """What is asked for. Empty `sequences` and `cameras` are the published choice and all that are calibrated."""

    raw: Path
    person: str
    output: Path
    sequences: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    every: int = 3
    crop: tuple[int, int, int] = PUBLISHED_CROP
    size: int = 2048
    color: str = "none"
    workers: int = 1


@dataclass(frozen=True)
class _Part:
    """All wanted frames of one sequence: names in order, where they are in each camera's video."""

    videos: dict[str, Video]
    frames: tuple[str, ...]
    stamps: dict[str, tuple[int, ...]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, metavar="RAW", help="root of the download")
    parser.add_argument("--id", required=True, help="participant, e.g. 031")
    parser.add_argument("--output", type=Path, required=True, metavar="SUBJECT", help="folder to be made")
    parser.add_argument("--sequences", nargs="+", default=(), metavar="GLOB",
                        help=f"e.g. 'EXP-*' 'EMO-*' (default: all whose names do not contain {', '.join(SKIPPED)})")
    parser.add_argument("--cameras", nargs="+", default=(), metavar="SERIAL", help="(default: all calibrated ones)")
    parser.add_argument("--every", type=int, default=3, metavar="N", help="every n-th frame (default: %(default)s)")
    parser.add_argument("--crop", type=int, nargs=3, default=PUBLISHED_CROP, metavar=("LEFT", "TOP", "SIDE"),
                        help="square, in pixels of a 2200x3208 picture; outside is black (default: -200 304 2600)")
    parser.add_argument("--size", type=int, default=2048, help="of the pictures written, pixels (default: %(default)s)")
    parser.add_argument("--color", choices=COLORS, default="none",
                        help="correct colours: affine (first edition), cheung (second; polynomial in linear light) (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="videos decoded at a time (default: %(default)s, the cores)")
    options = parser.parse_args()
    for option, value in (("--every", options.every), ("--size", options.size), ("--workers", options.workers)):
        if value < 1:
            raise InputError(f"{option}: expected 1 or more, found {value}")
    extract(Extraction(options.raw, options.id, options.output, tuple(options.sequences), tuple(options.cameras), options.every, tuple(options.crop),
                       options.size, options.color, options.workers))


def extract(wanted: Extraction) -> None:
    """Makes the subject folder, or goes on with it. Raises InputError for anything in the capture that cannot be used."""
    raw = open_raw(wanted.raw, wanted.person)
    names = _chosen(raw, wanted.sequences)
    print(f"{raw.root}: layout {raw.layout.name}, participant {raw.person}, {len(names)} of {len(raw.videos)} sequences")
    cameras = raw.cameras(wanted.cameras)
    parts, records = _plan(raw, names, list(cameras), wanted)
    with SubjectWriter(wanted.output, _made_with(wanted, raw, names, list(cameras)), records, _lenses(raw, parts, wanted)) as writer:
        if writer.is_complete():
            print(f"{wanted.output} is complete: nothing to do")
        else:
            _write(writer, raw, parts, wanted)


def _write(writer: SubjectWriter, raw: RawCapture, parts: list[_Part], wanted: Extraction) -> None:
    records, cameras = writer.records, list(writer.lenses)
    missing = writer.missing()
    needed = writer.require_space(_bytes_per_frame(writer, parts[0], wanted.workers))
    print(f"{len(records)} frames x {len(cameras)} cameras at {wanted.size}x{wanted.size}: {missing} pictures to write, about {gigabytes(needed)}")
    writer.begin()
    for camera in cameras:
        background = raw.background(camera)
        if background is not None:
            pixels = read_image(background).permute(1, 2, 0).numpy()
            _require_size(str(background), pixels.shape[1], pixels.shape[0], writer.lenses[camera])
            writer.write_background(camera, pixels)
    jobs = [(part, camera) for part in parts for camera in cameras]
    with tqdm(total=len(records) * len(cameras), initial=len(records) * len(cameras) - missing, desc="extracting", unit="picture",
              mininterval=0.5 if is_terminal() else 15.0) as bar:
        threads = max(1, (os.cpu_count() or 1) // wanted.workers)
        stop = threading.Event()
        _in_parallel(lambda job: _extract_video(writer, *job, threads, stop, bar), jobs, wanted.workers, stop)
    writer.finish()
    print(f"wrote {wanted.output}: {len(records)} frames x {len(cameras)} cameras of {len(parts)} sequences, {wanted.size}x{wanted.size}")


def _chosen(raw: RawCapture, globs: tuple[str, ...]) -> list[str]:
    for pattern in globs:
        if not any(fnmatchcase(name, pattern) for name in raw.videos):
            raise InputError(f"--sequences: '{pattern}' fits none of the sequences there: {', '.join(raw.videos)}")
    if globs:
        return [name for name in raw.videos if any(fnmatchcase(name, pattern) for pattern in globs)]
    names = [name for name in raw.videos if not any(word in name for word in SKIPPED)]
    if not names:
        raise InputError(f"{raw.root}: only sequences that are not taken unless --sequences names them: {', '.join(raw.videos)}")
    return names


def _plan(raw: RawCapture, names: list[str], cameras: list[str], wanted: Extraction) -> tuple[list[_Part], list[FrameRecord]]:
    """Which frames there will be: known before the first picture is decoded, so that their numbers do not depend on interruptions."""
    paths = [(name, camera) for name in names for camera in cameras if camera in raw.videos[name]]
    videos: dict[str, dict[str, Video]] = {name: {} for name in names}
    progress = tqdm(total=len(paths), desc="reading times", unit="video", mininterval=0.5 if is_terminal() else 15.0, disable=len(paths) < 50)
    with progress, ThreadPoolExecutor(wanted.workers) as pool:
        for (name, camera), video in zip(paths, pool.map(lambda at: read_video(raw.videos[at[0]][at[1]]), paths), strict=True):
            videos[name][camera] = video
            progress.update()
    parts: list[_Part] = []
    records: list[FrameRecord] = []
    lines: list[str] = []
    for name in names:
        aligned: Aligned = align(videos[name], cameras, wanted.every, name)
        lines += aligned.notes
        frames = tuple(f"{len(records) + k:04d}" for k in range(len(aligned.times)))
        records += [FrameRecord(frame, name, time) for frame, time in zip(frames, aligned.times, strict=True)]
        if frames:
            parts.append(_Part(videos[name], frames, aligned.stamps))
    for line in lines:
        print(f"note: {line}")
    if not records:
        raise InputError(f"{raw.root}: there is no frame that all of these cameras have ({', '.join(cameras)}); the notes above say what is missing")
    return parts, records


def _lenses(raw: RawCapture, parts: list[_Part], wanted: Extraction) -> dict[str, Lens]:
    cameras = raw.cameras(wanted.cameras)
    colors = raw.colors(wanted.color, list(cameras)) if wanted.color != "none" else {}
    lenses = {}
    for name, camera in cameras.items():
        video = parts[0].videos[name]
        lenses[name] = Lens(camera.resized(video.width, video.height), square_crop(wanted.crop, wanted.size, video.width, video.height),
                            colors.get(name))
        for part in parts:
            _require_size(str(part.videos[name].path), part.videos[name].width, part.videos[name].height, lenses[name])
    return lenses


def _require_size(what: str, width: int, height: int, lens: Lens) -> None:
    if (width, height) != (lens.raw.width, lens.raw.height):
        raise InputError(f"{what}: {width}x{height} pixels, while the first video of this camera has {lens.raw.width}x{lens.raw.height}; "
                         "all must be of one size")


def _made_with(wanted: Extraction, raw: RawCapture, names: list[str], cameras: list[str]) -> dict[str, str]:
    """All that decides the content, by option."""
    return {
        "id": raw.person, "sequences": " ".join(names), "cameras": " ".join(cameras), "every": str(wanted.every),
        "crop": " ".join(map(str, wanted.crop)), "size": str(wanted.size), "lowres": str(LOWRES_SIZE), "color": wanted.color,
    }


def _bytes_per_frame(writer: SubjectWriter, part: _Part, workers: int) -> int:
    """Of all cameras, measured on the first frame."""
    def measure(camera: str) -> int:
        pixels = next(decode(part.videos[camera], frozenset(part.stamps[camera][:1]), threads=1))[1]
        return writer.lenses[camera].bytes_of(pixels)
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(measure, writer.lenses))


def _extract_video(writer: SubjectWriter, part: _Part, camera: str, threads: int, stop: threading.Event, bar: tqdm) -> None:
    pending = set(writer.pending(camera, list(part.frames)))
    frame_at = {stamp: frame for stamp, frame in zip(part.stamps[camera], part.frames, strict=True) if frame in pending}
    if not frame_at:
        return
    for stamp, pixels in decode(part.videos[camera], frozenset(frame_at), threads):
        if stop.is_set():
            return
        writer.write(frame_at[stamp], camera, pixels)
        bar.update()


def _in_parallel(do: Callable[[Item], None], items: Iterable[Item], workers: int, stop: threading.Event) -> None:
    """By threads, as decoding and coding let go of Python's lock. The first error, or Ctrl-C, ends all of them."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(do, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


if __name__ == "__main__":
    run(main)
