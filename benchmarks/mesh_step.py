"""How long a step of stage 1 takes and where the time goes: `python -m benchmarks.mesh_step`, one JSON object.

Settings are those of a YAML file, the published one if none is named; where its `dataset.dataroot` does not exist, the demo subject is
rendered for it into a temporary folder. Without a GPU times are of the CPU, and kernels none.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import WAITS, spread, synchronize
from lib.avatars.gaussian_head_avatar import mesh_head, mesh_stage
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHead
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadStage, MeshHeadTrainConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.training.runtime import choose_device, seed_everything
from preprocess.demo_head import DemoHead
from preprocess.demo_subject import SEQUENCES, write_subject

PUBLISHED = Path("config/train_meshhead_N031.yaml")
DEMO_SIZE = 256  # pixels
# The published lists are for 64 expression coefficients; these are then derived.
DEMO_OVERRIDES = (
    f"dataset.original_resolution={DEMO_SIZE}", "meshheadmodule.exp_color_mlp=[]", "meshheadmodule.exp_deform_mlp=[]",
    "meshheadmodule.pose_color_mlp=[]", "meshheadmodule.pose_deform_mlp=[]",
)
BACKWARD, OPTIMIZER, OTHER = "backward", "optimizer", "other"
ON_DEVICE = torch.autograd.DeviceType.CUDA
WOULD_WAIT = {"aten::nonzero", "aten::_local_scalar_dense", "aten::_unique2"}  # of a GPU, for numbers that the host needs


def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call as a region of the profile."""
    def within(*arguments: Any, **keywords: Any) -> Any:
        with record_function(name):
            return call(*arguments, **keywords)

    return within


@contextlib.contextmanager
def regions(stage: MeshHeadStage) -> Iterator[tuple[str, ...]]:
    """Marks the parts of a step, none of which is inside another; their names."""
    head, (adam,) = stage.head, stage.optimizers.values()
    moving = head.exp_color, head.pose_color, head.exp_deform, head.pose_deform
    networks = [(network, "forward", "colour and deformation MLPs") for network in moving]
    places: list[tuple[object, str, str]] = [
        (MeshHead, "_signs", "signs of the sdf"), (mesh_head, "find_crossings", "crossings"), (MeshHead, "_fields", "geometry MLP"),
        (mesh_head, "zero_level", "zero level"), (mesh_head, "control", "control weights"), *networks,
        (mesh_stage, "render_mesh", "rasterization"), (MeshHeadStage, "_terms", "losses"), (torch.Tensor, "backward", BACKWARD),
        (adam, "step", OPTIMIZER),
    ]
    with contextlib.ExitStack() as stack:
        for owner, attribute, name in places:
            stack.enter_context(mock.patch.object(owner, attribute, marked(name, getattr(owner, attribute))))
        yield tuple(dict.fromkeys(name for _, _, name in places))


def profile(stage: MeshHeadStage, batches: list[HeadBatch], cuda: bool) -> dict[str, Any]:
    """Per step: milliseconds of the host and of the device by region, kernels, operations, waits of the host for the device."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with regions(stage) as names:
        stage.step(batches[0], 0)
        synchronize(cuda)
        with torch.profiler.profile(activities=activities) as profiler:
            for step, batch in enumerate(batches):
                with record_function("step"):
                    stage.step(batch, step)
            synchronize(cuda)
    host, device, kernels, calls = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    launched = 0
    for event in profiler.events():
        if event.device_type == ON_DEVICE:
            if event.name not in (*names, "step") and not event.name.startswith("Optimizer."):  # regions are also drawn on the device
                kernels[event.name[:80]] += event.device_time_total
                launched += 1
            continue
        calls[event.name] += 1
        if event.name in (*names, "step"):
            host[event.name] += event.cpu_time_total
            device[event.name] += event.device_time_total
    steps, busy = len(batches), sum(kernels.values())
    host[OTHER] = host["step"] - sum(host[name] for name in names)
    device[OTHER] = busy - sum(device[name] for name in names)
    return {
        "regions_ms": {
            name: {"host": round(host[name] / steps / 1e3, 3), "device": round(device[name] / steps / 1e3, 3)} for name in (*names, OTHER)
        },
        "device_ms": round(busy / steps / 1e3, 3), "kernels": launched / steps,
        "operations": sum(count for name, count in calls.items() if name.startswith("aten::")) / steps,
        "host_waits": sum(count for name, count in calls.items() if name in (WAITS if cuda else WOULD_WAIT)) / steps,
        "largest_kernels_us": {name: round(value / steps, 1) for name, value in kernels.most_common(16)},
    }


def timed(stage: MeshHeadStage, batches: list[HeadBatch], steps: int, cuda: bool) -> dict[str, Any]:
    """Milliseconds of single steps, waited for, and of steps in a row."""
    single = []
    for step in range(steps):
        synchronize(cuda)
        start = time.perf_counter()
        stage.step(batches[step % len(batches)], step)
        synchronize(cuda)
        single.append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    for step in range(steps):
        stage.step(batches[step % len(batches)], step)
    synchronize(cuda)
    return {"single_ms": spread(single), "in_a_row_ms": round(1e3 * (time.perf_counter() - start) / steps, 3)}


def measure(config: MeshHeadTrainConfig, steps: int, settle: int) -> dict[str, Any]:
    """Everything, after `settle` steps of training."""
    device = choose_device(config.trainer.device, config.gpu_id)
    cuda = device.type == "cuda"
    seed_everything(config.trainer.seed, device)
    capture = HeadCapture(config.dataset)
    sampled = TrainingBatches(capture, config.batch_size, config.dataset.num_sample_view, config.trainer.seed)
    batches = [sampled[step].to(device) for step in range(4)]
    stage = MeshHeadStage(config, capture, device)
    for step in range(settle):
        stage.step(batches[step % len(batches)], step)
    with FlopCounterMode(display=False) as counter:
        stage.step(batches[0], 0)
    with torch.no_grad():
        surface = stage.head.neutral_surface()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu", "torch": torch.__version__, "threads": torch.get_num_threads(),
        "grid_vertices": len(stage.head.tet_verts), "tets": len(stage.head.tets), "subdivide": stage.head.config.subdivide,
        "vertices": len(surface.vertices), "faces": len(surface.faces), "views": len(batches[0].flat_camera().intrinsics),
        "resolution": config.dataset.resolution, "products_gflop": round(counter.get_total_flops() / 1e9, 3),
        "step": timed(stage, batches, steps, cuda), "profile": profile(stage, batches, cuda),
    }
    if cuda:
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def main(arguments: list[str] | None = None) -> None:
    """Prints or writes one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mesh_step", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=PUBLISHED, help="YAML of stage 1 (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="measured steps (%(default)s)")
    parser.add_argument("--settle", type=int, default=200, help="steps of training before (%(default)s)")
    parser.add_argument("--output", type=Path, help="file for the JSON instead of stdout")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as of train_meshhead.py")
    options = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        # Never in the folder of a real run, from which the stage would go on.
        overrides = [*options.overrides, f"recorder.checkpoint_path={folder}", "load_meshhead_checkpoint=null"]
        config = read_config(Arguments(options.config, tuple(overrides)), MeshHeadTrainConfig)
        if not config.dataset.dataroot.exists():
            device = choose_device(config.trainer.device, config.gpu_id)
            write_subject(DemoHead("neutral", "lps", "iris_brown", 2 * DEMO_SIZE, device=device), Path(folder) / "subject", DEMO_SIZE,
                          len(SEQUENCES), seed=0)
            overrides = [*DEMO_OVERRIDES, *overrides, f"dataset.dataroot={folder}/subject"]
            config = read_config(Arguments(options.config, tuple(overrides)), MeshHeadTrainConfig)
        result = measure(config, options.steps, options.settle)
    text = json.dumps(result, indent=1)
    if options.output is None:
        print(text, flush=True)
    else:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
