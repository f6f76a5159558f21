"""Pictures of a driven avatar to files: while the device draws one, the one before is copied and earlier ones are written."""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.config import Config
from lib.datasets.driving import DrivingFrame, DrivingSequence
from lib.datasets.images import read_image, resize, to_uint8, write_image, write_pixels
from lib.datasets.sampler import spread
from lib.datasets.video import VideoWriter, to_yuv420
from lib.errors import InputError
from lib.render.gaussian.launch import on_device
from lib.training.recorder import image_rows, shrink
from lib.training.runtime import is_terminal

IMAGE_THREADS = max(1, min(12, (os.cpu_count() or 1) - 1))  # that write frames and read pictures of the driver
PLACES = 4  # pictures between the device and the video; where frames are written, one more for each thread

Item, Loaded = TypeVar("Item"), TypeVar("Loaded")


class VideoConfig(Config):
    """Section `video` of reenactment."""

    frames_per_second: int = Field(25, gt=0, description="of the mp4")
    crf: int = Field(16, ge=0, le=51, description="H.264 quality: 0 lossless, 23 ordinary, 51 worst")
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = Field(
        "veryfast", description="H.264: a slower one makes smaller files of the same quality")
    frames: Literal["none", "png", "jpg"] = Field("png", description="single pictures beside the mp4; png costs many times what the mp4 does")
    sheet_columns: int = Field(6, gt=0, description="columns of the contact sheet")
    sheet_rows: int = Field(3, gt=0, description="rows of the contact sheet")


@dataclass
class Pace:
    """Seconds. `latencies`: from handing in what drives a picture until it is in the memory of the host; `drawing`: of the device alone."""

    began: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)
    drawing: list[float] = field(default_factory=list)

    def arrived(self, latency: float, drawing: float) -> None:
        """Notes a picture."""
        self.first = self.first or time.perf_counter()
        self.latencies.append(latency)
        self.drawing.append(drawing)

    @property
    def written_per_second(self) -> float:
        """Pictures per second, all included, after the first (which may have to wait for compilers)."""
        return (len(self.latencies) - 1) / max(self.ended - self.first, 1e-9)

    @property
    def rendered_per_second(self) -> float:
        """Pictures per second of the device alone."""
        return 1.0 / max(statistics.median(self.drawing), 1e-9)

    def latency(self, part: float) -> float:
        """What this part of the pictures stays below."""
        return sorted(self.latencies)[int(part * (len(self.latencies) - 1))]

    def __str__(self) -> str:
        return (f"{len(self.latencies)} frames in {self.ended - self.began:.1f} s; after the first {self.written_per_second:.1f} a second, rendered "
                f"{self.rendered_per_second:.1f} a second; latency {1e3 * self.latency(0.5):.1f} ms, 95 % below {1e3 * self.latency(0.95):.1f} ms")


class Place:
    """Memory of the host for one picture on its way from the device to the files."""

    def __init__(self, renderer: AvatarRenderer, beside: bool) -> None:
        height, width, self.cuda = renderer.height, renderer.width * (2 if beside else 1), renderer.device.type == "cuda"
        self.renderer, self.tasks = renderer, list[Future]()
        self.planes = torch.empty(height // 2 * 3, width // 2 * 2, dtype=torch.uint8, pin_memory=self.cuda)
        self.pixels = torch.empty(3, height, width, dtype=torch.uint8, pin_memory=self.cuda)
        self._words = torch.empty(2, dtype=torch.int64, pin_memory=self.cuda)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.cuda else []

    def busy(self) -> bool:
        """Whether somebody still writes the last picture."""
        return not all(task.done() for task in self.tasks)

    def free(self) -> None:
        """Waits until the last picture is written; raises what went wrong there."""
        while self.tasks:
            self.tasks.pop().result()

    def take(self, index: int, frame: DrivingFrame, beside: UInt8[Tensor, "3 H W"] | None, with_pixels: bool) -> None:
        """Starts drawing and copying. `with_pixels`: not only for the video. `beside`: a picture of the same size, shown at the left."""
        self.index, self._frame, self._beside, self._with_pixels = index, frame, beside, with_pixels
        self._handed_in = time.perf_counter()
        self._start()

    def _start(self) -> None:
        self._record(0)
        began = time.perf_counter()
        drawing = self.renderer(self._frame)
        self._room, image = drawing.room, drawing.image[0]
        # Pictures are bounded, so their sum is finite if and only if they are.
        self._copy(self._words, torch.stack([drawing.needed[0], torch.isfinite(image.sum()).long()]))
        if self._beside is not None:
            image = torch.cat([self._beside.to(image.device, non_blocking=True).float() / 255.0, image], dim=-1)
        self._copy(self.planes, to_yuv420(image))
        if self._with_pixels:
            self._copy(self.pixels, to_uint8(image))
        self._record(1)
        self._seconds = time.perf_counter() - began

    def _copy(self, place: Tensor, value: Tensor) -> None:
        place.copy_(value, non_blocking=self.cuda)

    def _record(self, event: int) -> None:
        if self.cuda:
            self._events[event].record()

    def wait(self, pace: Pace) -> bool:
        """Waits until the picture is here, which it is drawn again for if it did not fit; whether it is finite."""
        while True:
            if self.cuda:
                self._events[1].synchronize()
                self._seconds = 1e-3 * self._events[0].elapsed_time(self._events[1])
            needed, finite = self._words.tolist()
            if needed <= self._room:
                pace.arrived(time.perf_counter() - self._handed_in, self._seconds)
                return bool(finite)
            self.renderer.make_room(needed)
            self._start()


class Threads:
    """Context of threads: one encodes, in order; others write and read pictures. At the end, what has not begun is dropped."""

    def __enter__(self) -> "Threads":
        self._encoder, self._images = ThreadPoolExecutor(1), ThreadPoolExecutor(IMAGE_THREADS)
        return self

    def encode(self, task: Callable[..., None], *arguments: Any) -> Future:
        """After all that were given before."""
        return self._encoder.submit(task, *arguments)

    def write(self, task: Callable[..., None], *arguments: Any) -> Future:
        """In any order."""
        return self._images.submit(task, *arguments)

    def ahead(self, load: Callable[[Item], Loaded], items: Iterable[Item]) -> Iterator[Loaded]:
        """What `load` gives for all items in turn, a few of them loaded ahead."""
        coming: deque[Future] = deque()
        for item in items:
            coming.append(self._images.submit(load, item))
            if len(coming) > IMAGE_THREADS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for threads in (self._encoder, self._images):
            threads.shutdown(wait=True, cancel_futures=True)


def remove_frames(folder: Path) -> None:
    """Those of an earlier, perhaps longer driver."""
    for old in (folder / "frames").glob("[0-9]*.*"):
        if old.name.removesuffix(".partial").endswith((".png", ".jpg")):
            old.unlink()


def squared(pixels: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 s s"]:
    """In the middle of white where it is not square."""
    height, width = pixels.shape[1:]
    size = max(height, width)
    square = pixels.new_full((3, size, size), 255)
    top, left = (size - height) // 2, (size - width) // 2
    square[:, top:top + height, left:left + width] = pixels
    return square


def film(renderer: AvatarRenderer, driver: DrivingSequence, config: VideoConfig, folder: Path) -> Pace:
    """Writes frames/<number>.<png or jpg>, reenactment.mp4 and contact_sheet.png of the driven avatar.

    Raises InputError when a picture is not finite or something cannot be read or written.
    """
    frames = config.frames != "none"
    shown = set(spread(list(range(len(driver))), config.sheet_columns * config.sheet_rows))
    sheet: dict[int, Float[Tensor, "3 h w"]] = {}
    places = [Place(renderer, bool(driver.images)) for _ in range(PLACES + IMAGE_THREADS * frames)]
    waiting: deque[Place] = deque()
    pace = Pace()

    def load(path: Path) -> UInt8[Tensor, "3 H W"]:
        pixels = resize(squared(read_image(path)), renderer.width)
        return pixels.pin_memory() if renderer.device.type == "cuda" else pixels

    def show(index: int, pixels: UInt8[Tensor, "3 H W"]) -> None:
        sheet[index] = shrink(pixels[None].float() / 255.0)[0]  # full ones would take longer to write than the video

    with (torch.no_grad(), on_device(renderer.background),
          VideoWriter(folder / "reenactment.mp4", config.frames_per_second, config.crf, config.preset) as video, Threads() as threads):

        def deliver(place: Place) -> None:
            if not place.wait(pace):
                raise InputError(f"{driver.files[place.index]}: the avatar renders NaN for this frame; is the checkpoint damaged?")
            if place.index == 0:
                remove_frames(folder)
            place.tasks.append(threads.encode(video.add, place.planes))
            if frames:
                path = folder / "frames" / f"{place.index:05d}.{config.frames}"
                place.tasks.append(threads.write(write_pixels, path, place.pixels[..., -renderer.width:]))
            if place.index in shown:
                place.tasks.append(threads.write(show, place.index, place.pixels))

        beside = threads.ahead(load, driver.images)
        for index in tqdm(range(len(driver)), desc="reenactment", unit="frame", mininterval=0.5 if is_terminal() else 15.0):
            place = places[index % len(places)]
            while waiting and place.busy():  # the writers are behind: nothing is won by drawing ahead
                deliver(waiting.popleft())
            place.free()
            place.take(index, driver[index], next(beside, None), frames or index in shown)
            waiting.append(place)
            if len(waiting) > renderer.ahead:
                deliver(waiting.popleft())
        for place in waiting:
            deliver(place)
        for place in places:
            place.free()
    columns, tiles = min(config.sheet_columns, len(sheet)), [sheet[index] for index in sorted(sheet)]
    tiles += [torch.ones_like(tiles[0])] * (-len(tiles) % columns)  # the last row may be shorter
    rows = [torch.stack(tiles[start:start + columns]) for start in range(0, len(tiles), columns)]
    write_image(folder / "contact_sheet.png", image_rows(rows))
    pace.ended = time.perf_counter()
    return pace
