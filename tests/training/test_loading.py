"""Threads load ahead: nothing of that may be seen in what training gets, except the time."""

import contextlib
import threading
import time
from pathlib import Path

import cv2
import pytest
import torch

from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError
from lib.training import loading
from lib.training.loading import AHEAD, load
from tests.tiny import dataset_dict, mesh_dict, run_script

STEPS = range(2, 22)
TASKS = Path("/proc/self/task")  # one entry per thread of this process


class Watched(TrainingBatches):
    """Notes who loads what; late steps are quicker, so that they overtake; raises the given error at one step."""

    def __init__(self, capture: HeadCapture, fails_at: int | None = None, error: Exception | None = None) -> None:
        super().__init__(capture, 2, 2, seed=0)
        self.fails_at, self.error = fails_at, error
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self.opencv_threads: set[int] = set()

    def __getitem__(self, step: int) -> HeadBatch:
        self.asked.append(step)
        self.threads.add(threading.current_thread().name)
        self.opencv_threads.add(cv2.getNumThreads())
        if step == self.fails_at and self.error is not None:
            raise self.error
        time.sleep(0.004 if step % 3 == 0 else 0.0)
        return super().__getitem__(step)


@pytest.fixture(scope="module")
def capture(made) -> HeadCapture:
    return HeadCapture(HeadCaptureConfig(**dataset_dict(made.subject)))


def loading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loading")]


def same(one: HeadBatch, other: HeadBatch) -> bool:
    return (one.frame, one.view) == (other.frame, other.view) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("frame_index", "pixels", "expression", "control_points"))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_the_order_of_their_steps(capture, workers):
    watched, plain = Watched(capture), TrainingBatches(capture, 2, 2, seed=0)
    got = list(load(watched, STEPS, workers, pinned=False))
    assert len(got) == len(STEPS) and all(same(batch, plain[step]) for step, batch in zip(STEPS, got, strict=True))
    assert sorted(watched.asked) == list(STEPS)  # each once
    assert watched.threads <= ({threading.current_thread().name} if workers == 0 else {f"loading_{k}" for k in range(workers)})
    assert loading_threads() == []


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_comes_at_its_step(capture, workers):
    error = InputError("a.jpg: the image is cut off")
    got = []
    with pytest.raises(InputError) as raised:
        got.extend(batch.frame for batch in load(Watched(capture, 9, error), STEPS, workers, pinned=False))
    assert raised.value is error and loading_threads() == []
    batches = load(Watched(capture, 9, error), STEPS, workers, pinned=False)
    assert len([next(batches) for _ in range(7)]) == 7  # steps 2 to 8 are not lost, though step 9 has failed long ago
    with pytest.raises(InputError):
        next(batches)


def test_too_little_memory_is_told(capture):
    with pytest.raises(InputError, match=r"dataset\.cache_gb or trainer\.workers"):
        list(load(Watched(capture, 4, MemoryError("too much")), STEPS, 2, pinned=False))


def test_threads_load_only_so_far_ahead(capture):
    watched, workers = Watched(capture), 2
    with contextlib.closing(load(watched, range(1000), workers, pinned=False)) as batches:
        for step in range(5):
            next(batches)
            time.sleep(0.02)
            assert max(watched.asked) < step + AHEAD * workers


def test_closing_ends_the_threads_and_what_waits(capture):
    threads = cv2.getNumThreads()
    watched = Watched(capture)
    with pytest.raises(KeyboardInterrupt), contextlib.closing(load(watched, range(1000), 3, pinned=False)) as batches:
        next(batches)
        assert len(loading_threads()) == 3
        raise KeyboardInterrupt
    assert loading_threads() == [] and len(watched.asked) <= AHEAD * 3
    assert watched.opencv_threads == {1} and cv2.getNumThreads() == threads
    load(watched, range(1000), 3, pinned=False).close()  # never asked for anything


def test_threads_fill_the_memory_that_the_caller_gives(capture, monkeypatch):
    """As for a GPU, with memory that can be had here."""
    given: list[torch.Tensor] = []

    def room(shape: torch.Size) -> torch.Tensor:
        assert threading.current_thread() is threading.main_thread()
        given.append(torch.zeros(shape, dtype=torch.uint8))
        return given[-1]

    monkeypatch.setattr(loading, "_page_locked", room)
    watched, plain = Watched(capture), TrainingBatches(capture, 2, 2, seed=0)
    got = list(loading.load(watched, STEPS, 2, pinned=True))
    assert all(same(batch, plain[step]) for step, batch in zip(STEPS, got, strict=True))
    assert all(batch.pixels is there for batch, there in zip(got, given, strict=True))


@pytest.mark.skipif(not TASKS.exists(), reason="no list of threads here")
def test_loading_threads_start_no_threads_of_their_own(made):
    """Neither OpenCV nor torch, which splits large copies over a team of threads per thread that asks."""
    capture = HeadCapture(HeadCaptureConfig(**dataset_dict(made.subject, resolution=300)))
    before, threads = torch.get_num_threads(), len(list(TASKS.iterdir()))
    torch.set_num_threads(2)
    with contextlib.closing(load(TrainingBatches(capture, 2, 2, seed=0), range(100), 3, pinned=False)) as batches:
        for _ in range(20):
            next(batches)
        during = len(list(TASKS.iterdir()))
    torch.set_num_threads(before)
    assert during <= threads + 3


def test_waiting_is_told_with_what_helps(made, tmp_path, monkeypatch):
    item = HeadCapture.item

    def slow(self, frame, cameras):
        time.sleep(0.5)
        return item(self, frame, cameras)

    monkeypatch.setattr(HeadCapture, "item", slow)
    run_script("train_meshhead", mesh_dict(made.subject, tmp_path, steps=3), tmp_path)
    log = (tmp_path / "checkpoints" / "tiny" / "meshhead.log").read_text()
    assert "of the time went into waiting for data: raise trainer.workers (now 0) or dataset.cache_gb (now 2)" in log
    assert "% of the time waiting for data" in log.splitlines()[-1]


def test_threads_that_nobody_asked_for(monkeypatch):
    """Of the cores that the job may use, not of all that the machine has."""
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda process: set(range(12)), raising=False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [loading.loading_threads(None, cuda, processes) for processes in (1, 2, 4, 100)] == [8, 6, 3, 1]
    assert loading.loading_threads(None, cpu, 1) == 0
    assert [loading.loading_threads(given, device, 2) for given, device in ((0, cuda), (3, cpu))] == [0, 3]
