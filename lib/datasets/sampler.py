"""Which pictures a training step sees: a pure function of (seed, step), so that a resumed run sees the same, by any number of processes."""

import copy
import dataclasses
from typing import TypeVar

import torch
from torch.utils.data import Dataset

from lib.datasets.batches import HeadBatch
from lib.datasets.head_capture import HeadCapture, Picture
from lib.errors import InputError
from lib.tensors import keyed_generator

T = TypeVar("T")


class TrainingBatches(Dataset[HeadBatch]):
    """Item `step` is the batch of that step: every epoch visits all training frames in a new order, with random views.

    `rows` are those of the batch that items hold: all, or the share of one process.
    """

    def __init__(self, capture: HeadCapture, batch_size: int, views: int, seed: int) -> None:
        self.capture, self.batch_size, self.seed = capture, batch_size, seed
        self.views = min(views, len(capture.train_cameras))
        self.rows = range(batch_size)

    def steps_of(self, epochs: int) -> int:
        """Steps in which every training frame is seen so many times: their order runs on from one pass to the next."""
        return -(-epochs * len(self.capture.train_frames) // self.batch_size)

    @property
    def pixels_shape(self) -> torch.Size:
        """Of the pixels of an item: B V 5 H W."""
        return torch.Size((len(self.rows), self.views, 5, self.capture.config.resolution, self.capture.config.resolution))

    def share(self, process: int, processes: int, passes: int) -> "TrainingBatches":
        """The same batches, of which items hold the part of one process, in a size that can be split into `passes`.

        Raises InputError when the batch cannot be divided into equal parts.
        """
        parts = processes * passes
        if self.batch_size % parts:
            larger = -(-self.batch_size // parts) * parts
            fitting = f"batch_size={larger}" if larger == parts else f"batch_size={larger - parts} or {larger}"
            raise InputError(f"batch_size is {self.batch_size}, the frames of a step of all processes together; {processes} processes with "
                             f"trainer.accumulate={passes} need a multiple of {parts}: write {fitting}")
        own, size = copy.copy(self), self.batch_size // processes
        own.rows = range(process * size, (process + 1) * size)
        return own

    def shown(self, step: int) -> tuple[list[str], list[str]]:
        """Frames and cameras of the whole batch of a step, for messages."""
        chosen = [self._choice(step * self.batch_size + row) for row in range(self.batch_size)]
        return [frame for frame, _ in chosen], [" ".join(cameras) for _, cameras in chosen]

    def held_out(self, count: int) -> list[Picture]:
        """Up to `count` held-out pictures, half of each split where both exist."""
        views, sequences = self.capture.novel_view(), self.capture.novel_sequence()
        half = count if not (views and sequences) else max(1, count // 2)
        return spread(views, half) + spread(sequences, max(1, count - half) if views else count)

    def training_examples(self, count: int) -> list[Picture]:
        """Pictures that are trained on, for runs that hold nothing out."""
        cameras = self.capture.train_cameras
        return [Picture(frame, cameras[k % len(cameras)]) for k, frame in enumerate(spread(self.capture.train_frames, count))]

    def __getitem__(self, step: int) -> HeadBatch:
        samples = tuple(step * self.batch_size + row for row in self.rows)
        return dataclasses.replace(HeadBatch.stack([self.capture.item(*self._choice(sample)) for sample in samples]), samples=samples)

    def _choice(self, sample: int) -> tuple[str, list[str]]:
        """Frame and cameras of one item."""
        frames, cameras = self.capture.train_frames, self.capture.train_cameras
        epoch, position = divmod(sample, len(frames))
        order = torch.randperm(len(frames), generator=keyed_generator(self.seed, 0, epoch))
        views = torch.randperm(len(cameras), generator=keyed_generator(self.seed, 1, sample))[:self.views]
        return frames[int(order[position])], [cameras[int(view)] for view in views]


def spread(items: list[T], count: int) -> list[T]:
    """Up to `count` items at equal distances."""
    if count >= len(items):
        return items
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]
