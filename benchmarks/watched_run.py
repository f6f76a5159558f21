"""A training watched from outside: `python -m benchmarks.watched_run --config FILE [...] [key=value ...]` prints JSON.

Runs train_gaussianhead.py and samples, every second, its resident memory, open files and threads, and the memory in use on the GPU. What comes
before the second checkpoint is warm-up: compilers, the cache of frames filling (dataset.cache_gb bounds it), and the second validation, as by then
training has taken some of the pieces that torch kept from the first. With
--viewer FILE a viewer of the run's checkpoint comes and goes, with no browser at it, and steps with and without it are compared.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.errors import InputError
from lib.training.runtime import run

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 0.2  # of the samples, at least
FEWEST = 8  # values after it, for a growth that means something
SHOWN = 40  # samples in the result
SLOWER = 0.03  # by a viewer
SHOW_EVERY = 20  # steps; one time is of so many
MARK = "viewer: open "


@dataclass(frozen=True)
class Sample:
    """At one moment (time.time()): resident bytes, open files, threads, MiB in use on the GPU (0 without one)."""

    time: float
    bytes: int
    files: int
    threads: int
    device_mib: int


@dataclass(frozen=True)
class Turn:
    """A viewer's life, by time.time(): started, ready, stopped."""

    started: float
    ready: float
    stopped: float


def sample(process: int, device: str) -> Sample:
    """Of a process that may end meanwhile: then raises OSError."""
    folder = Path("/proc") / str(process)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    if "VmRSS" not in status:  # it has ended, and nobody has taken note yet
        raise ProcessLookupError(process)
    used = 0
    if device:
        said = subprocess.run(["nvidia-smi", f"--id={device}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, check=True).stdout
        used = int(said)
    return Sample(time.time(), int(status["VmRSS"].split()[0]) << 10, len(os.listdir(folder / "fd")), int(status["Threads"]), used)  # noqa: PTH208


def growth(values: Sequence[float]) -> float:
    """Of the least of the last quarter over that of the first."""
    quarter = max(1, len(values) // 4)
    first, last = min(values[:quarter]), min(values[-quarter:])
    return (last - first) / first if first else 0.0


def compared(moments: list[tuple[int, float]], turns: list[Turn]) -> dict[str, Any]:
    """Milliseconds of a step between (step, time) pairs that lie with a viewer there, or without any; those in between belong to neither."""
    times: dict[str, list[float]] = {"alone": [], "with_viewer": []}
    for (step, began), (next_step, ended) in zip(moments[1:], moments[2:], strict=False):  # what comes before the first is not steps alone
        value = 1e3 * (ended - began) / (next_step - step)
        if any(turn.ready <= began and ended <= turn.stopped for turn in turns):
            times["with_viewer"].append(value)
        elif all(ended <= turn.started or turn.stopped <= began for turn in turns):
            times["alone"].append(value)
    medians = {name: round(statistics.median(values), 4) for name, values in times.items() if values}
    slower = medians["with_viewer"] / medians["alone"] - 1.0 if len(medians) == 2 else None
    return {"step_ms": medians, "counted": {name: len(values) for name, values in times.items()},
            **({} if slower is None else {"slower": round(slower, 4), "passed": slower <= SLOWER})}


@contextlib.contextmanager
def viewer(command: list[str], turns: list[Turn]) -> Iterator[None]:
    """One turn of it."""
    started = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    try:
        for line in process.stdout or ():
            sys.stderr.write(line)
            if line.startswith(MARK):
                break
        else:
            raise InputError("the viewer ended before it was ready")
        ready = time.time()
        yield
        turns.append(Turn(started, ready, time.time()))
    finally:
        process.terminate()
        process.wait()


def watch(arguments: argparse.Namespace) -> dict[str, Any]:
    """The run, and what was seen of it. Memory in use on the GPU (device_mib) is that of all processes, also of a viewer."""
    overrides = (*arguments.overrides, f"recorder.show_freq={SHOW_EVERY}")
    config = read_config(Arguments(arguments.config[0], overrides, tuple(arguments.config[1:])), GaussianHeadTrainConfig)
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if torch.cuda.is_available() else ""
    latest = config.recorder.run_folder / "gaussianhead_latest"
    samples: list[Sample] = []
    before: list[Sample] = []  # the second checkpoint
    checkpoints: set[int] = set()  # by their times
    turns: list[Turn] = []
    command = [sys.executable, str(ROOT / "train_gaussianhead.py"), *(f"--config={path}" for path in arguments.config), *overrides]
    training = subprocess.Popen(command, stdout=sys.stderr)

    def take() -> None:
        while training.poll() is None:
            with contextlib.suppress(OSError):
                samples.append(sample(training.pid, device))
                checkpoints.update([latest.stat().st_mtime_ns] if latest.exists() else [])
                before.extend(samples[-1:] if len(checkpoints) < 2 else [])
            time.sleep(1.0)

    sampler = threading.Thread(target=take)
    sampler.start()
    try:
        while arguments.viewer and training.poll() is None:
            time.sleep(arguments.turn)
            if latest.exists() and training.poll() is None:
                words = [f"load_gaussianhead_checkpoint={latest}", "port=0", *arguments.viewer[1:]]
                with viewer([sys.executable, str(ROOT / "viewer.py"), "--config", arguments.viewer[0], *words], turns), contextlib.suppress(
                        subprocess.TimeoutExpired):
                    training.wait(arguments.turn)
        code = training.wait()
    finally:  # a viewer that does not start, or Ctrl-C, leaves no training behind
        training.terminate()
        training.wait()
        sampler.join()
    if code:
        raise InputError(f"the training ended with {code}")
    events = EventAccumulator(str(config.recorder.logdir), size_guidance={"scalars": 0}).Reload()
    moments = [(event.step, event.wall_time) for event in events.Scalars("gaussianhead/total")]
    settled = samples[max(len(before), int(WARM_UP * len(samples))):]
    since = settled[0].time if settled else float("inf")
    series = {name: [getattr(one, name) for one in settled] for name in ("bytes", "device_mib")}
    for name in ("allocated_gb", "reserved_gb"):  # of the training alone, on a GPU
        if f"gaussianhead/{name}" in events.Tags()["scalars"]:
            series[name] = [event.value for event in events.Scalars(f"gaussianhead/{name}") if event.wall_time >= since]
    if min(map(len, series.values())) < FEWEST:
        raise InputError(f"there are fewer than {FEWEST} samples after the second checkpoint: lower recorder.save_freq, or raise trainer.steps")
    grown = {name: round(growth(values), 4) for name, values in series.items()}
    counts = {name: _quarters([getattr(one, name) for one in settled]) for name in ("files", "threads")}
    shown = [{"second": round(one.time - samples[0].time), "bytes": one.bytes, "device_mib": one.device_mib}
             for one in samples[::-(-len(samples) // SHOWN)]]
    return {"device": torch.cuda.get_device_name() if device else "cpu", "torch": torch.__version__, "steps": moments[-1][0], "samples": len(samples),
            "warm_up": len(samples) - len(settled), "most_after_warm_up": {name: max(values) for name, values in series.items()}, "growth": grown,
            **counts, **compared([one for one in moments if one[1] >= since], turns), "shown": shown}


def _quarters(values: list[int]) -> list[float]:
    """Medians of the first quarter and of the last."""
    quarter = max(1, len(values) // 4)
    return [statistics.median(values[:quarter]), statistics.median(values[-quarter:])]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", type=Path, required=True, help="of train_gaussianhead.py; a further one is laid over it")
    parser.add_argument("--viewer", nargs="+", metavar="FILE [key=value]", help="YAML of viewer.py, and keys")
    parser.add_argument("--turn", type=float, default=15.0, help="seconds that the viewer is there, and is not")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    print(json.dumps(watch(parser.parse_intermixed_args()), indent=1))


if __name__ == "__main__":
    run(main)
