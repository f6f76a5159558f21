"""What runs for long takes no more memory, files or threads at its end than soon after its start."""

import ctypes
import os
import threading
from pathlib import Path
from statistics import median
from unittest import mock

import pytest
import tqdm.std
import yaml

from tests.faults.children import Command, Ended, apart, execute
from tests.faults.workshop import TRAININGS, Workshop
from tests.tiny import DRIVER_FRAMES

WARM_UP = 0.2  # of a run: caches fill, and the allocator learns which sizes are wanted
GROWTH = 0.01  # of the memory of a quarter to that of the last
SLACK = 2**20  # bytes: pieces that the allocator cannot give back
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
Sample = tuple[int, int, int]

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and files are counted in /proc")


def give_back() -> None:
    """Free memory goes from the allocator to the system (glibc keeps tens of MB, more or less as threads happen to take turns)."""
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)


def sample() -> Sample:
    """Bytes of memory that are in use, open files, threads of this process."""
    give_back()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE, len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208


def sampled(command: Command, module: str, every: int) -> tuple[Ended, list[Sample]]:
    """Runs it; a sample after so many turns of the progress bar of a module."""
    samples: list[Sample] = []

    class Counted(tqdm.std.tqdm):
        def __iter__(self):
            for number, item in enumerate(super().__iter__(), 1):
                yield item
                if number % every == 0:
                    samples.append(sample())

    with mock.patch(f"{module}.tqdm", Counted):
        return execute(command), samples


def judge(samples: list[Sample]) -> tuple[float, bool]:
    """Growth of memory from the first quarter after the warm-up to the last (of the least: what is held wherever a step is); whether files and
    threads stayed as many (medians: TensorBoard's thread opens its file anew for moments)."""
    settled = samples[int(WARM_UP * len(samples)):]
    quarter = max(1, len(settled) // 4)
    parts = settled[:quarter], settled[-quarter:]
    first, last = (min(row[0] for row in part) for part in parts)
    before, after = ([median(column) for column in zip(*part, strict=True)][1:] for part in parts)
    return (last - first - SLACK) / first, before == after


@pytest.mark.parametrize("name", TRAININGS)
def test_training_for_long_takes_no_more_of_anything(workshop: Workshop, ledger, long, tmp_path, name):
    steps = 2000 if long else 30
    command = workshop.place(name, tmp_path / "0")
    words = (f"trainer.steps={steps}", f"trainer.validate_every={steps // 10}", f"recorder.save_freq={steps // 10}", "recorder.keep_last=2")
    every = max(1, steps // 50)
    ended, samples = apart(sampled, Command(command.module, (*command.words, *words), command.place), "lib.training.trainer", every)
    assert ended.code == 0, ended.said
    growth, constant = judge(samples)
    print(f"{name}: {steps} steps, {samples[-1][0] / 1e6:.0f} MB, growth {growth:+.2%} (after 1 MB), files and threads {samples[-1][1:]}")
    ledger.enter(f"long run, {name}", ended.code == 0, growth <= GROWTH and constant)
    assert growth <= GROWTH and constant, samples
    assert len(list((command.place / "checkpoints" / "tiny").glob(f"{name}_step_*"))) == 2


def test_a_long_film_is_made_in_bounded_memory(workshop: Workshop, ledger, long, tmp_path):
    frames = 10_000 if long else 100
    command = workshop.place("video", tmp_path / "0")
    for number in range(frames):
        target = command.place / "driver" / "params" / f"{number:05d}"
        target.mkdir(parents=True)
        os.link(workshop.made.driver / "params" / f"{number % DRIVER_FRAMES:04d}" / "params.npz", target / "params.npz")
    values = yaml.safe_load((command.place / "reenactment.yaml").read_text())
    values["dataset"] |= {"dataroot": "driver", "resolution": 32}
    values["video"]["frames"] = "none"
    (command.place / "reenactment.yaml").write_text(yaml.safe_dump(values))
    ended, samples = apart(sampled, command, "lib.avatars.gaussian_head_avatar.film", frames // 50)
    assert ended.code == 0, ended.said
    growth, constant = judge(samples)
    print(f"video: {frames} frames, {samples[-1][0] / 1e6:.0f} MB, growth {growth:+.2%} (after 1 MB), files and threads {samples[-1][1:]}")
    ledger.enter("long run, video", ended.code == 0, growth <= GROWTH and constant)
    assert growth <= GROWTH and constant, samples
