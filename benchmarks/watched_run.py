"""A training watched from outside: `python -m benchmarks.watched_run --config FILE [...] [key=value ...]` prints JSON.

Runs train_gaussianhead.py and samples, every second, its resident memory, open files and threads, and the memory in use on the GPU. What comes
before the first checkpoint is warm-up: compilers, and the cache of frames filling (dataset.cache_gb bounds it). With --viewer FILE a viewer of
the run's checkpoint, with no browser at it, is halted and runs in turn, and steps of one turn are compared with those of the next.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.timing import spread
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.errors import InputError
from lib.training.runtime import choose_device, run

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
    """Between two moments, by time.time(), a viewer ran, or was halted."""

    began: float
    ended: float
    ran: bool


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


def after_warm_up(samples: list[Sample], before: int, ended: float) -> list[Sample]:
    """Those after the first checkpoint, which `before` of them precede, or after WARM_UP of all if that is later, until the last step ended."""
    return [one for one in samples[max(before, int(WARM_UP * len(samples))):] if one.time <= ended]


def compared(moments: list[tuple[int, float]], turns: list[Turn]) -> dict[str, Any]:
    """Milliseconds of a step from (step, time) pairs: each turn of a running viewer against the turns before and after, when it was halted.

    What a machine does besides comes and goes slower than turns do, and so counts on both sides. Empty without such neighbours."""
    medians: list[tuple[bool, float | None]] = []
    for turn in turns:
        values = [1e3 * (ended - began) / (next_step - step) for (step, began), (next_step, ended) in zip(moments, moments[1:], strict=False)
                  if turn.began <= began and ended <= turn.ended]
        medians.append((turn.ran, statistics.median(values) if values else None))
    ratios = [2.0 * here / (before + after) for (_, before), (ran, here), (_, after) in zip(medians, medians[1:], medians[2:], strict=False)
              if ran and before is not None and here is not None and after is not None]
    if not ratios:
        return {}
    step_ms = {name: round(statistics.median(value for ran, value in medians if ran == wanted and value is not None), 3)
               for name, wanted in (("halted", False), ("running", True))}
    slower = spread([ratio - 1.0 for ratio in ratios])
    return {"step_ms": step_ms, "turns": len(ratios), "slower": slower, "passed": slower["median"] <= SLOWER}


def take_turns(command: list[str], seconds: float, training: subprocess.Popen, turns: list[Turn]) -> None:
    """Starts a viewer and, until the training ends, halts it and lets it run in turn."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    try:
        for line in process.stdout or ():
            sys.stderr.write(line)
            if line.startswith(MARK):
                break
        else:
            raise InputError("the viewer ended before it was ready")
        while training.poll() is None and process.poll() is None:
            ran = len(turns) % 2 == 1
            process.send_signal(signal.SIGCONT if ran else signal.SIGSTOP)
            began = time.time()
            with contextlib.suppress(subprocess.TimeoutExpired):
                training.wait(seconds)
            turns.append(Turn(began, time.time(), ran))
        if training.poll() is None:
            raise InputError(f"the viewer ended with {process.wait()} before the training did")
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()


def watch(arguments: argparse.Namespace) -> dict[str, Any]:
    """The run, and what was seen of it. Memory in use on the GPU (device_mib) is that of all processes, also of a viewer."""
    overrides = (*arguments.overrides, f"recorder.show_freq={SHOW_EVERY}")
    config = read_config(Arguments(arguments.config[0], overrides, tuple(arguments.config[1:])), GaussianHeadTrainConfig)
    with contextlib.redirect_stdout(sys.stderr):
        chosen = choose_device(config.trainer.device, config.gpu_id)
    device = f"GPU-{torch.cuda.get_device_properties(chosen).uuid}" if chosen.type == "cuda" else ""  # nvidia-smi may count otherwise
    latest = config.recorder.run_folder / "gaussianhead_latest"
    samples: list[Sample] = []
    before = 0
    turns: list[Turn] = []
    command = [sys.executable, str(ROOT / "train_gaussianhead.py"), *(f"--config={path}" for path in arguments.config), *overrides]
    training = subprocess.Popen(command, stdout=sys.stderr)

    def take() -> None:
        nonlocal before
        while training.poll() is None:
            with contextlib.suppress(OSError):
                samples.append(sample(training.pid, device))
                before += not latest.exists()
            time.sleep(1.0)

    sampler = threading.Thread(target=take)
    sampler.start()
    try:
        while arguments.viewer and training.poll() is None and not latest.exists():
            time.sleep(1.0)
        if arguments.viewer and training.poll() is None:
            words = [f"load_gaussianhead_checkpoint={latest}", "port=0", *arguments.viewer[1:]]
            take_turns([sys.executable, str(ROOT / "viewer.py"), "--config", arguments.viewer[0], *words], arguments.turn, training, turns)
        code = training.wait()
    finally:  # a viewer that does not start, or Ctrl-C, leaves no training behind
        training.terminate()
        training.wait()
        sampler.join()
    if code:
        raise InputError(f"the training ended with {code}")
    events = EventAccumulator(str(config.recorder.logdir), size_guidance={"scalars": 0}).Reload()
    moments = [(event.step, event.wall_time) for event in events.Scalars("gaussianhead/total")]
    settled = after_warm_up(samples, before, moments[-1][1])
    since = settled[0].time if settled else float("inf")
    series = {name: [getattr(one, name) for one in settled] for name in ("bytes", "device_mib")}
    for name in ("allocated_gb", "reserved_gb"):  # of the training alone, on a GPU
        if f"gaussianhead/{name}" in events.Tags()["scalars"]:
            series[name] = [event.value for event in events.Scalars(f"gaussianhead/{name}") if event.wall_time >= since]
    if min(map(len, series.values())) < FEWEST:
        raise InputError(f"there are fewer than {FEWEST} samples after the first checkpoint: lower recorder.save_freq, or raise trainer.steps")
    grown = {name: round(growth(values), 4) for name, values in series.items()}
    counts = {name: _quarters([getattr(one, name) for one in settled]) for name in ("files", "threads")}
    shown = [{"second": round(one.time - samples[0].time), "bytes": one.bytes, "device_mib": one.device_mib}
             for one in samples[::-(-len(samples) // SHOWN)]]
    most = {name: max(values) for name, values in series.items()}
    return {"device": torch.cuda.get_device_name(chosen) if device else "cpu", "torch": torch.__version__, "steps": moments[-1][0],
            "samples": len(samples), "counted": len(settled), "most_after_warm_up": most, "growth": grown, **counts, **compared(moments, turns),
            "shown": shown}


def _quarters(values: list[int]) -> list[float]:
    """Medians of the first quarter and of the last."""
    quarter = max(1, len(values) // 4)
    return [statistics.median(values[:quarter]), statistics.median(values[-quarter:])]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", type=Path, required=True, help="of train_gaussianhead.py; a further one is laid over it")
    parser.add_argument("--viewer", nargs="+", metavar="FILE [key=value]", help="YAML of viewer.py, and keys")
    parser.add_argument("--turn", type=float, default=3.0, help="seconds that the viewer runs, and is halted")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    print(json.dumps(watch(parser.parse_intermixed_args()), indent=1))


if __name__ == "__main__":
    run(main)
