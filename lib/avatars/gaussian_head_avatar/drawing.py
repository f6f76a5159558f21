"""Batches of pictures of an avatar for measuring: exact, with one wait of the host for each batch."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.datasets.driving import DrivingFrame
from lib.render.gaussian.launch import on_device


@dataclass(frozen=True)
class Drawn:
    """Pictures, and which of them are finite."""

    images: Float[Tensor, "B 3 H W"]
    finite: tuple[bool, ...]


class BatchRenderer:
    """Draws in float32; knows how many pictures a second it drew."""

    def __init__(self, avatar: GaussianAvatar, width: int, height: int) -> None:
        self.renderer = AvatarRenderer(avatar, width, height, "highest")
        self.device = self.renderer.device
        self._seconds: list[float] = []  # per picture, of each batch

    def __call__(self, frames: Sequence[DrivingFrame]) -> Drawn:
        """Frames are on the CPU."""
        renderer = self.renderer
        images = torch.empty(len(frames), 3, renderer.height, renderer.width, device=self.device)
        while True:
            clock, words = _Clock(self.device), []
            with on_device(renderer.background):
                for row, frame in enumerate(frames):
                    drawing = renderer(frame)
                    images[row].copy_(drawing.image[0])
                    # Pictures are bounded, so their sum is finite if and only if they are.
                    words.append(torch.stack([drawing.needed[0], torch.isfinite(drawing.image.sum()).long()]))
                clock.stop()
            rows = torch.stack(words).tolist()  # the one wait
            most = max(needed for needed, _ in rows)
            if most <= drawing.room or drawing.room == 0:
                self._seconds.append(clock.seconds() / len(frames))
                return Drawn(images, tuple(bool(finite) for _, finite in rows))
            renderer.make_room(most)

    @property
    def frames_per_second(self) -> float | None:
        """Of the usual batch; the first, which may wait for compilers, counts where there is no other. None before any."""
        usual = self._seconds[1:] or self._seconds
        return 1.0 / max(statistics.median(usual), 1e-9) if usual else None


class _Clock:
    """Started when it is made. On CUDA it is the device's, which does not count what was asked of it before."""

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._began = time.perf_counter()
        if self._events:
            self._events[0].record(torch.cuda.current_stream(device))
        self._device = device

    def stop(self) -> None:
        """Notes the time, without waiting."""
        self._took = time.perf_counter() - self._began
        if self._events:
            self._events[1].record(torch.cuda.current_stream(self._device))

    def seconds(self) -> float:
        """After the device has been waited for."""
        return 1e-3 * self._events[0].elapsed_time(self._events[1]) if self._events else self._took
