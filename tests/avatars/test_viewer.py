"""What a person asks to see is what is drawn; the page is for those who know its address; nobody waits for anybody who left."""

import contextlib
import dataclasses
import math
import queue
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from unittest import mock

import av
import cv2
import numpy as np
import pytest
import roma
import torch

from benchmarks.reenact import make_avatar, make_driver
from benchmarks.viewer import Browser, facing, orbit
from lib.avatars.gaussian_head_avatar.reenactment import LoadedAvatar
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.avatars.gaussian_head_avatar.viewer import server as server_module
from lib.avatars.gaussian_head_avatar.viewer import watched
from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.avatars.gaussian_head_avatar.viewer.server import MESSAGE_MOST, start_server
from lib.avatars.gaussian_head_avatar.viewer.viewer import Viewer, bordered, numbered
from lib.avatars.gaussian_head_avatar.viewer.views import AvatarViews
from lib.avatars.gaussian_head_avatar.viewer.wish import VIEWS, WHITE, Look, Playback, Puppet, Wish, turned
from lib.datasets.images import to_uint8
from lib.errors import InputError, NumericalError
from lib.geometry.camera import look_at
from lib.geometry.head_pose import HeadPose
from tests.shell_with_mouth import REACH, mouth_in, shell_with_mouth

SIZE, EXPRESSIONS, FRAMES = 64, 64, 4
NO_TURN, SLIDERS = (0.0, 0.0, 0.0), 3
LOOK = Look("super-resolved", SIZE)


@pytest.fixture(scope="module")
def avatar():
    return make_avatar(300)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return make_driver(tmp_path_factory.mktemp("driver"), FRAMES, EXPRESSIONS, SIZE)


@pytest.fixture(scope="module")
def puppet(driver):
    return Puppet(driver, SLIDERS, None)


@pytest.fixture(scope="module")
def views(avatar):
    return AvatarViews(avatar, "highest")


def wish(frame=0, offsets=(0.0,) * SLIDERS, turn=NO_TURN, look=LOOK):
    return Wish(frame, offsets, turn, look)


# --- a wish as what drives the avatar ---------------------------------------------------------------------------------

@pytest.mark.parametrize("index", range(FRAMES))
def test_scrubbing_gives_the_driving_frame_to_the_bit(puppet, driver, index):
    frame, expected = puppet.frame(wish(index), driver[index].camera), driver[index]
    assert torch.equal(frame.expression, expected.expression) and torch.equal(frame.pose_code, expected.pose_code)
    assert torch.equal(frame.head.pose, expected.head.pose) and torch.equal(frame.head.scale, expected.head.scale)
    assert frame.camera is expected.camera or torch.equal(frame.camera.world_to_camera, expected.camera.world_to_camera)


def test_frames_that_are_not_there_are_the_nearest(puppet, driver):
    for asked, index in ((-3, 0), (FRAMES + 7, FRAMES - 1)):
        assert torch.equal(puppet.frame(wish(asked), driver[0].camera).expression, driver[index].expression)


def test_sliders_are_the_coefficients_that_vary_most_and_move_them_alone(puppet, driver):
    spread = driver.expressions.std(dim=0, correction=0)
    assert puppet.components.tolist() == spread.topk(SLIDERS).indices.tolist()
    offsets = (0.0, 0.5 * float(puppet.spreads[1]), 1e6)
    moved = puppet.frame(wish(1, offsets), driver[1].camera).expression - driver[1].expression
    expected = torch.zeros(1, EXPRESSIONS)
    expected[0, puppet.components[1]], expected[0, puppet.components[2]] = offsets[1], 3.0 * puppet.spreads[2]  # never beyond its end
    torch.testing.assert_close(moved, expected)


def test_a_driver_that_keeps_still_has_the_sliders_of_the_training(tmp_path):
    from lib.datasets.retarget import TrainedFace

    still = make_driver(tmp_path, 1, EXPRESSIONS, SIZE)
    span = torch.arange(EXPRESSIONS).float()
    puppet = Puppet(still, 2, TrainedFace(-span, span, torch.zeros(EXPRESSIONS), torch.ones(1)))
    assert puppet.components.tolist() == [EXPRESSIONS - 1, EXPRESSIONS - 2]
    assert puppet.spreads.tolist() == pytest.approx([(EXPRESSIONS - 1) / 3, (EXPRESSIONS - 2) / 3])


def test_turning_is_about_the_heads_own_axes_and_told_to_the_networks(puppet, driver):
    frame = puppet.frame(wish(2, turn=(0.0, 30.0, 0.0)), driver[2].camera)
    more = driver[2].head.rotation().transpose(-1, -2) @ frame.head.rotation()
    torch.testing.assert_close(roma.rotmat_to_rotvec(more), torch.tensor([[0.0, math.radians(30.0), 0.0]]), atol=1e-5, rtol=1e-5)
    assert torch.equal(frame.head.pose[:, 3:], driver[2].head.pose[:, 3:])
    assert torch.equal(frame.pose_code, frame.head.pose)


def test_turning_stops_at_the_end_of_its_slider():
    head = HeadPose(torch.zeros(1, 6), torch.ones(1, 1))
    assert torch.equal(turned(head, (1e9, 0.0, 0.0)).pose, turned(head, (45.0, 0.0, 0.0)).pose)


@pytest.mark.parametrize("center", [(0.0, 0.0, 1.0), (0.7, 0.2, 0.8), (-0.5, -0.6, 0.3)])
def test_a_browsers_camera_at_the_place_of_a_capture_gives_its_picture(avatar, views, puppet, driver, center):
    matrix = look_at(torch.tensor(center), torch.tensor([0.0, 0.05, 0.0]))
    captured = dataclasses.replace(puppet.lens, world_to_camera=matrix[None])
    xyzw = roma.rotmat_to_unitquat(matrix[:, :3].T.double())
    seen = puppet.camera(tuple(roma.quat_xyzw_to_wxyz(xyzw).tolist()), tuple(captured.centers()[0].tolist()), SIZE)
    torch.testing.assert_close(seen.world_to_camera, captured.world_to_camera, atol=1e-6, rtol=1e-6)
    assert torch.equal(seen.intrinsics, captured.intrinsics)
    frame = puppet.frame(wish(1), captured)
    expected = to_uint8(AvatarRenderer(avatar, SIZE, SIZE)(frame).image[0])
    assert torch.equal(views.draw(frame, LOOK), expected)
    apart = (views.draw(puppet.frame(wish(1), seen), LOOK).float() - expected.float()).abs()
    assert apart.max() <= 2 and expected.float().std() > 10


def test_another_resolution_sees_the_same(puppet):
    small, large = (puppet.camera((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0), size) for size in (SIZE, 4 * SIZE))
    torch.testing.assert_close(4.0 * small.intrinsics[0, :2], large.intrinsics[0, :2])


@pytest.mark.parametrize(("wxyz", "position"), [
    ((0.0,) * 4, (0.0,) * 3), ((1.0, 0.0, 0.0, math.nan), (0.0,) * 3), ((1.0, 0.0, 0.0, 0.0), (math.inf,) * 3)])
def test_a_camera_that_is_none_is_refused(puppet, wxyz, position):
    with pytest.raises(ValueError, match="a browser's camera"):
        puppet.camera(wxyz, position, SIZE)


def test_the_start_is_the_drivers_camera_looking_at_the_head(puppet, driver):
    start = puppet.start()
    matrix = look_at(torch.tensor(start.position), torch.tensor(start.look_at))
    torch.testing.assert_close(matrix, driver[0].camera.world_to_camera[0], atol=1e-6, rtol=1e-6)
    assert start.look_at == pytest.approx((0.0, 0.0, 0.0), abs=1e-6) and start.up == (0.0, 1.0, 0.0)


def test_playing_keeps_the_time_and_follows_the_slider():
    play = Playback(10)
    assert play.frame(3, None, 0.0) == 3
    assert [play.frame(3, 5.0, now) for now in (1.0, 1.1, 1.25, 2.9)] == [3, 3, 4, 2]  # what was late is left out; around
    assert play.frame(8, 5.0, 3.0) == 8  # somebody moved the slider
    assert play.frame(8, 5.0, 3.5) == 0
    assert play.frame(8, 10.0, 4.0) == 8  # another rate starts from the slider
    assert play.frame(8, None, 9.0) == 8


# --- views ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_the_background_where_nothing_is(views, puppet, driver, view):
    for background in (WHITE, (30, 60, 90)):
        pixels = views.draw(puppet.frame(wish(), driver[0].camera), Look(view, SIZE, background))
        assert pixels.shape == (3, SIZE, SIZE)
        assert (pixels[:, 0, 0].int() - torch.tensor(background)).abs().max() <= 2
        assert (pixels[:, SIZE // 2, SIZE // 2].int() - torch.tensor(background)).abs().max() > 20


def test_the_coarse_picture_over_a_colour_is_what_the_rasterizer_blends(avatar, views, puppet, driver):
    from lib.render.gaussian.interface import rasterize

    frame, background = driver[1], (30, 60, 90)
    cloud = avatar.head(frame.expression, frame.pose_code, frame.head)
    cloud = dataclasses.replace(cloud, features=cloud.features[..., :3])
    with torch.no_grad():
        blended = rasterize(cloud, frame.camera.resized(SIZE // 4, SIZE // 4), torch.tensor(background) / 255.0).features[0]
    pixels = views.draw(puppet.frame(wish(1), frame.camera), Look("coarse", SIZE, background))
    assert (pixels[:, ::4, ::4].int() - to_uint8(blended).int()).abs().max() <= 1


def test_normals_of_a_ball_look_at_the_camera(avatar, puppet, driver):
    """The shell of the untrained avatar is an ellipsoid: in its middle blue, at its right red, at its top green."""
    pixels = AvatarViews(make_avatar(4000), "highest").draw(puppet.frame(wish(), driver[0].camera), Look("normals", SIZE)).float()
    covered = (pixels != 255).any(dim=0)
    rows, columns = covered.nonzero().unbind(dim=1)
    middle, right, top = ((rows - 32).abs() + (columns - 32).abs() < 12, columns > columns.max() - 5, rows < rows.min() + 5)
    red, green, blue = (pixels[channel][rows, columns] for channel in range(3))
    assert blue[middle].mean() > 200 and red[right].mean() > 160 and green[top].mean() > 160


def test_a_picture_that_is_not_finite_is_told(puppet, driver):
    damaged = make_avatar(300)
    damaged.upsampler.exit.bias.data[0] = math.nan
    with pytest.raises(NumericalError, match="NaN"):
        AvatarViews(damaged, "highest").draw(puppet.frame(wish(), driver[0].camera), LOOK)


@pytest.mark.parametrize("changes", [{"offsets": (math.nan, 0.0, 0.0)}, {"turn": (0.0, math.inf, 0.0)}])
def test_sliders_that_are_no_numbers_are_refused(puppet, driver, changes):
    with pytest.raises(ValueError, match="sliders"):
        puppet.frame(wish(**changes), driver[0].camera)


def test_a_slider_moves_the_mouth(puppet, driver):
    size = 2 * SIZE  # a pixel of the coarse picture is then small against the mouth
    views, frame = AvatarViews(shell_with_mouth(3000), "highest"), driver[0]
    camera, look, reach = frame.camera.resized(size, size), Look("super-resolved", size), 3.0 * float(puppet.spreads[0])
    neutral, moved = (views.draw(puppet.frame(wish(offsets=(offset, 0.0, 0.0)), camera), look).float() for offset in (0.0, reach))
    rows, columns = ((moved - neutral).abs().amax(dim=0) > 15).nonzero().unbind(dim=1)
    across, down = mouth_in(frame)
    near = torch.hypot(rows + 0.5 - down * size, columns + 0.5 - across * size) < REACH * size
    assert len(rows) > 0.005 * size * size and near.float().mean() > 0.95


@pytest.mark.parametrize(("aspect", "shape"), [(2.0, (4, 8)), (0.5, (8, 4)), (1.0, (4, 4))])
def test_a_window_of_another_shape_gets_borders(aspect, shape):
    picture = bordered(np.full((4, 4, 3), 7, np.uint8), aspect, (1, 2, 3))
    assert picture.shape == (*shape, 3)
    assert (picture == 7).all(axis=-1).sum() == 16 and (picture == (1, 2, 3)).all(axis=-1).sum() == shape[0] * shape[1] - 16


def test_files_are_numbered_on(tmp_path):
    assert numbered(tmp_path, "clip", ".mp4").name == "clip_0001.mp4"
    for name in ("clip_0007.mp4", "clip_0002.mp4", "clip_old.mp4", "picture_0009.png"):
        (tmp_path / name).touch()
    assert numbered(tmp_path, "clip", ".mp4").name == "clip_0008.mp4"


# --- through the page -------------------------------------------------------------------------------------------------

class Running:
    """A viewer of untrained avatars that draws in a thread; files stand for their checkpoints."""

    def __init__(self, folder: Path, avatars: dict[str, object], **changes: object) -> None:
        self.folder, self.avatars = folder, avatars
        for name in avatars:
            (folder / name).write_text(name)
        first, *beside = avatars
        make_driver(folder / "driver", FRAMES, EXPRESSIONS, SIZE)
        self.config = ViewerConfig.model_validate({
            "load_gaussianhead_checkpoint": folder / first, "beside": [folder / name for name in beside], "port": 0, "device": "cpu",
            "sliders": SLIDERS,
            "recorder": {"name": "page", "result_path": folder}, "video": {"preset": "ultrafast"},
            "dataset": {"dataroot": folder / "driver", "param_files": "params/*/params.npz", "resolution": SIZE, "camera": "front"}} | changes)

    def __enter__(self) -> "Running":
        self._patch = mock.patch.object(watched, "load_avatar", self._load)
        self._patch.start()
        self.viewer = Viewer(self.config)
        self._thread = threading.Thread(target=self.viewer.run)
        self._thread.start()
        return self

    def _load(self, config, path, key):
        loaded = self.avatars[path.name]
        if isinstance(loaded, InputError):
            raise loaded
        return LoadedAvatar(loaded, None, len(path.read_text()))

    def __exit__(self, *_: object) -> None:
        self.viewer.stop()
        self._thread.join(20.0)
        self._patch.stop()
        assert not self._thread.is_alive()

    def browser(self, width: int = SIZE, height: int = SIZE) -> Browser:
        browser = Browser(str(self.viewer.address), width, height)
        browser.look(*facing(0.0))
        return browser


@pytest.fixture
def viser():
    return pytest.importorskip("viser")


def picture(browser: Browser) -> np.ndarray:
    return next(browser.pictures(20.0)).astype(int)


def saying(browser: Browser, words: str) -> str:
    """What the status says once these words are in it, or the title of a notification with its text."""
    def text(message):
        values = message.get("updates", {}) | message.get("props", {})
        return " ".join(map(str, values.values()))

    return text(browser.until(lambda message: words in text(message), 20.0))


def test_a_page_shows_the_avatar_and_its_sliders_move_it(viser, avatar, views, puppet, tmp_path):
    with Running(tmp_path, {"one": avatar}) as running, running.browser(2 * SIZE, SIZE) as browser:
        seen = picture(browser)
        expected = views.draw(puppet.frame(wish(), puppet.lens), LOOK).permute(1, 2, 0).numpy().astype(int)
        assert seen.shape == (SIZE, 2 * SIZE, 3)
        assert np.abs(seen[:, SIZE // 2:-SIZE // 2] - expected).mean() < 4 and (seen[:, :SIZE // 2 - 8] > 250).all()
        browser.set(str(int(puppet.components[0])), 3.0)
        moved = picture(browser)
        offsets = (3.0 * float(puppet.spreads[0]), 0.0, 0.0)
        expected = views.draw(puppet.frame(wish(offsets=offsets), puppet.lens), LOOK).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(moved - seen).max() > 10 and np.abs(moved[:, SIZE // 2:-SIZE // 2] - expected).mean() < 4
        browser.set("Frame", 2)
        expected = views.draw(puppet.frame(wish(2, offsets), puppet.lens), LOOK).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(picture(browser)[:, SIZE // 2:-SIZE // 2] - expected).mean() < 4


def test_playing_shows_frame_after_frame(viser, avatar, tmp_path):
    with Running(tmp_path, {"one": avatar}) as running, running.browser() as browser:
        picture(browser)
        browser.set("Frames a second", 20)
        browser.set("Play", True)
        shown = [next(browser.pictures(20.0)).astype(int) for _ in range(2 * FRAMES)]
        assert sum(np.abs(one - other).max() > 10 for one, other in zip(shown[1:], shown[:-1], strict=True)) >= FRAMES


def test_the_client_of_the_benchmark_counts_pictures(viser, avatar, tmp_path):
    answer = queue.SimpleQueue()
    with Running(tmp_path, {"one": avatar}) as running:
        orbit(str(running.viewer.address), SIZE, 0.5, (0.0, 0.0, 0.0), 1.0, answer)
    waited, pictures, took, shape = answer.get()
    assert 0.0 < waited < 10.0 and 1 <= pictures < 200 and 0.4 < took < 5.0 and shape == (SIZE, SIZE, 3)


def test_nothing_is_drawn_for_nobody(viser, avatar, tmp_path):
    with Running(tmp_path, {"one": avatar}) as running:
        with mock.patch.object(AvatarViews, "draw", side_effect=AssertionError("drawn")) as draw:
            time.sleep(0.3)
        assert not draw.called
        with running.browser() as browser:
            picture(browser)
        until = time.monotonic() + 10.0
        while running.viewer._server.get_clients() and time.monotonic() < until:
            time.sleep(0.02)
        viewer = running.viewer
        with mock.patch.object(AvatarViews, "draw", wraps=viewer.avatars[0].views.draw) as draw, mock.patch.object(viewer, "_refresh") as refresh:
            viewer._refreshed = 0.0  # long ago
            viewer._wake.set()
            time.sleep(0.3)
        assert not draw.called and not refresh.called


def test_on_a_gpu_one_picture_is_drawn_before_there_is_a_browser(viser, avatar, tmp_path, capsys):
    with Running(tmp_path, {"one": avatar}) as running, mock.patch.object(AvatarViews, "draw", side_effect=NumericalError("NaN here")) as draw:
        running.viewer.prepare()
        assert not draw.called
        running.viewer._device = torch.device("cuda")  # the avatar stays where it is
        running.viewer.prepare()
        (frame, look), = (call.args for call in draw.call_args_list)
        assert (frame.camera.width, look.resolution) == (SIZE, SIZE)
        assert "drawing once" in (said := capsys.readouterr().out) and "NaN here" in said


def test_a_browser_that_breaks_off_while_it_is_drawn_for_stops_nobody(viser, avatar, tmp_path):
    with Running(tmp_path, {"one": avatar}) as running, running.browser() as stays:
        picture(stays)
        gone, draw = running.browser(), AvatarViews.draw
        picture(gone)

        def breaking(self, frame, look):
            with contextlib.suppress(OSError):
                gone._socket.socket.shutdown(socket.SHUT_RDWR)  # as where a cable is pulled: no good-bye
            return draw(self, frame, look)

        with mock.patch.object(AvatarViews, "draw", breaking):
            gone.look(*facing(0.1))
            stays.look(*facing(0.1))
            assert picture(stays).shape == (SIZE, SIZE, 3)
        until = time.monotonic() + 10.0
        while len(running.viewer._server.get_clients()) > 1 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(running.viewer._server.get_clients()) == 1
        stays.look(*facing(0.2))
        assert picture(stays).shape == (SIZE, SIZE, 3) and running.viewer._trouble == ""


def test_what_became_old_before_it_was_drawn_is_not_drawn(viser, avatar, tmp_path):
    with Running(tmp_path, {"one": avatar}) as running, running.browser() as browser:
        picture(browser)
        drawn, draw = [], AvatarViews.draw

        def slowly(self, frame, look):
            time.sleep(0.2)
            drawn.append(frame.camera)
            return draw(self, frame, look)

        with mock.patch.object(AvatarViews, "draw", slowly):
            for step in range(1, 31):
                browser.look(*facing(0.01 * step))
            shown = len(list(browser.pictures(1.5)))
        assert 1 <= shown == len(drawn) < 10
        assert torch.allclose(drawn[-1].centers()[0], torch.tensor(facing(0.3)[0]), atol=1e-5)


def test_an_error_is_told_in_the_page_which_goes_on(viser, avatar, tmp_path):
    with Running(tmp_path, {"one": avatar}) as running, running.browser() as browser:
        picture(browser)
        with mock.patch.object(AvatarViews, "draw", side_effect=InputError("the disk fell out")):
            browser.look(*facing(0.1))
            assert "**the disk fell out**" in saying(browser, "fell out")
        browser.look(*facing(0.2))
        assert picture(browser).shape == (SIZE, SIZE, 3)


def test_a_replaced_checkpoint_is_shown_and_a_broken_one_is_told(viser, avatar, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.avatars.gaussian_head_avatar.viewer.viewer.REFRESH", 0.05)
    with Running(tmp_path, {"one": avatar}) as running, running.browser() as browser:
        before = picture(browser)
        running.avatars["one"] = make_avatar(300, seed=1)
        (tmp_path / "one.partial").write_text("longer than it was")
        (tmp_path / "one.partial").replace(tmp_path / "one")
        assert np.abs(picture(browser) - before).max() > 20
        assert "step 18" in saying(browser, "step 18")
        running.avatars["one"] = InputError("one: is damaged")
        (tmp_path / "one").write_text("broken")
        assert "the avatar from before: one: is damaged" in saying(browser, "damaged")
        (tmp_path / "one").unlink()
        browser.look(*facing(0.2))
        picture(browser)


def test_avatars_stand_side_by_side(viser, avatar, tmp_path):
    other = make_avatar(300, seed=1)
    with Running(tmp_path, {"one": avatar, "two": other}) as running, running.browser(2 * SIZE, SIZE) as browser:
        both = picture(browser)
    for place, one in ((slice(0, SIZE), avatar), (slice(SIZE, None), other)):
        expected = AvatarViews(one, "highest").draw(running.viewer.puppet.frame(wish(), running.viewer.puppet.lens), LOOK)
        assert np.abs(both[:, place] - expected.permute(1, 2, 0).numpy()).mean() < 6


def test_an_avatar_of_another_width_is_refused(avatar, tmp_path):
    other = make_avatar(10)
    other.head.config = other.head.config.model_copy(update={"exp_coeffs_dim": 10})
    running = Running(tmp_path, {"one": avatar, "two": other})
    with mock.patch.object(watched, "load_avatar", running._load), pytest.raises(InputError, match="two was trained with 10 .*one with 64"):
        Viewer(running.config)


def test_pictures_and_clips_are_saved(viser, avatar, views, puppet, tmp_path):
    folder = tmp_path / "page" / "viewer"
    with Running(tmp_path, {"one": avatar}) as running, running.browser(3 * SIZE, SIZE) as browser:
        picture(browser)
        for _ in range(2):
            browser.set("Picture", True)
            assert str(folder / "picture_000") in saying(browser, "Saved a picture")
        browser.set("Clip", True)
        assert str(folder / "clip_0001.mp4") in saying(browser, "Saved a clip")
    expected = views.draw(puppet.frame(wish(), puppet.lens), LOOK)
    saved = torch.from_numpy(cv2.imread(str(folder / "picture_0002.png"))[..., ::-1].copy()).permute(2, 0, 1)
    assert (saved.int() - expected.int()).abs().max() <= 2
    with av.open(str(folder / "clip_0001.mp4")) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(SIZE, SIZE)] * FRAMES
    assert sorted(path.name for path in folder.iterdir()) == ["clip_0001.mp4", "picture_0001.png", "picture_0002.png"]


def test_a_clip_for_which_the_disk_is_full_is_told_and_leaves_nothing(viser, avatar, tmp_path):
    with Running(tmp_path, {"one": avatar}) as running, running.browser() as browser:
        picture(browser)
        with mock.patch("lib.avatars.gaussian_head_avatar.viewer.viewer.VideoWriter.add", side_effect=InputError("clip: No space left on device")):
            browser.set("Clip", True)
            assert "No space left" in saying(browser, "No clip was saved")
        browser.look(*facing(0.1))
        picture(browser)
    assert not list((tmp_path / "page" / "viewer").iterdir())


def test_what_cannot_be_saved_is_told_and_leaves_nothing(viser, avatar, tmp_path):
    (tmp_path / "page").write_text("a file is in the way")
    with Running(tmp_path, {"one": avatar}) as running, running.browser() as browser:
        picture(browser)
        browser.set("Clip", True)
        assert str(tmp_path / "page") in saying(browser, "No clip was saved")
        browser.look(*facing(0.1))
        picture(browser)
    assert not list(tmp_path.rglob("*.partial"))


# --- who may have it --------------------------------------------------------------------------------------------------

@pytest.fixture
def served(viser):
    server, address = start_server("127.0.0.1", 0, "test")
    yield str(address)
    server.stop()


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10.0) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_the_whole_address_gives_the_page(served):
    root, token = served.rstrip("/").rsplit("/", 1)
    assert len(token) >= 20 and start_of_page(served)
    assert status(served.rstrip("/")) == 200
    for wrong in ("/", "/index.html", f"/{token[:-1]}/", f"/{token}x/", "//", f"/{'x' * len(token)}/", f"/x/{token}/", "/%C3%A4/"):
        assert status(root + wrong) == 403, wrong
    assert status(served + "../../setup.py") == 404


def start_of_page(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=10.0) as answer:
        return b"<html" in answer.read().lower()


def test_another_origin_gets_neither_page_nor_connection(served):
    from websockets.exceptions import InvalidStatus

    own = served.split("/")[2]
    for origin in ("http://elsewhere.example", f"http://{own}1", "null"):
        assert status(served, Origin=origin) == 403
        with pytest.raises(InvalidStatus, match="403"):
            Browser(served, SIZE, SIZE, origin=origin)
    with Browser(served, SIZE, SIZE, origin=f"http://{own}") as browser:
        assert browser.until(lambda message: message["type"] == "ReplayDoneMessage", 10.0)


def test_a_connection_without_the_secret_is_refused(served):
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus, match="403"):
        Browser(served.rsplit("/", 2)[0] + "/", SIZE, SIZE)


def raw(served: str, path: bytes, *headers: bytes) -> bytes:
    """The whole answer to a request that no browser would write."""
    host, port = served.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(b"\r\n".join([b"GET " + path + b" HTTP/1.1", *headers, b"Connection: close", b"", b""]))
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


UPGRADE = (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")


@pytest.mark.parametrize("upgrade", [(), UPGRADE], ids=["page", "websocket"])
def test_a_name_that_was_made_to_lead_here_is_refused(served, upgrade):
    """DNS rebinding: the page of elsewhere.example is of the origin it asks, but says so in Host."""
    port, path = served.split("/")[2].split(":")[1].encode(), "/" + served.split("/", 3)[3]
    for host in (b"elsewhere.example", b"localhost.elsewhere.example", b"10.0.0.1", b"127.0.0.1.elsewhere.example", b"", b"[::2]", b"localhost@x"):
        whole = host + b":" + port
        assert b" 403 " in raw(served, path.encode(), b"Host: " + whole, b"Origin: http://" + whole, *upgrade).split(b"\r\n")[0], host
    for host in (b"127.0.0.1", b"localhost", b"LOCALHOST", b"[::1]", b"127.0.0.1:9000", b"localhost:1"):  # the last two: through ssh -L
        assert b" 403 " not in raw(served, path.encode(), b"Host: " + host, b"Origin: http://" + host).split(b"\r\n")[0], host


@pytest.mark.parametrize("headers", [
    (), (b"Host: 127.0.0.1", b"Host: elsewhere.example"), (b"Host: 127.0.0.1", b"Origin: http://127.0.0.1", b"Origin: null"),
    (b"Host: 127.0.0.1", b"Origin: http://["), (b"Host: 127.0.0.1", b"Origin: 127.0.0.1")])
def test_headers_that_no_browser_sends_are_refused_not_an_error(served, headers, caplog):
    assert b" 403 " in raw(served, ("/" + served.split("/", 3)[3]).encode(), *headers).split(b"\r\n")[0]
    assert not caplog.records


@pytest.mark.parametrize("path", [b"/\xff/", b"/\xc3\xa4/", b"/%ff/", b"//", b"/" + b"x" * 4000 + b"/"])
def test_secrets_of_any_bytes_are_refused_not_an_error(served, path, caplog):
    assert b" 403 " in raw(served, path, b"Host: 127.0.0.1").split(b"\r\n")[0]
    assert not caplog.records


@pytest.mark.parametrize("path", ["/etc/passwd", f"{'../' * 9}etc/passwd", f"{'%2e%2e/' * 9}etc/passwd", "..\\..\\setup.py"])
def test_the_page_gives_no_file_of_the_machine(served, path):
    answer = raw(served, f"/{served.split('/', 3)[3]}{path}".encode(), b"Host: 127.0.0.1")
    assert b" 404 " in answer.split(b"\r\n")[0] and b"root:" not in answer


def test_elsewhere_the_secret_is_needed_under_any_name(viser):
    from websockets.exceptions import InvalidStatus

    server, address = start_server("0.0.0.0", 0, "test")
    try:
        here = f"http://127.0.0.1:{address.port}"
        for wrong in ("/", f"/{address.token[:-1]}/", f"/{address.token[::-1]}/"):
            assert status(here + wrong) == 403
            with pytest.raises(InvalidStatus, match="403"):
                Browser(here + wrong, SIZE, SIZE)
        whole = f"{here}/{address.token}/"
        for host in (b"127.0.0.1", b"gpu3.lab.example"):  # what its network calls the machine is not known
            assert b" 200 " in raw(whole, f"/{address.token}/".encode(), b"Host: " + host).split(b"\r\n")[0]
        with pytest.raises(InvalidStatus, match="403"):
            Browser(whole, SIZE, SIZE, origin="http://elsewhere.example")
        with Browser(whole, SIZE, SIZE) as browser:
            assert browser.until(lambda message: message["type"] == "ReplayDoneMessage", 10.0)
    finally:
        server.stop()


def test_the_default_is_this_machine_alone():
    assert ViewerConfig.model_fields["host"].default == "127.0.0.1"


def test_the_server_tells_its_secret_to_no_log(viser, capfd, caplog):
    caplog.set_level("DEBUG")
    server, address = start_server("127.0.0.1", 0, "test")
    try:
        start_of_page(str(address))
        status(str(address)[:-3])
        with Browser(str(address), SIZE, SIZE) as browser:
            browser.until(lambda message: message["type"] == "ReplayDoneMessage", 10.0)
    finally:
        server.stop()
    said = capfd.readouterr()
    assert address.token not in said.out + said.err  # viewer.py prints it, once
    assert not [record for record in caplog.records if address.token in record.getMessage() and record.levelname != "DEBUG"]


def test_the_secret_is_compared_in_constant_time(served):
    with mock.patch.object(server_module.hmac, "compare_digest", wraps=server_module.hmac.compare_digest) as compared:
        assert status(served) == 200
    assert compared.call_count == 1


def test_a_message_that_is_too_long_ends_its_connection(served):
    from websockets.exceptions import ConnectionClosed

    with Browser(served, SIZE, SIZE) as browser, pytest.raises(ConnectionClosed) as closed:
        browser.until(lambda message: message["type"] == "ReplayDoneMessage", 10.0)
        browser.send("FileTransferPart", content=bytes(MESSAGE_MOST))
        for _ in browser.received(10.0):
            pass
    assert closed.value.rcvd.code == 1009


def test_nobody_can_ask_for_a_tunnel_to_the_world(served, viser):
    with mock.patch("viser._viser.ViserTunnel") as tunnel, Browser(served, SIZE, SIZE) as browser:
        browser.look(*facing(0.0))
        browser.send("ShareUrlRequest")
        for _ in browser.received(0.5):
            pass
    assert not tunnel.called


def test_a_port_in_use_is_said(served):
    port = int(served.split("/")[2].split(":")[1])
    with pytest.raises(InputError, match=f"port {port}: the page cannot be served there .*in use.*port=0"):
        start_server("127.0.0.1", port, "test")
    with pytest.raises(InputError, match="host no.such.host.invalid"):
        start_server("no.such.host.invalid", 0, "test")


def test_a_viser_that_cannot_be_guarded_is_refused(viser, monkeypatch):
    import websockets.asyncio.server

    serve = websockets.asyncio.server.serve
    monkeypatch.setattr(server_module, "_replaced", lambda *_: contextlib.nullcontext([]))
    with pytest.raises(InputError, match="guarded"):
        start_server("127.0.0.1", 0, "test")
    assert websockets.asyncio.server.serve is serve


def test_without_viser_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match=r"pip install -e \.\[viewer\]"):
        start_server("127.0.0.1", 0, "test")
