"""From a renderer to files: in order, whole, with every error told, and with pictures drawn again that did not fit."""

import threading

import av
import cv2
import numpy as np
import pytest
import torch

from benchmarks.reenact import make_avatar, make_driver
from lib.avatars.gaussian_head_avatar import film as module
from lib.avatars.gaussian_head_avatar.film import Pace, Threads, VideoConfig, film
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer, Drawing
from lib.errors import InputError

SIZE, FRAMES = 32, 25
CONFIG = VideoConfig(sheet_columns=3, sheet_rows=2, crf=4)


class Grey(AvatarRenderer):
    """Frame i is grey of the level 10 i; `needs` more room than there is for some; draws NaN for others."""

    def __init__(self, driver, needs=None, broken=(), ahead=0, stop=None):
        self.device, self.width, self.height, self.ahead = torch.device("cpu"), SIZE, SIZE, ahead
        self.background = torch.ones(3)
        self.codes = {tuple(driver[index].expression[0].tolist()): index for index in range(len(driver))}
        self.needs, self.broken, self.stop, self.room, self.drawn = needs or {}, broken, stop, 100, []

    def __call__(self, frame):
        index = self.codes[tuple(frame.expression[0].tolist())]
        if index == self.stop:
            raise KeyboardInterrupt
        self.drawn.append(index)
        needed = self.needs.get(index, 0)
        level = float("nan") if needed > self.room or index in self.broken else 10.0 * index / 255.0
        return Drawing(torch.full((1, 3, SIZE, SIZE), level), torch.tensor([needed, 0]), self.room)

    def make_room(self, needed):
        self.room = max(self.room, needed)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return make_driver(tmp_path_factory.mktemp("driver"), FRAMES, 4, SIZE)


def levels(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]


def assert_whole(folder, suffix="png"):
    names = sorted((folder / "frames").iterdir())
    assert [path.name for path in names] == [f"{index:05d}.{suffix}" for index in range(FRAMES)]
    assert [round(float(cv2.imread(str(path)).mean())) for path in names] == [10 * index for index in range(FRAMES)]
    assert np.allclose(levels(folder / "reenactment.mp4"), 10 * np.arange(FRAMES), atol=2)
    sheet = cv2.imread(str(folder / "contact_sheet.png"))
    assert sheet.shape == (2 * SIZE, 3 * SIZE, 3)
    assert (np.diff(sheet[::SIZE, ::SIZE, 0].flatten().astype(int)) > 0).all()
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_pictures_are_written_in_order(driver, tmp_path, ahead):
    pace = film(Grey(driver, ahead=ahead), driver, CONFIG, tmp_path)
    assert_whole(tmp_path)
    assert len(pace.latencies) == len(pace.drawing) == FRAMES
    assert pace.began <= pace.first <= pace.ended


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_a_short_driver_is_whole_on_the_sheet(tmp_path, frames):
    driver = make_driver(tmp_path / "driver", frames, 4, SIZE)
    film(Grey(driver), driver, CONFIG, tmp_path)
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))[::SIZE, ::SIZE, 0].flatten()
    assert sheet.tolist() == [10 * index for index in range(frames)] + [255] * (-frames % min(3, frames))


@pytest.mark.parametrize("ahead", [0, 1])
def test_what_did_not_fit_is_drawn_again(driver, tmp_path, monkeypatch, ahead):
    """Also the one that was already being drawn with too little room when that was noticed."""
    monkeypatch.setattr(module.Place, "busy", lambda place: False)  # slow writers would change what is drawn ahead
    renderer = Grey(driver, needs={3: 50, 7: 150, 8: 150, 9: 170, 24: 400}, ahead=ahead)
    film(renderer, driver, CONFIG, tmp_path)
    assert_whole(tmp_path)
    assert renderer.room == 400
    assert [renderer.drawn.count(index) for index in (3, 7, 24)] == [1, 2, 2]
    assert renderer.drawn.count(8) == 1 + ahead


@pytest.mark.parametrize("kind", ["none", "png", "jpg"])
def test_frames_as_asked_and_none_of_an_earlier_run(driver, tmp_path, kind):
    for name in ("00099.png", "00098.jpg", "00001.png", "notes.txt"):
        (tmp_path / "frames").mkdir(exist_ok=True)
        (tmp_path / "frames" / name).touch()
    film(Grey(driver), driver, CONFIG.model_copy(update={"frames": kind}), tmp_path)
    (tmp_path / "frames" / "notes.txt").unlink()  # not ours: still there
    if kind == "none":
        assert list((tmp_path / "frames").iterdir()) == []
        assert len(levels(tmp_path / "reenactment.mp4")) == FRAMES
    else:
        assert_whole(tmp_path, kind)


def test_a_broken_picture_is_told_by_its_file(driver, tmp_path):
    with pytest.raises(InputError) as error:
        film(Grey(driver, broken=(5,), ahead=1), driver, CONFIG, tmp_path)
    assert str(error.value).startswith(f"{driver.files[5]}: the avatar renders NaN for this frame")
    assert not (tmp_path / "reenactment.mp4").exists() and not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "frames" / "00005.png").exists()


def test_a_film_that_cannot_begin_leaves_the_frames_of_the_one_before(driver, tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "00099.png").touch()
    with pytest.raises(InputError, match="renders NaN"):
        film(Grey(driver, broken=(0,)), driver, CONFIG, tmp_path)
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["00099.png"]


@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 7), (9, 2)])
def test_a_picture_that_is_not_square_keeps_its_shape(height, width):
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    square = module.squared(pixels)
    size = max(height, width)
    assert square.shape == (3, size, size)
    top, left = (size - height) // 2, (size - width) // 2
    assert torch.equal(square[:, top:top + height, left:left + width], pixels)
    assert int(square.long().sum()) == int(pixels.long().sum()) + 3 * 255 * (size * size - height * width)


@pytest.mark.parametrize(("target", "name"), [(module, "write_pixels"), (module.VideoWriter, "add")])
def test_errors_of_threads_end_the_run_soon(driver, tmp_path, monkeypatch, target, name):
    def refuses(*_):
        raise InputError("the disk is full")

    monkeypatch.setattr(target, name, refuses)
    monkeypatch.setattr(module, "IMAGE_THREADS", 2)
    renderer = Grey(driver)
    with pytest.raises(InputError, match="the disk is full"):
        film(renderer, driver, CONFIG, tmp_path)
    assert len(renderer.drawn) <= module.PLACES + 2 + 1
    assert not (tmp_path / "reenactment.mp4").exists() and not list(tmp_path.rglob("*.partial"))


def test_an_error_of_the_last_pictures_is_told_too(driver, tmp_path, monkeypatch):
    write = module.write_pixels

    def refuses_the_last(path, pixels):
        if path.stem == f"{FRAMES - 1:05d}":
            raise InputError("the disk is full")
        write(path, pixels)

    monkeypatch.setattr(module, "write_pixels", refuses_the_last)
    with pytest.raises(InputError, match="the disk is full"):
        film(Grey(driver), driver, CONFIG, tmp_path)
    assert not (tmp_path / "reenactment.mp4").exists()


def test_an_interruption_leaves_whole_files_only(driver, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        film(Grey(driver, stop=15, ahead=1), driver, CONFIG, tmp_path)
    assert not (tmp_path / "reenactment.mp4").exists() and not list(tmp_path.rglob("*.partial"))
    for path in (tmp_path / "frames").iterdir():
        assert round(float(cv2.imread(str(path)).mean())) == 10 * int(path.stem)


def test_a_slow_encoder_holds_the_renderer_back(driver, tmp_path, monkeypatch):
    """Places are bounded: as long as nothing is encoded, no more pictures than that are drawn."""
    renderer, go, add = Grey(driver), threading.Event(), module.VideoWriter.add

    def waits(self, planes):
        go.wait(20)
        add(self, planes)

    monkeypatch.setattr(module.VideoWriter, "add", waits)
    run = threading.Thread(target=film, args=(renderer, driver, CONFIG.model_copy(update={"frames": "none"}), tmp_path))
    run.start()
    run.join(1.0)
    assert len(renderer.drawn) == module.PLACES
    go.set()
    run.join(30)
    assert np.allclose(levels(tmp_path / "reenactment.mp4"), 10 * np.arange(FRAMES), atol=2)


def test_things_are_loaded_ahead_in_order():
    with Threads() as threads:
        assert list(threads.ahead(lambda item: 2 * item, range(100))) == [2 * item for item in range(100)]
        assert list(threads.ahead(lambda item: item, [])) == []


def test_the_pace_counts_from_the_first_picture():
    pace = Pace(began=0.0, first=10.0, ended=12.0, latencies=[0.01 * place for place in range(101)], drawing=[0.005] * 101)
    assert (pace.written_per_second, round(pace.rendered_per_second), pace.latency(0.5), round(pace.latency(0.95), 6)) == (50.0, 200, 0.5, 0.95)
    assert str(pace) == ("101 frames in 12.0 s; after the first 50.0 a second, rendered 200.0 a second; latency 500.0 ms, 95 % below 950.0 ms")


def test_the_coarse_picture_is_a_quarter_as_large(tmp_path):
    avatar, driver = make_avatar(100), make_driver(tmp_path / "driver", 3, 64, 68)  # 17 pixels: odd
    film(AvatarRenderer(avatar, 68, 68, coarse_only=True), driver, CONFIG, tmp_path)
    assert cv2.imread(str(tmp_path / "frames" / "00002.png")).shape == (17, 17, 3)
    with av.open(str(tmp_path / "reenactment.mp4")) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(16, 16)] * 3
