"""Measures how fast training gets its pictures: `python -m benchmarks.data [--size 2048] [--step-ms 18] [--workers 8] [--steps 200]`.

Writes a subject of synthetic JPEGs (smooth shading with the noise of a sensor) to a temporary folder and prints JSON: milliseconds of the parts
of loading on one thread, batches per second by number of threads, and the share of the time that a simulated training waits for data, decoding
every picture or taking it from the cache. Files stay in the system's page cache: it is decoding that is measured, not the disk, which
has to deliver `mb_per_second`. The simulated step holds Python's lock for a third of its time, as one does that starts many kernels.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.timing import spread, synchronize
from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.datasets.images import JPEG_QUALITY, read_image
from lib.datasets.layout import LANDMARK_COUNT, CaptureFolder
from lib.datasets.sampler import TrainingBatches
from lib.training.loading import AHEAD, load

FRAMES, CAMERAS = 12, ("0", "1", "2", "3")
EXPRESSIONS, VERTICES = 64, 35709
NOISE = 3.0  # 8-bit levels
PADDING = 0.08  # of the width, left and right
ROUNDS = 15
THREADS = (0, 1, 2, 4, 8)
PYTHON_SHARE = 1.0 / 3.0  # of a step


def write_capture(root: Path, size: int) -> CaptureFolder:
    """A subject in the published layout; every picture is another one."""
    folder, random = CaptureFolder(root), np.random.default_rng(0)
    down, right = np.mgrid[:size, :size].astype(np.float32) / size
    shading = np.stack([0.5 + 0.4 * np.sin(9.0 * right + 5.0 * (k + 1) * down) * np.cos(7.0 * down - k) for k in range(3)], axis=-1)
    image = np.clip(255.0 * shading + NOISE * random.standard_normal((size, size, 3), dtype=np.float32), 0.0, 255.0).astype(np.uint8)
    radius = np.hypot(right - 0.5, down - 0.5) + 0.01 * np.sin(60.0 * np.arctan2(down - 0.5, right - 0.5))
    mask = (255.0 * np.clip((0.35 - radius) * size / 8.0, 0.0, 1.0)).astype(np.uint8)
    visible = np.full_like(mask, 255)
    visible[:, :int(PADDING * size)] = visible[:, size - int(PADDING * size):] = 0
    pictures = {"image": image, "mask": cv2.merge([mask] * 3), "visible": cv2.merge([visible] * 3)}
    for number in range(FRAMES):
        frame = f"{number:04d}"
        for path in (folder.images_path(frame), folder.camera_path(frame, "").parent, folder.params_path(frame).parent):
            path.mkdir(parents=True)
        for row, camera in enumerate(CAMERAS):
            for kind, pixels in pictures.items():
                shifted = np.roll(pixels, (number * size // 100, row * size // 100), axis=(0, 1))
                cv2.imwrite(str(folder.image_path(frame, camera, kind)), shifted, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            np.savez(folder.camera_path(frame, camera), extrinsic=np.eye(3, 4),
                     intrinsic=np.array([[2.0 * size, 0.0, size / 2.0], [0.0, 2.0 * size, size / 2.0], [0.0, 0.0, 1.0]]))
        np.savez(folder.params_path(frame), exp_coeff=np.zeros((1, EXPRESSIONS)), pose=np.zeros((1, 6)), scale=np.ones(1))
        np.save(folder.landmarks_path(frame), random.standard_normal((LANDMARK_COUNT, 3)))
        np.save(folder.vertices_path(frame), random.standard_normal((VERTICES, 3)))
    return folder


def open_capture(folder: CaptureFolder, size: int, cache_gb: float) -> HeadCapture:
    """The subject at its full resolution."""
    return HeadCapture(HeadCaptureConfig(dataroot=folder.root, camera_ids=CAMERAS, original_resolution=size, resolution=size, cache_gb=cache_gb))


def milliseconds(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Of one call, until the device has done it."""
    call()
    taken = []
    for _ in range(ROUNDS):
        synchronize(device.type == "cuda")
        began = time.perf_counter()
        call()
        synchronize(device.type == "cuda")
        taken.append(1e3 * (time.perf_counter() - began))
    return spread(taken)


def parts(folder: CaptureFolder, size: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Milliseconds of the parts of one batch of one picture, on one thread."""
    read, kept = open_capture(folder, size, 0.0), open_capture(folder, size, 1.0)
    batch, frame = TrainingBatches(kept, 1, 1, 0)[0], read.frames[0]
    locked = batch.pixels.pin_memory() if device.type == "cuda" else batch.pixels
    there = batch.to(device)
    calls: dict[str, Callable[[], object]] = {
        f"decode_{kind}": functools.partial(read_image, folder.image_path(frame, CAMERAS[0], kind)) for kind in ("image", "mask", "visible")
    } | {
        "item_decoded": lambda: read.item(frame, [CAMERAS[0]]), "item_from_cache": lambda: kept.item(frame, [CAMERAS[0]]),
        "batch_to_device": lambda: batch.to(device), "locked_pixels_to_device": lambda: locked.to(device, non_blocking=True),
        "floats_on_device": lambda: (there.on_white(), there.visible),
    }
    return {name: milliseconds(call, device) for name, call in calls.items()}


def batches_per_second(capture: HeadCapture, workers: int, steps: int, pinned: bool) -> float:
    """When nothing else is done."""
    warm_up = AHEAD * workers + 2
    with contextlib.closing(load(TrainingBatches(capture, 1, 1, 0), range(warm_up + steps), workers, pinned)) as batches:
        for _ in range(warm_up):
            next(batches)
        began = time.perf_counter()
        for _ in batches:
            pass
        return round(steps / (time.perf_counter() - began), 1)


def simulated_training(capture: HeadCapture, workers: int, steps: int, step_ms: float, device: torch.device) -> dict[str, float]:
    """Waiting of a training that does nothing but take its time; the cache is looked at after every step."""
    waits, peak, warm_up = [], 0, AHEAD * workers + 2  # page-locked memory is made in these steps
    with contextlib.closing(load(TrainingBatches(capture, 1, 1, 0), range(warm_up + steps), workers, device.type == "cuda")) as batches:
        for _ in range(warm_up):
            _step(next(batches), step_ms, device)
        began = ready = time.perf_counter()
        for batch in batches:
            waits.append(time.perf_counter() - ready)
            _step(batch, step_ms, device)
            peak = max(peak, capture.cache.nbytes)
            ready = time.perf_counter()
        elapsed = ready - began
    return {
        "data_wait_share": round(sum(waits) / elapsed, 4), "longest_wait_ms": round(1e3 * max(waits), 2),
        "step_ms": round(1e3 * (elapsed - sum(waits)) / steps, 2), "cache_peak_bytes": peak, "cache_limit_bytes": round(capture.cache.limit),
    }


def _step(batch: HeadBatch, step_ms: float, device: torch.device) -> None:
    """Brings the batch to the device as training does, then takes its time."""
    end = time.perf_counter() + 1e-3 * step_ms
    there = batch.to(device)
    if device.type == "cuda":  # a CPU would have the loading threads wait for this
        there.on_white(), there.visible
    until_idle = time.perf_counter() + 1e-3 * step_ms * PYTHON_SHARE
    while time.perf_counter() < until_idle:
        pass
    synchronize(device.type == "cuda")
    time.sleep(max(0.0, end - time.perf_counter()))


def main(arguments: list[str] | None = None) -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="pixels (default: %(default)s)")
    parser.add_argument("--step-ms", type=float, default=18.0, help="of the simulated training (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=8, help="threads that load for the simulated training (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of every measurement (default: %(default)s)")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    picture_gb, pinned = 5 * options.size**2 / 1e9, device.type == "cuda"
    with tempfile.TemporaryDirectory() as root:
        folder = write_capture(Path(root), options.size)
        file_bytes = sum(folder.image_path("0000", CAMERAS[0], kind).stat().st_size for kind in ("image", "mask", "visible"))
        rates = {str(workers): batches_per_second(open_capture(folder, options.size, 0.0), workers, options.steps, pinned) for workers in THREADS}
        training = {}
        for name, pictures in (("decoded", 0), ("half_cached", FRAMES * len(CAMERAS) // 2), ("cached", FRAMES * len(CAMERAS))):
            capture = open_capture(folder, options.size, (pictures + 0.5) * picture_gb)
            if pictures:
                for frame in capture.frames:
                    capture.item(frame, list(CAMERAS))
            training[name] = simulated_training(capture, options.workers, options.steps, options.step_ms, device)
        result = {
            "device": torch.cuda.get_device_name() if pinned else "cpu", "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(), "torch": torch.__version__, "opencv": cv2.__version__, **vars(options),
            "pictures": FRAMES * len(CAMERAS), "file_bytes": file_bytes, "mb_per_second": round(file_bytes / options.step_ms / 1e3, 1),
            "milliseconds": parts(folder, options.size, device), "batches_per_second": rates, "training": training,
        }
    print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
