"""Measures the viewer: pictures a second that a headless client receives and decodes, and how long the first one takes.

    python -m benchmarks.viewer [--config FILE] [--output FILE] [--gaussians N] [--resolution PX] [--seconds S] [key=value ...]

Without `--config` the avatar is that of `benchmarks.reenact`: untrained, a coloured shell as large as a head. The client orbits without pause
while the driver plays, acknowledges nothing, and decodes every JPEG that it is sent. It runs in a process of its own. `ready_s` is the time until
the address is printed, without imports; on a GPU it waits for compilers, and TRITON_CACHE_DIR=<an empty folder> tells how long the first time takes.
JSON goes to stdout (or FILE), progress to stderr.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.reenact import make_avatar, make_driver
from lib.avatars.gaussian_head_avatar.reenactment import LoadedAvatar
from lib.avatars.gaussian_head_avatar.viewer import watched
from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.avatars.gaussian_head_avatar.viewer.viewer import Viewer
from lib.config import read_config
from lib.config.reader import Arguments

WANTED_PER_SECOND, WANTED_FIRST = 30.0, 5.0  # at 512², one H200
CAMERAS_A_SECOND = 120.0  # that the client sends; a browser sends up to 50


class Browser:
    """A client that speaks viser's protocol and draws nothing: it decodes pictures and keeps the widgets by their labels."""

    def __init__(self, address: str, width: int, height: int, origin: str | None = None) -> None:
        import viser
        from websockets.sync.client import connect

        self.width, self.height = width, height
        self.widgets: dict[str, dict[str, Any]] = {}
        self._socket = connect(address.replace("http", "ws", 1).rstrip("/"), subprotocols=[f"viser-v{viser.__version__}"], max_size=None,
                               compression=None, origin=origin)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, kind: str, **values: Any) -> None:
        """A message to the viewer."""
        import msgspec

        self._socket.send(msgspec.msgpack.encode({"type": kind, **values}))

    def look(self, position: tuple[float, ...], wxyz: tuple[float, ...]) -> None:
        """From another place."""
        self.send("ViewerCameraMessage", wxyz=wxyz, position=position, fov=0.5, near=0.01, far=100.0, image_height=self.height,
                  image_width=self.width, look_at=(0.0, 0.0, 0.0), up_direction=(0.0, 1.0, 0.0))

    def set(self, label: str, value: Any) -> None:
        """Moves the widget of that name."""
        self.send("GuiUpdateMessage", uuid=self.widgets[label]["uuid"], updates={"value": value})

    def received(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Messages that come within the next `seconds`."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            try:
                data = self._socket.recv(timeout=left)
            except TimeoutError:
                return
            yield from self._unpacked(data)

    def pictures(self, seconds: float) -> Iterator[np.ndarray]:
        """Pictures that come within the next `seconds`, decoded: RGB, (H, W, 3)."""
        for message in self.received(seconds):
            if message["type"] == "BackgroundImageMessage" and message["rgb_data"] is not None:
                yield cv2.imdecode(np.frombuffer(message["rgb_data"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 30.0) -> dict[str, Any]:
        """The first message that is wanted. Raises TimeoutError."""
        for message in self.received(seconds):
            if wanted(message):
                return message
        raise TimeoutError(f"nothing of that kind within {seconds} s")

    def _unpacked(self, data: bytes) -> list[dict[str, Any]]:
        """Of one window: 8 bytes each of the lengths of packed messages plain and compressed, those, then buffers aligned to 8 bytes."""
        import msgspec
        import zstandard

        size, packed = (int.from_bytes(data[start:start + 8], "little") for start in (0, 8))
        window = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16:16 + packed], max_output_size=size))
        place, buffers = 16 + packed, []
        for length in window["binaryBufferLengths"]:
            place += -place % 8
            buffers.append(data[place:place + length])
            place += length
        messages = [_filled(message, buffers) for message in window["messages"]]
        for message in messages:
            if message["type"].startswith("Gui") and "props" in message:
                self.widgets[message["props"].get("label") or message["type"]] = message
        return messages


def _filled(value: Any, buffers: list[bytes]) -> Any:
    """With what placeholders stand for."""
    if isinstance(value, dict):
        return buffers[value["__binary_index"]] if "__binary_index" in value else {key: _filled(part, buffers) for key, part in value.items()}
    return [_filled(part, buffers) for part in value] if isinstance(value, list) else value


def facing(angle: float, target: tuple[float, float, float] = (0.0, 0.0, 0.0), distance: float = 1.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Place and rotation (wxyz, camera -> world) of a camera that looks at `target`, turned about the vertical by `angle`; 0 is from +z."""
    position = (target[0] + distance * np.sin(angle), target[1], target[2] + distance * np.cos(angle))
    half = 0.5 * angle  # turned about y, after half a turn about x: y down, z forward
    return tuple(map(float, position)), (0.0, float(np.cos(half)), 0.0, float(-np.sin(half)))


def orbit(address: str, size: int, seconds: float, target: tuple[float, float, float], distance: float, answer: Any) -> None:
    """What the client's process does: puts (seconds to the first picture, pictures, seconds, bytes, their size) into a queue."""
    began = time.perf_counter()
    with Browser(address, size, size) as browser:
        browser.look(*facing(0.0, target, distance))
        first = next(browser.pictures(120.0))
        waited = time.perf_counter() - began
        browser.set("Frames a second", 60)
        browser.set("Play", True)
        ended = threading.Event()

        def turn() -> None:
            while not ended.wait(1.0 / CAMERAS_A_SECOND):
                browser.look(*facing(0.4 * np.sin(2.0 * (time.perf_counter() - began)), target, distance))

        thread = threading.Thread(target=turn)
        thread.start()
        for _ in browser.pictures(min(3.0, seconds)):
            pass  # compilers, caches
        start = time.perf_counter()
        pictures = sum(1 for _ in browser.pictures(seconds))
        answer.put((waited, pictures, time.perf_counter() - start, first.shape))
        ended.set()
        thread.join()


def measure(viewer: Viewer, size: int, seconds: float) -> dict[str, Any]:
    """With a client in another process, while the viewer draws in this one."""
    start = viewer.puppet.start()
    distance = float(np.linalg.norm(np.subtract(start.position, start.look_at)))
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    client = context.Process(target=orbit, args=(str(viewer.address), size, seconds, start.look_at, distance, answer), daemon=True)

    def wait() -> None:
        client.join()
        viewer.stop()

    client.start()
    threading.Thread(target=wait, daemon=True).start()
    viewer.run()
    if client.exitcode != 0:
        raise RuntimeError("the client of the viewer ended by an error")
    waited, pictures, took, shape = answer.get(timeout=10.0)
    return {"first_picture_s": round(waited, 2), "pictures_a_second": round(pictures / took, 1), "pictures": pictures, "picture": list(shape[:2])}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="of a viewer, for a trained avatar")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--gaussians", type=int, default=103_000)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    began, size = time.perf_counter(), options.resolution
    with tempfile.TemporaryDirectory() as folder:
        changes = (*options.overrides, f"dataset.resolution={size}", "port=0")
        if options.config is None and options.overrides:
            parser.error("key=value is for a --config")
        if options.config is None:
            viewer = untrained(Path(folder), options.gaussians, size)
        else:
            viewer = Viewer(read_config(Arguments(options.config, changes), ViewerConfig))
        viewer.prepare()
        ready = time.perf_counter() - began
        print(f"viewer ready after {ready:.1f} s; measuring", file=sys.stderr, flush=True)
        result = measure(viewer, size, options.seconds)
    device = viewer.avatars[0].views.avatar.head.xyz.device
    result = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__,
              "threads": torch.get_num_threads(), "gaussians": len(viewer.avatars[0].views.avatar.head.xyz),
              "resolution": size, "ready_s": round(ready, 2), **result}
    result["acceptance"] = [
        {"what": "pictures a second", "value": result["pictures_a_second"], "least": WANTED_PER_SECOND},
        {"what": "seconds from the start to the first picture, without imports", "value": round(ready + result["first_picture_s"], 2),
         "most": WANTED_FIRST}]
    text = json.dumps(result, indent=1)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)


def untrained(folder: Path, gaussians: int, size: int) -> Viewer:
    """A viewer of an avatar that no training made."""
    avatar = make_avatar(gaussians)
    make_driver(folder / "driver", 60, avatar.head.config.exp_coeffs_dim, size)
    values = {"load_gaussianhead_checkpoint": folder / "untrained", "port": 0, "recorder": {"name": "untrained", "result_path": folder / "results"},
              "dataset": {"dataroot": folder / "driver", "param_files": "params/*/params.npz", "resolution": size, "camera": "front"}}
    load, watched.load_avatar = watched.load_avatar, lambda *_: LoadedAvatar(avatar, None, 0)
    try:
        return Viewer(ViewerConfig.model_validate(values))
    finally:
        watched.load_avatar = load


if __name__ == "__main__":
    main()
