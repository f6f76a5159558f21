"""The command that writes mattes into a subject folder: what it writes, what it leaves, what it says."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from benchmarks.matting import compare
from benchmarks.matting_scenes import write_capture
from lib.datasets.images import read_image, write_pixels
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from preprocess import matting, matting_plate, remove_background
from tests.preprocess.test_matting import BackgroundNetwork, VideoNetwork, saved

SIZE, FRAMES, ROWS = 96, 3, (5, 8)


@pytest.fixture(scope="session")
def captured(tmp_path_factory):
    root = tmp_path_factory.mktemp("captured") / "curly"
    return root, write_capture(root, "curly", "blotches", SIZE, FRAMES, ROWS)


@pytest.fixture
def subject(captured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for results/
    monkeypatch.setattr(matting, "WEIGHTS_FOLDER", tmp_path / "weights")
    return CaptureFolder(shutil.copytree(captured[0], tmp_path / "curly"))


def call(subject, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["remove_background", str(subject.root), *options])
        remove_background.main()


def masks(subject):
    return {path: path.read_bytes() for path in sorted(subject.root.glob("images/*/mask_*"))}


def test_every_picture_has_its_mattes(subject, captured, tmp_path):
    call(subject)
    truth = {subject.root / path.relative_to(captured[0]): mask for path, mask in captured[1].items()}
    assert len(masks(subject)) == 2 * len(truth) == 2 * FRAMES * len(ROWS)
    for path, mask in truth.items():
        matte, lowres = read_image(path), read_image(path.with_name(path.name.replace("mask_", "mask_lowres_")))
        assert matte.shape == (3, SIZE, SIZE) and lowres.shape == (3, 256, 256) and torch.equal(matte[0], matte[1])
        assert compare(matte[0].numpy() / np.float32(255.0), mask)[1] > 0.95
    assert read_image(tmp_path / "results" / "matting" / "curly" / "mattes.png").shape[1] > 4 * 320
    assert not list(subject.root.rglob("*.partial"))


def test_what_is_there_is_kept_and_what_is_cut_off_is_done_again(subject):
    call(subject)
    complete = masks(subject)
    kept, cut, gone, small = (list(complete)[k] for k in (1, 2, -4, -1))
    assert "lowres" not in kept.name + gone.name and "lowres" in cut.name and "lowres" in small.name
    kept.write_bytes(complete[list(complete)[0]])
    cut.write_bytes(complete[cut][:100])
    gone.unlink()
    small.unlink()
    call(subject)
    assert masks(subject) == complete | {kept: complete[list(complete)[0]]}
    call(subject, "--overwrite")
    assert masks(subject) == complete


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_mattes_of_your_own_are_kept_where_only_the_small_ones_are_missing(subject, suffix, capsys):
    call(subject)
    own = {}
    for path in subject.root.glob("images/*/mask_lowres_*"):
        path.unlink()
    for path in list(masks(subject)):
        matte = torch.where(read_image(path) > 128, 255, 0).byte()
        matte[:, :9] = 255  # as no matting here would make it
        path.unlink()
        write_pixels(path.with_suffix(suffix), matte)
        own[path.with_suffix(suffix)] = path.with_suffix(suffix).read_bytes()
    call(subject)
    found = masks(subject)
    assert {path: found.pop(path) for path in own} == own and len(found) == len(own)
    assert all("lowres" in path.name and int(read_image(path)[:, :16].min()) > 240 for path in found)
    assert f"made the small mattes of {len(own)} pictures" in capsys.readouterr().out


def test_a_picture_that_cannot_be_used_stops_no_other(subject, capsys):
    path = subject.image_path("0001", "222200042")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="5 mattes written, but not all\n.*0001/image_222200042.jpg: the image is cut off"):
        call(subject)
    assert len(masks(subject)) == 2 * (FRAMES * len(ROWS) - 1)


def test_a_background_of_another_view_is_told(subject):
    path = subject.background_path("222200042")
    write_pixels(path, 255 - read_image(path))
    with pytest.raises(InputError, match="which is no person.*background/image_222200042.jpg"):
        call(subject)


def test_without_backgrounds_they_are_estimated_and_it_is_said(subject, capsys):
    shutil.rmtree(subject.root / "background")
    call(subject)
    assert len(masks(subject)) == 2 * FRAMES * len(ROWS) and capsys.readouterr().out.count("was estimated from 3 pictures, which is weaker") == 2


def test_where_no_background_can_be_had_it_is_asked_for(subject, monkeypatch):
    monkeypatch.setattr(matting_plate, "MOST", 0.05)
    subject.background_path("222200042").unlink()
    with pytest.raises(InputError, match=r"3 mattes written.*\n.*background/image_222200042.jpg: .*provide it, or weights of robust_video_matting"):
        call(subject)


def test_padding_of_the_crop_is_no_person(subject):
    visible = torch.full((3, SIZE, SIZE), 255, dtype=torch.uint8)
    visible[:, :, :SIZE // 2] = 0
    write_pixels(subject.image_path("0000", "222200042", "visible"), visible)
    call(subject)
    matte = read_image(subject.image_path("0000", "222200042", "mask"))[0]
    assert int(matte[:, :SIZE // 2 - 8].max()) < 8 and int(matte[:, SIZE // 2:].max()) > 250


def test_memory_of_a_network_ends_with_the_sequence_and_survives_an_interruption(subject, tmp_path):
    rows = [{"frame": f"{frame:04d}", "sequence": "one" if frame < 2 else "two", "time": 0.0} for frame in range(FRAMES)]
    subject.frames_path().write_text(json.dumps({"frames": rows}))
    options = ("--matter", "robust_video_matting", "--weights", str(saved(VideoNetwork(), tmp_path / "weights" / "any")), "--device", "cpu")
    call(subject, *options)
    levels = [int(read_image(subject.image_path(f"{frame:04d}", "222200042", "mask"))[0, 40, 40]) for frame in range(FRAMES)]
    assert levels == pytest.approx([25.5, 51.0, 25.5], abs=1.0)
    complete = masks(subject)
    subject.image_path("0001", "222200042", "mask").unlink()
    call(subject, *options)
    assert masks(subject) == complete


def test_network_with_the_empty_scene(subject, captured, tmp_path):
    saved(BackgroundNetwork(), tmp_path / "weights" / "torchscript_mobilenetv2_fp32.pth")
    call(subject)
    matte = read_image(subject.image_path("0000", "222200042", "mask"))[0].numpy() / np.float32(255.0)
    truth = captured[1][captured[0] / "images" / "0000" / "mask_222200042.jpg"]
    assert matte[truth > 0.99].mean() > 0.9 > matte[truth < 0.01].mean()


def test_a_folder_without_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "images" / "0000").mkdir(parents=True)
    with pytest.raises(InputError, match="no frame has an image"):
        call(CaptureFolder(tmp_path / "empty"))
