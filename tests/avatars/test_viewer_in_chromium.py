"""End to end, where there is a Chromium (`apt-get install chromium`): the page loads, and what is done to it moves pixels where it should."""

import threading
import time

import numpy as np
import pytest

from benchmarks.reenact import make_driver
from lib.avatars.gaussian_head_avatar.reenactment import LoadedAvatar
from lib.avatars.gaussian_head_avatar.viewer import watched
from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.avatars.gaussian_head_avatar.viewer.viewer import Viewer
from tests import chromium
from tests.chromium import Chromium
from tests.shell_with_mouth import REACH, mouth_in, shell_with_mouth

SIZE, WINDOW = 128, (1100, 600)
CANVAS = "(() => { const box = document.querySelector('canvas').getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
FIRST_EXPRESSION = 5  # among sliders, after frame, frames a second and three of the head

pytestmark = pytest.mark.skipif(chromium.COMMAND is None, reason="no chromium here")


@pytest.fixture
def viewer(tmp_path, monkeypatch):
    """Of a shell with a mouth, drawing in a thread."""
    pytest.importorskip("viser")
    avatar = shell_with_mouth(3000)
    make_driver(tmp_path / "driver", 4, 64, SIZE)
    monkeypatch.setattr(watched, "load_avatar", lambda *_: LoadedAvatar(avatar, None, 0))
    viewer = Viewer(ViewerConfig.model_validate({
        "load_gaussianhead_checkpoint": tmp_path / "avatar", "port": 0, "device": "cpu", "recorder": {"name": "page", "result_path": tmp_path},
        "dataset": {"dataroot": tmp_path / "driver", "param_files": "params/*/params.npz", "resolution": SIZE, "camera": "front"}}))
    thread = threading.Thread(target=viewer.run)
    thread.start()
    yield viewer
    viewer.stop()
    thread.join(20.0)


def settled(browser: Chromium, before: np.ndarray | None = None) -> np.ndarray:
    """The canvas once it shows something, other than `before`, and keeps still."""
    last, until = None, time.monotonic() + 30.0
    while time.monotonic() < until:
        left, top, width, height = (round(value) for value in browser.evaluate(CANVAS))
        now = browser.screenshot()[top:top + height, left:left + width]
        new = now.std() > 5 and (before is None or np.abs(now - before).max() > 15)
        if new and last is not None and np.array_equal(now, last):
            return now
        last = now
        time.sleep(0.3)
    raise TimeoutError("the canvas does not change")


def test_the_page_loads_and_a_slider_moves_the_mouth(viewer, tmp_path):
    with Chromium(tmp_path, *WINDOW) as browser:
        browser.do("Page.navigate", url=str(viewer.address))
        browser.until(f"document.querySelectorAll('[role=slider]').length > {FIRST_EXPRESSION}")
        before = settled(browser)
        browser.evaluate(f"document.querySelectorAll('[role=slider]')[{FIRST_EXPRESSION}].focus()")
        browser.press("End", 35)
        after = settled(browser, before)

        changed = np.abs(after - before).max(axis=-1) > 15
        height, width = changed.shape
        across, down = mouth_in(viewer.puppet.driver[0])
        column, row = 0.5 * width + (across - 0.5) * height, down * height  # the picture is in the middle of the canvas, as high as that
        rows, columns = np.nonzero(changed)
        near = np.hypot(rows - row, columns - column) < REACH * height
        assert changed.sum() > 0.005 * height * height and near.mean() > 0.95

        middle = (round(0.3 * width), round(0.5 * height))
        browser.drag(middle, (middle[0] + 80, middle[1]))
        orbited = settled(browser, after)
        assert (np.abs(orbited - after).max(axis=-1) > 15).sum() > 2 * changed.sum()
