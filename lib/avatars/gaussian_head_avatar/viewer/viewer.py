"""The viewer: one thread draws the newest state for every browser, and what became old before it was drawn is never drawn."""

import contextlib
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from lib.avatars.gaussian_head_avatar.avatar import check_resolution
from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.avatars.gaussian_head_avatar.viewer.page import Panel
from lib.avatars.gaussian_head_avatar.viewer.server import start_server
from lib.avatars.gaussian_head_avatar.viewer.watched import WatchedAvatar
from lib.avatars.gaussian_head_avatar.viewer.wish import Look, Playback, Puppet, Wish
from lib.datasets.driving import DrivingSequence
from lib.datasets.images import write_pixels
from lib.datasets.video import VideoWriter, to_yuv420
from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.training.runtime import choose_device

REFRESH = 1.0  # seconds between looks at the files of the avatars
TELL = 0.25  # seconds between what the panel is told about speed, frame and progress
JPEG_QUALITY = 90


class Viewer:
    """Avatars, a driver and a page. Raises InputError when an avatar, the driver, the address or viser is not to be had."""

    def __init__(self, config: ViewerConfig) -> None:
        check_resolution(config.dataset.resolution)
        self._config, self._device = config, choose_device(config.device, config.gpu_id, "device")
        self.avatars = [WatchedAvatar(config, config.avatar_path, "load_gaussianhead_checkpoint", self._device)]
        self.avatars += [WatchedAvatar(config.of_another(path), path, "beside", self._device) for path in config.beside]
        first = self.avatars[0]
        for other in self.avatars[1:]:
            if other.expression_count != first.expression_count:
                raise InputError(f"beside: {other.path} was trained with {other.expression_count} expression coefficients, {first.path} with "
                                 f"{first.expression_count}; show avatars of one 3DMM beside each other")
        driver = DrivingSequence(config.dataset, first.own_pose, first.expression_count, first.trained)
        self.puppet = Puppet(driver, config.sliders, first.trained)
        self.notes, self._playback = driver.notes, Playback(len(driver))
        self._wake, self._stopping, self._jobs = threading.Event(), threading.Event(), deque[tuple[str, Any]]()
        self._shown: dict[int, tuple[Any, ...]] = {}
        self._refreshed = self._told = self._counted_from = 0.0
        self._pictures, self._speed, self._trouble, self._outdated = 0, "", "", ""

        self._server, self.address = start_server(config.host, config.port, config.recorder.name)
        start, camera = self.puppet.start(), self._server.initial_camera
        self._server.scene.set_up_direction(start.up)
        camera.position, camera.look_at, camera.up, camera.fov = start.position, start.look_at, start.up, start.fov
        look = Look("super-resolved" if config.super_resolution else "coarse", config.dataset.resolution)
        self.panel = Panel(self._server, self.puppet, look, config.video.frames_per_second, self._wake.set, self._ask)
        self._server.on_client_connect(self._connected)
        self._server.on_client_disconnect(self._left)

    def prepare(self) -> None:
        """Draws once for nobody, on a GPU: what compilers need is over before the page is opened."""
        if self._device.type == "cuda":
            print("viewer: drawing once, which takes some 20 s where kernels are yet to be compiled", flush=True)
            wish = self.panel.wish()
            with self._complaints():
                self._draw(wish, self.puppet.lens.resized(wish.look.resolution, wish.look.resolution))

    def run(self) -> None:
        """Draws until `stop` or an interruption. What goes wrong is told in the page, and the next wish is tried."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")  # somebody left while it was drawn
                while not self._stopping.is_set():
                    pause = REFRESH
                    with self._complaints():
                        pause = self._round(time.perf_counter())
                    self._wake.wait(pause)
                    self._wake.clear()
        finally:
            self._server.stop()

    @contextlib.contextmanager
    def _complaints(self) -> Iterator[None]:
        """An error is told and is over: a loop that ends is a page that stands still and does not say why."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self._complain(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """From another thread: ends `run` after what is being drawn."""
        self._stopping.set()
        self._wake.set()

    async def _connected(self, client: Any) -> None:
        async def moved(_: Any) -> None:
            self._wake.set()

        client.camera.on_update(moved)
        self._wake.set()

    async def _left(self, client: Any) -> None:
        self._shown.pop(client.client_id, None)

    def _ask(self, kind: str, client: Any) -> None:
        """To save a picture or a clip; asked again while a clip is made, it is given up."""
        self._jobs.append((kind, client))
        self._wake.set()

    def _round(self, now: float) -> float:
        """Shows everybody the newest state; how many seconds there is nothing more to do."""
        clients = self._server.get_clients()
        if not clients:  # nothing is read or drawn for nobody
            return REFRESH
        if now - self._refreshed > REFRESH:
            self._refreshed = now
            self._refresh()
        while self._jobs:
            self._save(*self._jobs.popleft())
        wish = self.panel.wish()
        rate = self.panel.rate
        frame = self._playback.frame(wish.frame, rate, now)
        drawn = self._show(clients, Wish(frame, wish.offsets, wish.turn, wish.look))
        self._tell(now, drawn, frame)
        return REFRESH if rate is None else max(0.0, 1.0 / rate - (time.perf_counter() - now))

    def _refresh(self) -> None:
        for avatar in self.avatars:
            try:
                if avatar.refresh():
                    self._outdated = ""
            except InputError as error:
                self._outdated = f"this is the avatar from before: {error}"

    def _show(self, clients: dict[int, Any], wish: Wish) -> int:
        """How many pictures were drawn: for those who have not seen this already."""
        drawn = 0
        for number, client in clients.items():
            camera = client.camera
            aspect = camera.image_width / camera.image_height if camera.image_width > 0 < camera.image_height else 1.0
            seen = (wish, tuple(camera.wxyz.tolist()), tuple(camera.position.tolist()), aspect, [avatar.version for avatar in self.avatars])
            if self._shown.get(number) == seen:
                continue
            self._shown[number] = seen  # also if it fails: the same would fail again
            pixels = self._draw(wish, self.puppet.camera(*seen[1:3], wish.look.resolution))
            picture = bordered(pixels.permute(1, 2, 0).numpy(), aspect, wish.look.background)
            client.scene.set_background_image(picture, format="jpeg", jpeg_quality=JPEG_QUALITY)
            client.flush()
            drawn, self._trouble = drawn + 1, ""
        return drawn

    def _draw(self, wish: Wish, camera: Camera) -> UInt8[Tensor, "3 H W"]:
        """All avatars, side by side."""
        frame = self.puppet.frame(wish, camera)
        return torch.cat([avatar.views.draw(frame, wish.look) for avatar in self.avatars], dim=-1)

    def _tell(self, now: float, drawn: int, frame: int) -> None:
        self._pictures += drawn
        if now - self._told < TELL:
            return
        seconds, self._told = now - self._counted_from, now
        if seconds > 1.0:
            self._speed = f"{self._pictures / seconds:.1f} pictures a second" if self._pictures else ""
            self._pictures, self._counted_from = 0, now
        if self.panel.rate is not None:
            self._playback.told = frame
            self.panel.tell_frame(frame)
        lines = [f"`{'/'.join(avatar.path.parts[-2:])}`, step {avatar.step}" for avatar in self.avatars]
        troubles = [f"**{trouble}**" for trouble in (self._trouble, self._outdated) if trouble]
        self.panel.tell("\n\n".join([*lines, self._speed, *troubles]))

    def _complain(self, trouble: str) -> None:
        self._trouble = trouble
        print(f"viewer: {trouble}", flush=True)
        self._told = 0.0
        self._tell(time.perf_counter(), 0, self._playback.told)

    def _save(self, kind: str, client: Any) -> None:
        """A picture or a clip as this client sees it, numbered on; says where it is."""
        if client is None:
            return
        wish, folder = self.panel.wish(), self._config.recorder.result_folder / "viewer"
        camera = self.puppet.camera(tuple(client.camera.wxyz), tuple(client.camera.position), wish.look.resolution)
        try:
            if kind == "picture":
                path = numbered(folder, "picture", ".png")
                write_pixels(path, self._draw(wish, camera))
            else:
                path = numbered(folder, "clip", ".mp4")
                self._film(path, wish, camera)
        except InputError as error:
            client.add_notification(f"No {kind} was saved", str(error), color="red")
            raise
        client.add_notification(f"Saved a {kind}", str(path), auto_close_seconds=10.0)

    def _film(self, path: Path, wish: Wish, camera: Camera) -> None:
        video, length = self._config.video, len(self.puppet.driver)
        rate = round(self.panel.rate or video.frames_per_second)
        with VideoWriter(path, rate, video.crf, video.preset) as writer:
            for index in range(length):
                if self._jobs or self._stopping.is_set():
                    self._jobs.clear()
                    raise InputError("the clip was given up, as something was asked meanwhile")
                writer.add(to_yuv420(self._draw(Wish(index, wish.offsets, wish.turn, wish.look), camera).float() / 255.0))
                self.panel.tell(f"clip: {index + 1} of {length} frames") if index % 10 == 9 else None


def bordered(picture: UInt8[NDArray, "H W 3"], aspect: float, background: tuple[int, int, int]) -> UInt8[NDArray, "h w 3"]:
    """The picture in the middle of one of a window's width / height, which would stretch it otherwise."""
    height, width = picture.shape[:2]
    across, down = max(0, round(height * aspect) - width), max(0, round(width / aspect) - height)
    sides = (down // 2, down - down // 2, 0, 0) if down else (0, 0, across // 2, across - across // 2)
    return cv2.copyMakeBorder(picture, *sides, cv2.BORDER_CONSTANT, value=background) if any(sides) else np.ascontiguousarray(picture)


def numbered(folder: Path, name: str, suffix: str) -> Path:
    """The next free <name>_<number><suffix>."""
    taken = [int(path.stem.rpartition("_")[2]) for path in folder.glob(f"{name}_[0-9]*{suffix}") if path.stem.rpartition("_")[2].isdigit()]
    return folder / f"{name}_{max(taken, default=0) + 1:04d}{suffix}"


def view(config: ViewerConfig) -> None:
    """Serves the page until Ctrl-C."""
    viewer = Viewer(config)
    for note in viewer.notes:
        print(f"driver: {note}")
    viewer.prepare()
    print(f"viewer: open {viewer.address}", flush=True)
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        print("viewer: everybody who reaches this machine and knows that address has the page, and http hides nothing on its way", flush=True)
    viewer.run()
