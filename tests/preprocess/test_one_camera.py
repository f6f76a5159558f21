"""One camera: a video or a folder of images becomes the same kind of subject folder, with honest intrinsics."""

import json
import math
import sys

import cv2
import numpy as np
import pytest
import torch

from lib.datasets.layout import CaptureFolder
from lib.datasets.video import VideoWriter, to_yuv420
from lib.errors import InputError
from preprocess import video
from preprocess.video import Intrinsics, extract, open_source
from tests.tiny_capture import GREY, grey_video


@pytest.fixture
def film(tmp_path):
    grey_video(tmp_path / "talk.mp4", [0, 1, 2, 5, 6, 9], width=40, height=24)
    return tmp_path / "talk.mp4"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    picture = np.zeros((30, 50, 3), dtype=np.uint8)
    for number in (1, 2, 10):
        picture[:, 10:40] = 10 * number
        cv2.imwrite(str(folder / f"shot_{number}.png"), picture)
    return folder


def levels(subject) -> list[int]:
    folder = CaptureFolder(subject)
    return [round(cv2.imread(str(folder.image_path(frame, "0"))).mean()) for frame in folder.frames()]


def test_frames_and_times_are_those_of_the_video(film, tmp_path):
    extract(open_source(film), tmp_path / "subject", Intrinsics(focal=60.0), every=2)
    records = CaptureFolder(tmp_path / "subject").records(["0000", "0001", "0002"])
    assert [(record.sequence, record.time) for record in records] == [("talk", 0.0), ("talk", 0.08), ("talk", 0.24)]
    assert [round((level - 20) / GREY) for level in levels(tmp_path / "subject")] == [0, 2, 6]


def test_images_are_sorted_by_number_and_cut_around_the_centre(images, tmp_path):
    extract(open_source(images), tmp_path / "subject", Intrinsics(focal=60.0), size=30)
    assert levels(tmp_path / "subject") == [10, 20, 100]  # not 1, 10, 2; and none of the black sides


def test_the_world_is_the_cameras_and_the_intrinsics_follow_the_crop(images, tmp_path):
    extract(open_source(images), tmp_path / "subject", Intrinsics(focal=60.0), crop=(-10, 5, 20), size=40)
    extrinsic, intrinsic = CaptureFolder(tmp_path / "subject").read_camera("0000", "0")
    assert torch.equal(extrinsic, torch.eye(3, 4))
    assert torch.allclose(intrinsic, torch.tensor([[120.0, 0.0, 70.0], [0.0, 120.0, 20.0], [0.0, 0.0, 1.0]]))
    visible = cv2.imread(str(CaptureFolder(tmp_path / "subject").image_path("0000", "0", "visible")))[..., 0]
    assert (visible[:, :18] < 40).all() and (visible[:, 22:] > 215).all()


def test_intrinsics_come_from_a_file_or_are_guessed_aloud(images, tmp_path, capsys):
    stored = np.array([[70.0, 0.0, 26.0], [0.0, 71.0, 14.0], [0.0, 0.0, 1.0]])
    np.savez(tmp_path / "camera.npz", extrinsic=np.eye(3, 4), intrinsic=stored)
    extract(open_source(images), tmp_path / "known", Intrinsics(file=tmp_path / "camera.npz"))
    intrinsic = CaptureFolder(tmp_path / "known").read_camera("0000", "0")[1]
    assert torch.allclose(intrinsic, torch.tensor([[70.0, 0.0, 16.0], [0.0, 71.0, 14.0], [0.0, 0.0, 1.0]]))
    assert "guess" not in capsys.readouterr().out
    extract(open_source(images), tmp_path / "guessed", Intrinsics())
    focal = CaptureFolder(tmp_path / "guessed").read_camera("0000", "0")[1][0, 0]
    assert float(focal) == pytest.approx(28.0 / 43.267 * math.hypot(50, 30), rel=1e-3)
    assert f"guess: {focal:.0f} pixels" in capsys.readouterr().out


def test_a_turned_video_stands_upright(tmp_path):
    lying = torch.zeros(3, 24, 40)
    lying[:, :, :20] = 1.0  # what is left in the sensor's picture is up
    with VideoWriter(tmp_path / "phone.mp4", 25, 4, "veryfast") as writer:
        writer.add(to_yuv420(lying))
    _turn(tmp_path / "phone.mp4", tmp_path / "turned.mp4")
    assert next(open_source(tmp_path / "phone.mp4").read([0]))[1].shape == (24, 40, 3)
    upright = next(open_source(tmp_path / "turned.mp4").read([0]))[1]
    assert upright.shape == (40, 24, 3) and upright[:16].min() > 230 and upright[24:].max() < 25


def _turn(source, target):
    """Writes the display matrix of a phone held upright, a quarter turn clockwise, into the track header of an mp4."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 8 + 2 + 2 + 2 + 2  # version 0: up to the matrix
    rotated = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[start:start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in rotated)
    target.write_bytes(bytes(data))


def test_the_same_command_again_does_nothing_and_another_is_refused(film, tmp_path, capsys):
    extract(open_source(film), tmp_path / "subject", Intrinsics(focal=60.0))
    extract(open_source(film), tmp_path / "subject", Intrinsics(focal=60.0))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="exists with --every 1, now it is 3"):
        extract(open_source(film), tmp_path / "subject", Intrinsics(focal=60.0), every=3)
    with pytest.raises(InputError, match="exists with --focal"):
        extract(open_source(film), tmp_path / "subject", Intrinsics(focal=61.0))


def test_an_interrupted_extraction_goes_on_to_the_same_bytes(film, tmp_path, monkeypatch):
    extract(open_source(film), tmp_path / "whole", Intrinsics(focal=60.0))
    source = open_source(film)

    def cut_short(wanted):
        for number, pixels in source.read(wanted):
            if number == 3 and len(wanted) > 1:
                raise KeyboardInterrupt
            yield number, pixels
    with pytest.raises(KeyboardInterrupt):
        extract(video.Source(source.path, source.times, cut_short), tmp_path / "subject", Intrinsics(focal=60.0))
    assert not (tmp_path / "subject").exists()
    extract(source, tmp_path / "subject", Intrinsics(focal=60.0))
    one, other = ({str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
                  for root in (tmp_path / "whole", tmp_path / "subject"))
    assert one == other and len(json.loads(one["frames.json"])["frames"]) == 6


def test_what_is_no_source_is_refused_by_name(images, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.mp4").write_text("not a video")
    for path, said in ((tmp_path / "empty", "no image in this folder"), (tmp_path / "nothing.mp4", "not there"), (tmp_path / "notes.mp4", "video")):
        with pytest.raises(InputError, match=f"{path.name}.*{said}"):
            open_source(path)
    cv2.imwrite(str(images / "shot_3.png"), np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="picture 2 has 8x8 pixels, the first one 50x30"):
        extract(open_source(images), tmp_path / "subject", Intrinsics(focal=60.0))
    for options in (("--focal", "-3"), ("--every", "0"), ("--crop", "90", "0", "10")):
        monkeypatch.setattr(sys, "argv", ["video", str(images), "--output", str(tmp_path / "other"), *options])
        with pytest.raises(InputError, match=options[0]):
            video.main()
    stored = np.array([[900.0, 0.0, 512.0], [0.0, 900.0, 512.0], [0.0, 0.0, 1.0]])
    np.savez(tmp_path / "camera.npz", extrinsic=np.eye(3, 4), intrinsic=stored)
    with pytest.raises(InputError, match="principal point"):
        extract(open_source(images), tmp_path / "other", Intrinsics(file=tmp_path / "camera.npz"))
