"""The one training loop: data, device, cadence, held-out psnr, checkpoints, stopping. It knows no loss."""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from tqdm import tqdm

from lib.config import Config
from lib.datasets.batches import HeadBatch
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError, NumericalError, Stopped
from lib.files import RunLock
from lib.metrics.psnr import psnr
from lib.training import distributed
from lib.training.checkpoint import remove_leftovers, save_checkpoint
from lib.training.loading import load, loading_threads
from lib.training.profiling import FEWEST, StepProfiler
from lib.training.recorder import Recorder, image_rows, shrink, write_seconds
from lib.training.rehearsal import rehearse
from lib.training.resume import Progress, resume
from lib.training.runtime import StopSignals, is_terminal, memory_in_use
from lib.training.stage import AbstractStage

REHEARSE_STEPS = 20  # a shorter run is not worth an estimate
LONG_WAIT = 0.2  # share of the time: waiting for data longer is told


class TrainerConfig(Config):
    """Section `trainer`."""

    steps: int | None = Field(None, gt=0, description="optimization steps; overrides epochs")
    epochs: int = Field(1, gt=0, description="passes over the training frames when steps is not given")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<n>")
    seed: int = Field(0, ge=0, description="of initial weights, sample order, views and augmentation")
    deterministic: bool = Field(False, description=(
        "on CUDA, too, equal runs are equal to the bit (same kind of GPU, same versions); slower"))
    accumulate: int = Field(1, gt=0, description="passes in which a process makes its share of a batch: less memory, the same step")
    workers: int | None = Field(None, ge=0, description=(
        "threads of each process that load images ahead of their step; 0 loads each at its step. Left out: as many as there are cores for, at most "
        "8, on CUDA; 0 on a CPU"))
    final_lr_factor: float = Field(1.0, gt=0, le=1, description="learning rates fall exponentially to this fraction of their start")
    validate_every: int = Field(1000, gt=0, description="steps between held-out psnr and preview pictures")
    validate_count: int = Field(4, gt=0, description="held-out pictures per validation, spread over the frames")


def train(
    stage: AbstractStage, batches: TrainingBatches, config: TrainerConfig, recorder: Recorder, device: torch.device, profile: bool = False
) -> None:
    """Trains `stage` up to the configured step, from its latest checkpoint if the run has one.

    Processes of one run share every batch; the first one alone writes, shows, validates and, with `profile`, tells where a step's time goes.
    Raises InputError for a checkpoint that does not belong to this run, a folder that another run writes or a batch that cannot be shared,
    NumericalError when a loss, gradient or weight is not finite, Stopped after a signal, with everything saved, OtherFailed for the first
    process where another one ends.
    """
    first = distributed.is_first()
    share = batches.share(distributed.rank(), distributed.count(), config.accumulate)
    steps = config.steps or batches.steps_of(config.epochs)
    stage.modules.to(device)
    with RunLock(recorder.config.run_folder / f"{stage.name}.lock") if first else contextlib.nullcontext(), StopSignals() as signals:
        latest = recorder.config.run_folder / f"{stage.name}_latest"
        progress = resume(stage, batches.capture.record(), latest)
        if first:
            tidy(recorder, stage.name, progress)  # after a kill
        if progress.step >= steps:
            print(f"{stage.name} '{recorder.config.name}' is finished: {latest} has {progress.step} steps, trainer.steps or epochs ask for {steps}. "
                  "Raise trainer.steps to go on, or choose another recorder.name")
            return
        if first:
            recorder.open(stage.config)
        try:
            _Loop(stage, share, config, recorder, device, steps, profile).run(progress, signals)
        finally:
            recorder.close()


class _Loop:
    """One continuous stretch of training."""

    def __init__(
        self, stage: AbstractStage, batches: TrainingBatches, config: TrainerConfig, recorder: Recorder, device: torch.device, steps: int,
        profile: bool,
    ) -> None:
        self.stage, self.batches, self.config, self.recorder, self.device, self.steps = stage, batches, config, recorder, device, steps
        self.first = distributed.is_first()
        self.workers = loading_threads(config.workers, device, distributed.local_count())
        self.profile = profile and self.first
        self.folder = recorder.config.run_folder
        self.data = dataclasses.replace(batches.capture.record(), earlier=stage.earlier)
        self.held_out = batches.held_out(config.validate_count)
        self.shown = self.held_out or batches.training_examples(config.validate_count)
        # A restored group holds a decayed rate, and what it started from.
        self.base_rates = {
            key: [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups] for key, optimizer in stage.optimizers.items()
        }

    def run(self, start: Progress, signals: StopSignals) -> None:
        """Steps, in order, until the last or a signal."""
        if self.first:
            self._announce(start)
        self._begin_alike(start)
        self.stage.exchange = distributed.Exchange(distributed.count(), lambda: signals.received)
        self.progress = start
        try:
            pinned = self.device.type == "cuda"
            with (contextlib.closing(load(self.batches, range(start.step, self.steps), self.workers, pinned)) as batches,
                  contextlib.closing(self._profiler(start.step)) as profiler):
                self._run(start, batches, profiler, signals)
            distributed.wait_for_all()  # what the first one saves is there for whatever follows
        except (InputError, distributed.OtherFailed):  # of a picture that cannot be used, perhaps after hours: nothing is lost
            if self.first and self.progress.step > start.step:
                self._save(self.progress, [])
                self.recorder.line(f"{self.stage.name}: step {self.progress.step} of {self.steps} is saved; mend what the error says and go on")
            raise

    def _profiler(self, start: int) -> StepProfiler:
        """Of the first process, where one is wanted; otherwise of no steps."""
        profiler = StepProfiler(self.recorder.config.result_folder, self.stage.name, self.device, start, self.steps if self.profile else start)
        if self.profile and profiler.count == 0:
            self.recorder.line(f"{self.stage.name}: profile: needs {FEWEST} steps, this run has {self.steps - start}: nothing is measured; "
                               "raise trainer.steps")
        return profiler

    def _run(self, start: Progress, batches: Iterator[HeadBatch], profiler: StepProfiler, signals: StopSignals) -> None:
        frequency, name = self.recorder.config, self.stage.name
        bar = tqdm(batches, total=self.steps, initial=start.step, desc=name, unit="step", mininterval=0.5 if is_terminal() else 15.0,
                   disable=not self.first)
        began, waited, ready = time.perf_counter(), 0.0, time.perf_counter()
        for step, batch in enumerate(bar, start=start.step):
            waited += time.perf_counter() - ready
            factor = self._set_rates(step)
            watch = self.stage.watch
            with self._explained(step):
                if watch is not None:
                    watch.step = step + 1
                report = self.stage.step(batch.to(self.device), step)
                if watch is not None and step + 1 == self.steps:
                    watch.settle()
            for line in watch.lines() if watch is not None and self.first else ():
                self.recorder.line(f"{name}: {line}")
            done = step + 1
            self.progress = dataclasses.replace(self.progress, step=done, seconds=start.seconds + time.perf_counter() - began)
            measured = profiler.after(done)
            if measured is not None:
                self.recorder.line(f"{name}: {measured}")
            if self.first and (done % frequency.show_freq == 0 or done == self.steps):
                values = {"total": float(report.total)} | {key: float(value) for key, value in report.terms.items()}
                skipped = {} if watch is None else {"skipped_steps": watch.skipped}
                self.recorder.scalars(values | {"lr_factor": factor} | skipped | memory_in_use(self.device), done)
                bar.set_postfix({"total": f"{values['total']:.4f}"}, refresh=False)
            copies: list[Path] = []
            if self.first and (done % self.config.validate_every == 0 or done == self.steps):
                score = self._validate(done)
                share = waited / max(1e-9, time.perf_counter() - began)
                self.recorder.scalars({"psnr": score, "data_wait_share": share}, done)
                self.recorder.line(f"step {done}/{self.steps}  loss {float(report.total):.5f}  psnr {score:.2f} dB "
                                   f"({'held out' if self.held_out else 'training'}){self._advice(share)}")
                if score > self.progress.best_psnr:
                    self.progress = dataclasses.replace(self.progress, best_psnr=score)
                    copies.append(self.folder / f"{name}_best")
            if self.first and (done % frequency.save_freq == 0 or done == self.steps or copies):
                if frequency.keep_last:
                    copies.append(self.folder / f"{name}_step_{done:07d}")
                self._save(self.progress, copies)
            stop = self.stage.exchange.stop
            if stop is not None and done < self.steps:
                if self.first and done % frequency.save_freq:
                    self._save(self.progress, [])
                self.recorder.line(f"{name}: stopped by a signal, step {done} of {self.steps} is saved")
                raise Stopped(f"stopped at step {done} of {self.steps}, which is saved; the same command again goes on", stop)
            ready = time.perf_counter()
        if self.first:
            share = waited / max(1e-9, time.perf_counter() - began)
            self.recorder.line(f"{name}: finished {self.steps} steps, {share:.0%} of the time waiting for data; {self.folder / f'{name}_latest'}")

    def _advice(self, share: float) -> str:
        """What to do where training waits for data."""
        if share <= LONG_WAIT:
            return ""
        return (f"; {share:.0%} of the time went into waiting for data: raise trainer.workers (now {self.workers}) "
                f"or dataset.cache_gb (now {self.batches.capture.config.cache_gb:g})")

    def _announce(self, start: Progress) -> None:
        name, remaining = self.stage.name, self.steps - start.step
        parameters = sum(p.numel() for p in self.stage.modules.parameters())
        resumed = f", resumed from {self.folder / f'{name}_latest'}" if start.step else ""
        processes = f", shared by {distributed.count()} processes" if distributed.count() > 1 else ""
        self.recorder.line(f"{name}: {parameters:,} parameters, {len(self.batches.capture.frames)} frames, "
                           f"steps {start.step} to {self.steps} on {self.device}{processes}{resumed}")
        for remark in self.stage.remarks:
            self.recorder.line(remark)
        if not self.held_out:
            self.recorder.line("nothing is held out (dataset.held_out_cameras, dataset.held_out_sequences): psnr below is of training pictures")
        for picture in self.shown:  # one that cannot be used is found now, not at the first validation; they may be too many for the memory
            self.batches.capture.pictures([picture])
        if remaining >= REHEARSE_STEPS:
            with self._explained(start.step):
                cost = rehearse(self.stage, self.batches, start.step, self.device)
            memory = "" if cost.memory is None else f" and {cost.memory / 1e9:.1f} GB"
            self.recorder.line(f"{name}: a step takes {cost.seconds:.3g} s{memory}; {remaining} steps about "
                               f"{_duration(remaining * cost.seconds)}, without loading, validation and saving")

    def _begin_alike(self, start: Progress) -> None:
        """Every process starts with the weights of the first one, which on GPUs differ in the last digits. Raises InputError where more differs."""
        tensors = dict(self.stage.modules.state_dict())
        for key, optimizer in self.stage.optimizers.items():
            for row, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{key}.{row}.{name}": value for name, value in moments.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        state = repr((start.step, self.stage.config.model_dump(mode="json"), self.data, shapes))
        distributed.agree_on(hashlib.sha256(state.encode()).hexdigest(), "the configuration, data and checkpoint")
        distributed.copy_from_first(tensors.values())

    def _set_rates(self, step: int) -> float:
        factor = self.config.final_lr_factor ** (step / self.steps)
        for key, optimizer in self.stage.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.base_rates[key], strict=True):
                group["initial_lr"], group["lr"] = rate, rate * factor
        return factor

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Errors of a step get what the stage cannot know: which step, which pictures, what to do."""
        try:
            yield
        except (NumericalError, InputError) as error:
            broken = self.stage.broken_weights()
            if isinstance(error, InputError) and not broken:
                raise
            frames, cameras = self.batches.shown(step)
            cause = f"the weights {broken} are not finite" if broken else str(error)
            raise NumericalError(
                f"{self.stage.name}: step {step + 1}, frames {' '.join(frames)}, cameras {' '.join(cameras)}: {cause}. {self._kept()} "
                "Inspect these frames and the checkpoint it started from, or start again with lower learning rates under another recorder.name"
            ) from error
        except torch.OutOfMemoryError as error:
            raise InputError(f"{self.stage.name}: step {step + 1} does not fit into the memory of {self.device} ({str(error).splitlines()[0]}); "
                             "raise trainer.accumulate, lower dataset.resolution or batch_size, or make the networks smaller") from error

    def _validate(self, done: int) -> float:
        """Mean psnr of held-out pictures (of training pictures where nothing is held out); also shows them, target above output."""
        scores, columns = [], []
        for picture in self.shown:  # one by one: memory stays below that of a training step
            with torch.no_grad():
                comparison = self.stage.compare(self.batches.capture.pictures([picture]).to(self.device))
            scores.append(float(psnr(comparison.images.clamp(0.0, 1.0), comparison.targets)))
            columns.append([shrink(comparison.targets).cpu(), shrink(comparison.images).cpu()])
        self.recorder.picture("preview", image_rows([torch.cat(list(row)) for row in zip(*columns, strict=True)]), done)
        return sum(scores) / len(scores)

    def _save(self, progress: Progress, copies: list[Path]) -> None:
        """Replaces the latest checkpoint, unless a weight is broken: such a state is never saved over a good one."""
        name = self.stage.name
        broken = self.stage.broken_weights()
        if broken:
            raise NumericalError(f"{name}: after step {progress.step} the weights {broken} are not finite. {self._kept()} "
                                 "Start again with lower learning rates under another recorder.name")
        save_checkpoint(self.folder / f"{name}_latest", self.stage, progress.step, progress.best_psnr, progress.seconds,
                        self.data, copies)
        tidy(self.recorder, name, progress)

    def _kept(self) -> str:
        latest = self.folder / f"{self.stage.name}_latest"
        return f"The last good checkpoint is kept: {latest}." if latest.exists() else "Nothing was saved."


def tidy(recorder: Recorder, stage: str, progress: Progress) -> None:
    """What goes with the latest checkpoint: the time it took, no more older ones than wanted, and nothing that was begun before it."""
    folder, keep = recorder.config.run_folder, recorder.config.keep_last
    remove_leftovers(folder, stage)
    if progress.step:
        write_seconds(recorder.config.result_folder, stage, progress.seconds)
        prefix = f"{stage}_step_"
        steps = sorted(step for path in folder.glob(f"{prefix}*") if (step := path.name.removeprefix(prefix)).isdecimal())
        past = [step for step in steps if int(step) <= progress.step]  # later ones are there where somebody went back to an older one
        for old in past[:-keep or None]:
            (folder / f"{prefix}{old}").unlink()


def _duration(seconds: float) -> str:
    """As a person says it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
