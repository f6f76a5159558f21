"""Measures `preprocess.nersemble`: `python -m benchmarks.extraction [--small] [--cameras 4] [--frames 100] [--workers N]`.

Makes a raw capture in a temporary folder (another part of a wall for each moment, with the noise of a sensor; all cameras film the same) and
prints JSON: frames per second of all videos together, decoded only, and extracted with every frame and with every third; what the parts of one
picture cost on one thread; and which share of the extraction's time decoding alone would take. Files stay in the system's page cache: the disk
is not measured.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from lib.datasets.video import VideoWriter, open_video, to_yuv420
from preprocess.demo_scene import wall
from preprocess.frame_writer import jpeg
from preprocess.nersemble import Extraction, extract
from preprocess.raw_layouts import LAYOUTS
from preprocess.raw_videos import decode, read_video
from preprocess.square_crop import PUBLISHED_CROP, RAW_HEIGHT, RAW_WIDTH, shrunk, square_crop

PERSON, SEQUENCE, RATE = "031", "EXP-1-head", 73
NOISE = 2.0  # 8-bit levels
STEP = 9  # pixels from frame to frame
CRF, PRESET = 16, "veryfast"  # some 30 kB a frame, as the videos of the data set have
ROUNDS = 10


def write_raw(root: Path, cameras: list[str], frames: int, width: int, height: int) -> Path:
    """A capture of one sequence in the second edition's layout; returns one of its videos."""
    layout = next(layout for layout in LAYOUTS if layout.name == "v2")
    paths = [layout.path(layout.video, root, PERSON, SEQUENCE, camera) for camera in cameras]
    scene, random = wall(0, 0, width + STEP * frames, height), np.random.default_rng(0)
    noise = [NOISE / 255.0 * random.standard_normal((height, width, 1), dtype=np.float32) for _ in range(5)]
    with VideoWriter(paths[0], RATE, CRF, PRESET) as video:
        for number in range(frames):
            picture = scene[:, STEP * number:STEP * number + width] + noise[number % len(noise)]
            video.add(to_yuv420(torch.from_numpy(picture).permute(2, 0, 1)))
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    calibration = layout.path(layout.calibration, root, PERSON)
    calibration.parent.mkdir(parents=True)
    intrinsics = [[8000.0, 0.0, width / 2], [0.0, 8000.0, height / 2], [0.0, 0.0, 1.0]]
    calibration.write_text(json.dumps({"world_2_cam": {camera: np.eye(4).tolist() for camera in cameras}, "intrinsics": intrinsics}))
    return paths[0]


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def decode_all(path: Path) -> None:
    """Every frame, on one thread, to nothing."""
    with open_video(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass


def parts_of_a_picture(path: Path, size: int) -> dict[str, float]:
    """Milliseconds on one thread."""
    video, threads = read_video(path), cv2.getNumThreads()
    cv2.setNumThreads(1)
    with open_video(path) as container:
        frame = next(container.decode(video=0))
    pixels = next(decode(video, frozenset(video.stamps[:1]), threads=1))[1]
    crop = square_crop(PUBLISHED_CROP, size, video.width, video.height)
    square, converter = crop.cut(pixels), av.video.reformatter.VideoReformatter()
    calls = {"to_rgb": lambda: converter.reformat(frame, format="rgb24").to_ndarray(), "cut": lambda: crop.cut(pixels), "jpeg": lambda: jpeg(square),
             "lowres": lambda: jpeg(shrunk(square, 256))}
    taken = {name: 1e3 * min(seconds(call) for _ in range(ROUNDS)) for name, call in calls.items()}
    cv2.setNumThreads(threads)
    return {"decode": 1e3 * seconds(lambda: decode_all(path)) / len(video.stamps)} | taken


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="an eighth of the size, few frames: does everything run?")
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--frames", type=int, default=100, help="of every video")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    width, height, size = (RAW_WIDTH // 8 // 2 * 2, RAW_HEIGHT // 8 // 2 * 2, 256) if options.small else (RAW_WIDTH, RAW_HEIGHT, 2048)
    frames = min(options.frames, 8) if options.small else options.frames
    cameras = [f"{number:02d}" for number in range(options.cameras)]
    with tempfile.TemporaryDirectory() as folder:
        root, total = Path(folder), frames * options.cameras
        path = write_raw(root / "raw", cameras, frames, width, height)
        with ThreadPoolExecutor(options.workers) as pool:
            decoding = seconds(lambda: list(pool.map(decode_all, [path.with_name(f"cam_{camera}.mp4") for camera in cameras])))
        result = {
            "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(), "av": av.__version__},
            "cameras": options.cameras, "frames": frames, "width": width, "height": height, "size": size, "workers": options.workers,
            "kilobytes_per_frame": path.stat().st_size / frames / 1e3,
            "milliseconds": parts_of_a_picture(path, size),
            "decoded_per_second": total / decoding,
        }
        for every in (1, 3):
            wanted = Extraction(root / "raw", PERSON, root / f"every_{every}", every=every, size=size, workers=options.workers)
            with contextlib.redirect_stdout(io.StringIO()):
                taken = seconds(lambda wanted=wanted: extract(wanted))
            pictures = len(list((wanted.output / "images").rglob("visible_lowres_*")))
            result[f"every_{every}"] = {
                "decoded_per_second": total / taken, "written_per_second": pictures / taken, "decoding_share": decoding / taken,
            }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
