"""How long a training step of the Gaussian head takes: `python -m benchmarks.train_step` prints JSON.

Networks, resolution and losses are those of NeRSemble 031 (2048 px, 103,000 Gaussians, LPIPS on 512 px with random weights); the head is
not trained, and pictures are in the memory of the device. Both precisions take turns in one process. Memory and the first step are those of a
process for itself only where one number of images and one precision are asked for.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling import BATCHES, head_configuration, prepare
from benchmarks.timing import Pass, spread, synchronize
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadStage
from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.training.runtime import choose_device, run, seed_everything

PUBLISHED_MS, PUBLISHED_GIB = 142.0, 10.0  # measured on the same kind of GPU
LIMITS = {1: 18.0, 4: 14.0}  # ms per image, by images in a step
MOST_GIB = 6.0  # of a step of one image
LARGEST = 20  # kernels
WARM_UP = 40  # steps on a GPU: after 32 the rows of who moves what are found anew, and compilers learn that their number changes


def steps_in_a_row(stage: GaussianHeadStage, batches: list[HeadBatch], count: int, cuda: bool) -> float:
    """Milliseconds per step."""
    synchronize(cuda)
    began = time.perf_counter()
    for step in range(count):
        stage.step(batches[step % len(batches)], step)
    synchronize(cuda)
    return 1e3 * (time.perf_counter() - began) / count


def peak_gib(call: Pass) -> float:
    """Taken from the device by the whole process, with weights, optimizer, batches and recorded graphs."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round(torch.cuda.max_memory_reserved() / 2**30, 2)


def profile(call: Pass) -> dict[str, Any]:
    """Kernels, the time that the device works, waits of the host, and the largest kernels of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    averages = [one for one in profiler.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    largest = sorted(averages, key=lambda one: -one.self_device_time_total)[:LARGEST]
    waits = sum(one.count for one in profiler.key_averages() if one.key in ("cudaStreamSynchronize", "cudaEventSynchronize"))
    return {
        "kernels": sum(one.count for one in averages), "device_ms": round(sum(one.self_device_time_total for one in averages) / 1e3, 3),
        "host_waits": waits, "largest_us": {f"{one.key[:90]} x{one.count}": round(one.self_device_time_total, 1) for one in largest},
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is measured."""
    device = choose_device("cpu" if arguments.small else "auto")
    cuda = device.type == "cuda"
    seed_everything(0, device, arguments.deterministic)
    config = head_configuration(folder, arguments.small, load_gaussianhead_checkpoint=str(folder / "start" / "head"))
    capture = HeadCapture(config.dataset)
    stages = {}
    for precision in arguments.precisions:
        trainer = config.trainer.model_copy(update={"precision": precision, "deterministic": arguments.deterministic})
        stages[precision] = GaussianHeadStage(config.model_copy(update={"trainer": trainer}), capture, device)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu", "torch": torch.__version__,
        "gaussians": len(next(iter(stages.values())).avatar.head.xyz), "resolution": config.dataset.resolution, "lpips": config.loss.lpips > 0,
        "deterministic": arguments.deterministic, "images": {},
    }
    for images in arguments.images:
        batches = [TrainingBatches(capture, images, 1, seed=0)[step].to(device) for step in range(BATCHES)]
        times: dict[str, list[float]] = {precision: [] for precision in stages}
        first = {}
        for precision, stage in stages.items():
            first[precision] = round(1e-3 * steps_in_a_row(stage, batches, 1, cuda), 1)
            steps_in_a_row(stage, batches, WARM_UP if cuda else arguments.steps, cuda)
        for _ in range(arguments.rounds):
            for precision, stage in stages.items():
                times[precision].append(steps_in_a_row(stage, batches, arguments.steps, cuda))
        rows: dict[str, Any] = {}
        for precision, stage in stages.items():
            rows[precision] = {"first_step_s": first[precision], "step_ms": spread(times[precision]),
                               "ms_per_image": round(spread(times[precision])["median"] / images, 3)}
            if cuda:
                def one_step(stage: GaussianHeadStage = stage, batches: list[HeadBatch] = batches) -> None:
                    stage.step(batches[0], 0)

                rows[precision] |= {"peak_gib": peak_gib(one_step), "profile": profile(one_step)}
        result["images"][images] = rows
    result["published"] = {"step_ms": PUBLISHED_MS, "gib": PUBLISHED_GIB}
    result["acceptance"] = acceptance(result) if cuda else []
    return result


def acceptance(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised against what was measured."""
    high = {images: rows["high"] for images, rows in result["images"].items() if "high" in rows}
    rows = [(f"{images} images: ms per image", high[images]["ms_per_image"], limit) for images, limit in LIMITS.items() if images in high]
    rows += [("1 image: peak GiB", high[1]["peak_gib"], MOST_GIB)] if 1 in high else []
    return [{"what": what, "value": value, "limit": limit, "passed": value <= limit} for what, value, limit in rows]


def main(given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="per step")
    parser.add_argument("--precisions", nargs="+", choices=("high", "highest"), default=["high", "highest"])
    parser.add_argument("--steps", type=int, default=32, help="per round: in as many, rows are found anew once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--deterministic", action="store_true", help="as trainer.deterministic trains: compare with a run without")
    parser.add_argument("--small", action="store_true", help="64 px and small networks, on the CPU")
    parser.add_argument("--output", type=Path, help="JSON file instead of stdout")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(sys.stderr):  # stdout is for JSON
        prepare(Path(temporary), arguments.small)
        result = measure(Path(temporary), arguments)
    text = json.dumps(result, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    run(main)
