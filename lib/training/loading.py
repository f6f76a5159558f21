"""The batches of the coming steps, decoded by threads while the device works on this one."""

import contextlib
import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lib.datasets.batches import HeadBatch
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError

Item, Made = TypeVar("Item"), TypeVar("Made")

MOST_THREADS = 8
AHEAD = 2  # batches per thread that are being decoded or wait for their step


def loading_threads(given: int | None, device: torch.device, processes: int) -> int:
    """As many as were asked for; else, where a GPU would wait, the share of one of the `processes` of this machine in the cores that they may use,
    and none where training needs them."""
    if given is not None:
        return given
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, cores // processes)) if device.type == "cuda" else 0


def load(batches: TrainingBatches, steps: range, workers: int, pinned: bool) -> Iterator[HeadBatch]:
    """The batches of `steps`, in that order: decoded by `workers` threads ahead of their step, or by the caller at it where there are none.

    Threads, as decoding and copying let go of Python's lock: pictures and their cache are there once, and nothing travels between processes.
    `pinned`: the threads put pixels into page-locked memory, from where a GPU fetches them without the host. All calls of CUDA are the
    caller's, so that it may record CUDA graphs meanwhile.

    Closing ends the threads. Raises what loading raised (InputError for a picture that cannot be used) at the step it belongs to.
    """
    def coming() -> Iterator[tuple[int, UInt8[Tensor, "B V 5 H W"] | None]]:
        for step in steps:  # asked for by the caller's thread
            yield step, _page_locked(batches.pixels_shape) if pinned and workers else None

    with contextlib.closing(ahead(lambda item: _load(batches, *item), coming(), workers)) as loaded:
        yield from loaded


def ahead(make: Callable[[Item], Made], items: Iterable[Item], workers: int) -> Iterator[Made]:
    """What `make` gives for all items in turn: made by `workers` threads, AHEAD per thread early, or by the caller where there are none.

    Closing ends the threads. Raises what `make` raised at the item it belongs to.
    """
    if workers == 0:
        yield from map(make, items)
        return
    waiting: deque[Future[Made]] = deque()
    coming = iter(items)
    pool, opencv_threads = ThreadPoolExecutor(workers, "loading"), cv2.getNumThreads()
    cv2.setNumThreads(1)  # of the process: one thread per picture, and a picture per thread, keeps every core busy
    try:
        waiting.extend(pool.submit(make, item) for item in itertools.islice(coming, AHEAD * workers))
        while waiting:
            made = waiting.popleft().result()
            yield made
            waiting.extend(pool.submit(make, item) for item in itertools.islice(coming, 1))
    except MemoryError as error:
        raise InputError("there is too little memory to load pictures: lower dataset.cache_gb or trainer.workers") from error
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(opencv_threads)


def _load(batches: TrainingBatches, step: int, room: UInt8[Tensor, "B V 5 H W"] | None) -> HeadBatch:
    batch = batches[step]
    if room is None:
        return batch
    if room.shape != batch.pixels.shape:  # copying would repeat what is too little
        raise ValueError(f"a batch of shape {tuple(batch.pixels.shape)} where {tuple(room.shape)} was expected")
    np.copyto(room.numpy(), batch.pixels.numpy())
    return dataclasses.replace(batch, pixels=room)


def _page_locked(shape: torch.Size) -> UInt8[Tensor, "B V 5 H W"]:
    """Torch keeps such memory and gives it out again once the copies from it are complete, so that none is locked anew at every step."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
