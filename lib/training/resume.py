"""The same command again goes on where the run stopped: what may change in between, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import InputError
from lib.training.checkpoint import read_checkpoint
from lib.training.stage import AbstractStage

# Keys that may change between a run and its continuation, by how they start; all others define what is trained.
FREE_KEYS = (
    "gpu_id", "load_", "recorder.", "trainer.steps", "trainer.epochs", "trainer.device", "trainer.workers", "trainer.validate_",
    "dataset.dataroot", "dataset.cache_gb", "loss.lpips_weights",
)


@dataclass(frozen=True)
class Progress:
    """How far a run has come: optimization steps, best held-out psnr (dB), seconds of training."""

    step: int = 0
    best_psnr: float = float("-inf")
    seconds: float = 0.0


def resume(stage: AbstractStage, frames: list[str], latest: Path) -> Progress:
    """Puts the state of `latest` into the stage, where that checkpoint exists.

    Raises InputError when it belongs to other frames or another configuration, naming the first difference.
    """
    if not latest.exists():
        return Progress()
    checkpoint = read_checkpoint(latest, stage.name, "resume")
    if checkpoint.frames != frames:
        different = sorted(set(checkpoint.frames) ^ set(frames))
        raise InputError(f"{latest}: was trained on {len(checkpoint.frames)} frames, dataset.dataroot has {len(frames)}; "
                         f"first difference: {different[0]}. Restore the frames or choose another recorder.name")
    _check_unchanged(checkpoint.config, stage.config.model_dump(mode="json"), latest)
    checkpoint.restore(stage)
    return Progress(checkpoint.step, checkpoint.best_psnr, checkpoint.seconds)


def _check_unchanged(old: dict[str, Any], new: dict[str, Any], latest: Path, prefix: str = "") -> None:
    """Raises InputError naming the first key that a continued run must not change."""
    for key in sorted(old.keys() | new.keys()):
        name, before, now = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            _check_unchanged(before, now, latest, f"{name}.")
        elif before != now and not name.startswith(FREE_KEYS):
            raise InputError(f"{name} is {now}, but {latest} was trained with {before}. Restore the value to go on, "
                             "or choose another recorder.name for a new run")
