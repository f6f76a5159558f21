"""The same command again goes on where the run stopped: what may change in between, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.datasets.driving import DrivingConfig
from lib.datasets.head_capture import CaptureRecord, HeadCaptureConfig
from lib.errors import InputError
from lib.provenance import provenance
from lib.training.checkpoint import Checkpoint, read_checkpoint
from lib.training.stage import AbstractStage

# Keys that may change between a run and its continuation, by how they start; all others define what is trained.
FREE_KEYS = (
    "gpu_id", "load_", "recorder.", "trainer.steps", "trainer.epochs", "trainer.device", "trainer.accumulate", "trainer.precision", "trainer.compile",
    "trainer.deterministic", "trainer.workers", "trainer.validate_", "dataset.dataroot", "dataset.cache_gb", "loss.lpips_weights", "evaluation",
)
# Keys of section `dataset` that only reenactment reads.
UNUSED_KEYS = {f"dataset.{key}" for key in DrivingConfig.model_fields.keys() - HeadCaptureConfig.model_fields.keys()}


@dataclass(frozen=True)
class Progress:
    """How far a run has come: optimization steps, best held-out psnr (dB), seconds of training."""

    step: int = 0
    best_psnr: float = float("-inf")
    seconds: float = 0.0


def resume(stage: AbstractStage, data: CaptureRecord, latest: Path) -> Progress:
    """Puts the state of `latest` into the stage, where that checkpoint exists.

    Raises InputError when it belongs to other data or another configuration, naming the first difference.
    """
    if not latest.exists():
        return Progress()
    checkpoint = read_checkpoint(latest, stage.name, "resume")
    _check_same_data(checkpoint, data)
    now = stage.config.model_dump(mode="json")
    try:
        # Keys that are newer than the checkpoint had their defaults.
        before = type(stage.config).model_validate(_with_unused_of(checkpoint.config, now)).model_dump(mode="json")
    except ValidationError as error:
        raise InputError(f"{latest}: its configuration is not one that this code knows ({error.errors()[0]['msg']}); "
                         "choose another recorder.name for a new run") from error
    _check_unchanged(before, now, latest)
    checkpoint.restore(stage)
    stage.earlier = () if checkpoint.data is None else checkpoint.data.earlier
    here = provenance(next(stage.modules.parameters()).device)
    different = [] if checkpoint.made_by is None else here.differences(checkpoint.made_by)
    if different:
        print(f"resume: {latest} was made with {'; '.join(different)}: what follows need not be equal to the bit to a run without interruption")
    best, (was, count) = checkpoint.best_psnr, (config["trainer"]["validate_count"] for config in (before, now))
    if was != count:
        print(f"resume: trainer.validate_count is {count}, it was {was}: psnr is of other pictures now, "
              f"so {stage.name}_best is chosen anew")
        best = Progress.best_psnr
    return Progress(checkpoint.step, best, checkpoint.seconds)


def _with_unused_of(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a checkpoint with the present values of what no training reads: older code may have allowed others there."""
    unused = {key.removeprefix("dataset.") for key in UNUSED_KEYS}
    dataset = {key: value for key, value in old.get("dataset", {}).items() if key not in unused}
    dataset |= {key: value for key, value in new.get("dataset", {}).items() if key in unused}
    return old | {key: value for key, value in (("dataset", dataset), ("evaluation", new.get("evaluation"))) if key in new}


def _check_same_data(checkpoint: Checkpoint, data: CaptureRecord) -> None:
    old = checkpoint.data
    way_out = "Restore the data to go on, or choose another recorder.name for a new run"
    if old is None or old == data:
        return
    for what, before, now in (
        ("frames", old.frames, data.frames), ("training frames", old.train_frames, data.train_frames),
        ("training cameras", old.train_cameras, data.train_cameras),
    ):
        if before != now:
            different = sorted(set(before) ^ set(now)) or ["another order"]
            raise InputError(f"{checkpoint.path}: was trained with {len(before)} {what}, dataset.dataroot has {len(now)}; "
                             f"first difference: {different[0]}. {way_out}")
    changed = next(frame for frame, one, other in zip(old.frames, old.digests, data.digests, strict=True) if one != other)
    raise InputError(f"{checkpoint.path}: was trained with another frame {changed} (parameters, landmarks) than dataset.dataroot has now; is that "
                     f"another subject, or tracked anew? {way_out}")


def _check_unchanged(old: dict[str, Any], new: dict[str, Any], latest: Path, prefix: str = "") -> None:
    """Raises InputError naming the first key that a continued run must not change."""
    for key in sorted(old.keys() | new.keys()):
        name, before, now = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            _check_unchanged(before, now, latest, f"{name}.")
        elif before != now and not name.startswith(FREE_KEYS) and name not in UNUSED_KEYS:
            raise InputError(f"{name} is {now}, but {latest} was trained with {before}. Restore the value to go on, "
                             "or choose another recorder.name for a new run")
