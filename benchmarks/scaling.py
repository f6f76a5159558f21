"""How the training of the Gaussian head scales with the number of processes: `python -m benchmarks.scaling` prints JSON.

It trains on 1, 2 and 4 GPUs of this machine, as many as there are; with --small on as many CPU processes as asked for, to try it. Head,
networks and resolution are those of NeRSemble 031; pictures are in the memory of the device, so that nothing but steps is timed. For one
count alone, also over machines: `torchrun ... -m benchmarks.scaling --folder FOLDER`, a folder that all processes see.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import spread, synchronize
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadStage, GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadStage, MeshHeadTrainConfig
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.losses.perceptual import Lpips
from lib.training.checkpoint import save_checkpoint
from lib.training.distributed import Exchange, agree_on, copy_from_first, count, is_first, rank
from lib.training.runtime import choose_device, run
from preprocess.demo_head import DemoHead
from preprocess.demo_subject import CAMERA_IDS, write_subject

ROOT = Path(__file__).resolve().parent.parent
PICTURE_SIZE, FRAMES = 64, 7  # px of the files, which are enlarged: what they show does not matter
GRID_CELLS, MOUTH_POINTS = 60, 3000  # of a sphere: 103,000 Gaussians
BATCHES = 3  # that take turns
LIMITS = {2: 0.9, 4: 0.85}  # efficiency at 4 images per process


def configuration(folder: Path, small: bool) -> dict[str, Any]:
    """What both stages share."""
    return {
        "optimize_pose": True, "lr_pose": 1e-5,
        "dataset": {"dataroot": str(folder / "subject"), "camera_ids": list(CAMERA_IDS), "original_resolution": PICTURE_SIZE,
                    "resolution": 64 if small else 2048},
        "meshheadmodule": {"grid_cells": 6 if small else GRID_CELLS, "dist_threshold_far": 0.25, **({"geo_mlp": [27, 32, 32, 36]} if small else {})},
        "recorder": {"name": "scaling", **{key: str(folder) for key in ("logdir", "checkpoint_path", "result_path")}},
    }


def head_configuration(folder: Path, small: bool, **start: str) -> GaussianHeadTrainConfig:
    """Stage 2, as published but for its data."""
    return GaussianHeadTrainConfig.model_validate(configuration(folder, small) | start | {
        "gaussianheadmodule": {"num_add_mouth_points": MOUTH_POINTS // (100 if small else 1), "dist_threshold_far": 0.25, "attributes_scale": 0.2},
        "supresmodule": {"network_capacity": 4 if small else 32},
        "loss": {"lpips": 0.0 if small else 0.1, "lpips_weights": str(folder)},
    })


def prepare(folder: Path, small: bool) -> None:
    """A subject and a head that are not trained, and perceptual weights of random numbers."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() and not small else "cpu")
    demo_head = DemoHead("neutral", "lps", "iris_brown", texture_size=2 * PICTURE_SIZE, device=device)
    write_subject(demo_head, folder / "subject", PICTURE_SIZE, FRAMES, seed=0)
    weights = {name: value.abs() for name, value in Lpips("vgg").state_dict().items()}
    for file, prefix in (("vgg16.pth", "features."), ("lpips_vgg.pth", "lin")):
        torch.save({name: value for name, value in weights.items() if name.startswith(prefix)}, folder / file)
    mesh_config = MeshHeadTrainConfig.model_validate(configuration(folder, small))
    capture = HeadCapture(mesh_config.dataset)
    save_checkpoint(folder / "start" / "mesh", MeshHeadStage(mesh_config, capture, device), 0, 0.0, 0.0, capture.record(), [])
    head = GaussianHeadStage(head_configuration(folder, small, load_meshhead_checkpoint=str(folder / "start" / "mesh")), capture, device)
    save_checkpoint(folder / "start" / "head", head, 0, 0.0, 0.0, capture.record(), [])


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per step of the processes that run now, for each number of images per process."""
    _tell("start")
    device = choose_device("cpu" if arguments.small else "auto")
    config = head_configuration(folder, arguments.small, load_gaussianhead_checkpoint=str(folder / "start" / "head"))
    capture = HeadCapture(config.dataset)
    stage = GaussianHeadStage(config, capture, device)
    copy_from_first(stage.modules.state_dict().values())
    rows = {}
    for images in arguments.images:
        batches = TrainingBatches(capture, images * count(), 1, seed=0).share(rank(), count(), 1)
        loaded = [batches[step].to(device) for step in range(BATCHES)]
        times: dict[str, list[float]] = {"step_ms": [], "without_exchange_ms": []}
        for number in range(arguments.rounds + 1):  # the first does not count
            for name, exchange in (("step_ms", Exchange(count())), ("without_exchange_ms", Exchange())):
                stage.exchange = exchange
                agree_on(f"{images} {number} {name}", "this benchmark")  # all begin together
                _tell(f"{images} images, round {number}, {name}")
                synchronize(device.type == "cuda")
                began = time.perf_counter()
                for step in range(arguments.steps):
                    stage.step(loaded[step % BATCHES], step)
                synchronize(device.type == "cuda")
                times[name] += [1e3 * (time.perf_counter() - began) / arguments.steps] if number else []
        spreads = {name: spread(values) for name, values in times.items()}
        rows[images] = spreads | {"images_per_second": round(1e3 * images * count() / spreads["step_ms"]["median"], 3)}
    return {
        "processes": count(), "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "torch": torch.__version__,
        "gaussians": len(stage.avatar.head.xyz), "resolution": config.dataset.resolution, "images_per_process": rows,
    }


def _tell(what: str) -> None:
    if is_first():
        print(f"{time.strftime('%H:%M:%S')} {count()} processes: {what}", file=sys.stderr, flush=True)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Efficiency: images per second of n processes over n times those of one, with as many images per process (weak) or per step (strong)."""
    found = {(row["processes"], int(images)): times["images_per_second"] for row in results for images, times in row["images_per_process"].items()}
    weak = {f"{n} x {images}": round(speed / (n * found[1, images]), 3) for (n, images), speed in found.items() if n > 1 and (1, images) in found}
    strong = {f"{n * images} / {n}": round(speed / (n * found[1, n * images]), 3)
              for (n, images), speed in found.items() if n > 1 and (1, n * images) in found}
    acceptance = {f"{n} processes": {"limit": limit, "found": weak[f"{n} x 4"], "passed": weak[f"{n} x 4"] >= limit}
                  for n, limit in LIMITS.items() if f"{n} x 4" in weak}
    return {"weak_efficiency": weak, "strong_efficiency": strong, "acceptance": acceptance, "results": results}


def launch(folder: Path, processes: int, arguments: list[str]) -> dict[str, Any]:
    """What torchrun's processes measure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "benchmarks.scaling",
               "--folder", str(folder), *arguments]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise RuntimeError(f"{processes} processes failed: what they say stands above")
    return json.loads(result.stdout.splitlines()[-1])


def main(given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", help="counts to compare (1, 2 and 4, up to the number of GPUs)")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4], help="per process and step")
    parser.add_argument("--steps", type=int, default=20, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="64 px and small networks, on the CPU")
    parser.add_argument("--folder", type=Path, help="of what is trained; prepared if it is empty")
    parser.add_argument("--output", type=Path, help="JSON file instead of stdout")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for JSON
            if is_first() and not (folder / "start" / "head").exists():
                prepare(folder, arguments.small)
            agree_on(str(arguments), "the arguments")
            result = measure(folder, arguments) if "LOCAL_RANK" in os.environ else None
        if result is not None:
            print(json.dumps(result))
            return
        here = 2 if arguments.small else torch.cuda.device_count()
        counts = arguments.processes or [number for number in (1, 2, 4) if number <= here]
        passed_on = ["--images", *map(str, arguments.images), "--steps", str(arguments.steps), "--rounds", str(arguments.rounds),
                     *(["--small"] if arguments.small else [])]
        text = json.dumps(summary([launch(folder, processes, passed_on) for processes in counts]), indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    run(main, together=True)
