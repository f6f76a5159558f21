"""What a run will cost, measured on a step that is undone."""

import io
import sys
import time
from dataclasses import dataclass

import torch

from lib.datasets.sampler import TrainingBatches
from lib.training.stage import AbstractStage
from lib.training.watch import NumberWatch

SLOW_STEP_S = 2.0  # on a CPU a first step quicker than this is repeated: it also pays for what happens only once
TRIES = 4  # on a GPU, where compilers work before the first steps


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step without loading; highest memory so far in bytes, of the device or, on a CPU, of this process (None: unknown)."""

    seconds: float
    memory: int | None


def rehearse(stage: AbstractStage, batches: TrainingBatches, step: int, device: torch.device) -> StepCost:
    """Takes the step for real, a few times, then puts weights and optimizers back as they were."""
    before = io.BytesIO()  # in the memory of the host, so that it does not count on a GPU
    torch.save([stage.modules.state_dict(), {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()}], before)
    batch = batches[step].to(device)
    seconds = float("inf")
    for _ in range(TRIES if device.type == "cuda" else 2):
        began = time.perf_counter()
        stage.step(batch, step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = min(seconds, time.perf_counter() - began)
        if device.type != "cuda" and seconds > SLOW_STEP_S:
            break
    for optimizer in stage.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    before.seek(0)
    modules, optimizers = torch.load(before, map_location="cpu", weights_only=True)
    stage.modules.load_state_dict(modules)
    for name, optimizer in stage.optimizers.items():
        optimizer.load_state_dict(optimizers[name])
    if stage.watch is not None:
        stage.watch = NumberWatch()  # what was skipped here is no step of the run
    return StepCost(seconds, _peak_memory(device))


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)  # also what recorded graphs hold
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
