"""Batches on their way to a GPU: page-locked memory is used again only when it has been read. Run with `python -m pytest -m gpu`."""

import contextlib
import dataclasses
import time

import pytest
import torch

from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.datasets.sampler import TrainingBatches
from lib.training.loading import AHEAD, load
from tests.tiny import dataset_dict

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
WORKERS = 4
LONG = 400_000_000  # cycles of the GPU: some 200 ms


@pytest.fixture(scope="module")
def batches(made) -> TrainingBatches:
    return TrainingBatches(HeadCapture(HeadCaptureConfig(**dataset_dict(made.subject, resolution=512))), 1, 2, seed=0)


def test_many_batches_arrive_intact_while_copies_wait(batches):
    """Copies queue up behind a busy GPU, and loading goes on meanwhile: no buffer may be filled again before it has been read."""
    there = []
    with contextlib.closing(load(batches, range(60), WORKERS, pinned=True)) as loaded:
        for step, batch in enumerate(loaded):
            assert batch.pixels.is_pinned()
            if step % 20 == 0:
                torch.cuda._sleep(LONG)
            there.append(batch.to("cuda"))
    torch.cuda.synchronize()
    for step, batch in enumerate(there):
        expected = batches[step]
        assert torch.equal(batch.pixels.cpu(), expected.pixels) and torch.equal(batch.expression.cpu(), expected.expression)
        assert torch.equal(batch.images.cpu(), expected.images) and torch.equal(batch.on_white().cpu(), expected.on_white())


def test_locked_memory_is_used_again(batches):
    places = set()
    with contextlib.closing(load(batches, range(80), WORKERS, pinned=True)) as loaded:
        for batch in loaded:
            batch.to("cuda")
            torch.cuda.synchronize()
            places.add(batch.pixels.data_ptr())
    assert len(places) <= AHEAD * WORKERS + 3


def test_copies_do_not_stop_the_host(batches):
    with contextlib.closing(load(batches, range(40), WORKERS, pinned=True)) as loaded:
        batch = [next(loaded) for _ in range(AHEAD * WORKERS + 4)][-1]
        assert batch.pixels.is_pinned()
        batch.to("cuda")
        torch.cuda.synchronize()
        torch.cuda._sleep(LONG)
        began = time.perf_counter()
        there = batch.to("cuda")
        assert time.perf_counter() - began < 0.05
        assert torch.equal(there.to("cpu").pixels, batch.pixels)  # the way back waits


def test_bytes_become_the_same_floats_as_on_the_cpu(batches):
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16).expand(1, 1, 5, 16, 16)
    batch = dataclasses.replace(batches[0], pixels=every)
    assert torch.equal(batch.to("cuda").images.cpu(), batch.images)


def test_graphs_can_be_recorded_while_threads_load(batches):
    """Recording fails when another thread calls what it must not; the loading threads call nothing of CUDA."""
    values = torch.ones(1000, device="cuda")
    with contextlib.closing(load(batches, range(40), WORKERS, pinned=True)) as loaded:
        for batch in loaded:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                values.mul_(1.0)
                time.sleep(0.005)
            graph.replay()
            batch.to("cuda")
    assert float(values.sum()) == 1000.0
