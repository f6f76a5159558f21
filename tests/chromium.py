"""A headless Chromium that is told what to do by its DevTools protocol: nothing but the browser and `websockets` is needed."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np

COMMAND = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--remote-debugging-port=0",
)


class Chromium:
    """One page of `width` x `height` pixels."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._log = (folder / "chromium.log").open("w+")
        self._process = subprocess.Popen(
            [str(COMMAND), *OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=self._log)
        self._size, self._number = (width, height), 0

    def __enter__(self) -> "Chromium":
        from websockets.sync.client import connect

        port = self._wait(lambda: re.search(r"DevTools listening on ws://127.0.0.1:(\d+)/", Path(self._log.name).read_text()))[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20.0) as answer:
            page = next(one for one in json.load(answer) if one["type"] == "page")
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        width, height = self._size
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20.0)
        self._log.close()

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60.0))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.do("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def until(self, script: str) -> Any:
        """The value of an expression, once it is true."""
        return self._wait(lambda: self.evaluate(script))

    def press(self, key: str, code: int) -> None:
        """A key that has no character."""
        for kind in ("rawKeyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """The left button pressed at a place and let go at another."""
        self.do("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], button="left", buttons=1, clickCount=1)
        for part in (0.25, 0.5, 0.75, 1.0):
            x, y = (round(before + part * (after - before)) for before, after in zip(start, end, strict=True))
            self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
            time.sleep(0.05)
        self.do("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], button="left", buttons=0, clickCount=1)

    def screenshot(self) -> np.ndarray:
        """The whole page: RGB, (H, W, 3)."""
        data = base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)

    @staticmethod
    def _wait(question: Any, seconds: float = 40.0) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if answer := question():
                return answer
            time.sleep(0.1)
        raise TimeoutError(f"not within {seconds} s")
