"""The one training loop: data, device, cadence, held-out psnr, checkpoints, resume. It knows no loss."""

import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib.config import Config
from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import Picture
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError, NumericalError
from lib.metrics.psnr import psnr
from lib.training.checkpoint import read_checkpoint, save_checkpoint
from lib.training.recorder import Recorder, image_rows, write_seconds
from lib.training.runtime import is_terminal
from lib.training.stage import AbstractStage


class TrainerConfig(Config):
    """Section `trainer`."""

    steps: int | None = Field(None, gt=0, description="optimization steps; overrides epochs")
    epochs: int = Field(1, gt=0, description="passes over the training frames when steps is not given")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<n>")
    seed: int = Field(0, ge=0, description="of initial weights, sample order, views and augmentation")
    workers: int = Field(0, ge=0, description="processes that load images; 0 loads in the training process")
    final_lr_factor: float = Field(1.0, gt=0, le=1, description="learning rates fall exponentially to this fraction of their start")
    validate_every: int = Field(1000, gt=0, description="steps between held-out psnr and preview pictures")
    validate_count: int = Field(4, gt=0, description="held-out pictures per validation, spread over the frames")


def train(stage: AbstractStage, batches: TrainingBatches, config: TrainerConfig, recorder: Recorder, device: torch.device) -> None:
    """Trains `stage` up to the configured step, from its latest checkpoint if the run has one.

    Raises InputError for a checkpoint that does not belong to this run, NumericalError when a loss is not finite.
    """
    folder, name, frequency = recorder.config.run_folder, stage.name, recorder.config
    latest, best = folder / f"{name}_latest", folder / f"{name}_best"
    steps = config.steps or config.epochs * batches.steps_per_epoch
    start, best_psnr, before = 0, float("-inf"), 0.0
    began = time.perf_counter()
    stage.modules.to(device)
    if latest.exists():
        checkpoint = read_checkpoint(latest, name, "resume")
        if checkpoint.frames != batches.frames:
            different = sorted(set(checkpoint.frames) ^ set(batches.frames))
            raise InputError(f"{latest}: was trained on {len(checkpoint.frames)} frames, dataset.dataroot has {len(batches.frames)}; "
                             f"first difference: {different[0]}. Restore the frames or choose another recorder.name")
        _check_unchanged(checkpoint.config, stage.config.model_dump(mode="json"), latest)
        checkpoint.restore(stage)
        start, best_psnr, before = checkpoint.step, checkpoint.best_psnr, checkpoint.seconds
        if start >= steps:
            print(f"{name} '{recorder.config.name}' is finished: {latest} has {start} of {steps} steps. "
                  "Raise trainer.steps to go on, or choose another recorder.name")
            return
    recorder.open(stage.config)
    parameters = sum(p.numel() for p in stage.modules.parameters())
    recorder.line(f"{name}: {parameters:,} parameters, {len(batches.frames)} frames, steps {start} to {steps} on {device}"
                  + (f", resumed from {latest}" if start else ""))
    held_out = batches.held_out(config.validate_count)
    if not held_out:
        recorder.line("nothing is held out (dataset.held_out_cameras, dataset.held_out_sequences): psnr below is of training pictures")
    # A restored group holds a decayed rate, and what it started from.
    base_rates = {
        key: [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups] for key, optimizer in stage.optimizers.items()
    }

    def save(step: int, is_best: bool) -> None:
        _check_finite(stage, step, folder)
        numbered = [folder / f"{name}_step_{step:07d}"] if frequency.keep_last else []
        save_checkpoint(latest, stage, step, best_psnr, before + time.perf_counter() - began, batches.frames, numbered + ([best] if is_best else []))
        for old in sorted(folder.glob(f"{name}_step_*[0-9]"))[:-frequency.keep_last or None]:
            old.unlink()

    loader = DataLoader(batches, batch_size=None, sampler=range(start, steps), num_workers=config.workers)
    progress = tqdm(loader, total=steps, initial=start, desc=name, unit="step", mininterval=0.5 if is_terminal() else 15.0)
    waited, ready = 0.0, time.perf_counter()
    for step, batch in enumerate(progress, start=start):
        waited += time.perf_counter() - ready
        factor = config.final_lr_factor ** (step / steps)
        for key, optimizer in stage.optimizers.items():
            for group, rate in zip(optimizer.param_groups, base_rates[key], strict=True):
                group["initial_lr"], group["lr"] = rate, rate * factor
        report = stage.step(batch.to(device), step)
        done = step + 1
        if done % frequency.show_freq == 0 or done % frequency.save_freq == 0 or done == steps:
            values = {"total": float(report.total)} | {key: float(value) for key, value in report.terms.items()}
            bad = [key for key, value in values.items() if value != value or value in (float("inf"), float("-inf"))]
            if bad:
                raise NumericalError(f"{name}: step {done}, frames {batch.frame}, cameras {batch.view}: {', '.join(bad)} is not finite; "
                                     f"the last good checkpoint is kept in {folder}. Inspect these frames, "
                                     "or start again with lower learning rates under another recorder.name")
            recorder.scalars(values | {"lr_factor": factor}, done)
            progress.set_postfix({key: f"{value:.4f}" for key, value in values.items() if key == "total"}, refresh=False)
        is_best = False
        if done % config.validate_every == 0 or done == steps:
            score = _validate(stage, batches, held_out or batches.training_examples(config.validate_count), recorder, done, device)
            recorder.scalars({"psnr": score, "data_wait_share": waited / max(1e-9, progress.format_dict["elapsed"])}, done)
            recorder.line(f"step {done}/{steps}  loss {float(report.total):.5f}  psnr {score:.2f} dB ({'held out' if held_out else 'training'})")
            is_best = score > best_psnr
            best_psnr = max(score, best_psnr)
        if done % frequency.save_freq == 0 or done == steps or is_best:
            save(done, is_best)
        ready = time.perf_counter()
    recorder.line(f"{name}: finished {steps} steps; {latest}")
    recorder.close()
    write_seconds(recorder.config.result_folder, name, before + time.perf_counter() - began)


# Keys that may change between a run and its continuation; the rest define what is trained.
FREE_KEYS = ("gpu_id", "load_", "recorder.", "trainer.steps", "trainer.epochs", "trainer.device", "trainer.workers", "trainer.validate_",
             "dataset.dataroot", "dataset.cache_gb", "loss.lpips_weights")


def _check_unchanged(old: dict[str, Any], new: dict[str, Any], latest: Path, prefix: str = "") -> None:
    """Raises InputError naming the first key that a continued run must not change."""
    for key in sorted(old.keys() | new.keys()):
        name, before, now = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            _check_unchanged(before, now, latest, f"{name}.")
        elif before != now and not name.startswith(FREE_KEYS):
            raise InputError(f"{name} is {now}, but {latest} was trained with {before}. Restore the value to go on, "
                             "or choose another recorder.name for a new run")


def _check_finite(stage: AbstractStage, step: int, folder: Path) -> None:
    """A step with a finite loss can still break a weight: such a state is never saved over a good one."""
    for name, tensor in stage.modules.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"{stage.name}: after step {step} the weights {name} are not finite; the last good checkpoint is kept in "
                                 f"{folder}. Start again with lower learning rates under another recorder.name")


def _validate(stage: AbstractStage, batches: TrainingBatches, pictures: list[Picture], recorder: Recorder, step: int, device: torch.device) -> float:
    """Mean psnr of the pictures; also shows them: target above output."""
    batch: HeadBatch = batches.capture.pictures(pictures).to(device)
    with torch.no_grad():
        comparison = stage.compare(batch)
    recorder.picture("preview", image_rows([comparison.targets, comparison.images]).cpu(), step)
    return float(psnr(comparison.images.clamp(0.0, 1.0), comparison.targets).mean())
