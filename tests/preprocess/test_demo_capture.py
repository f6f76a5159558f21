"""The synthetic raw capture: looks like a download, agrees with its truth, and is never in the place of something else."""

import dataclasses
import sys

import cv2
import numpy as np
import pytest
import torch

from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.geometry.camera import Camera
from preprocess import demo_capture
from preprocess.demo_capture import film, truth_folder
from preprocess.demo_landmarks import HIDDEN_SCORE, Detector
from preprocess.demo_subject import FOCAL_WITH_HAIR, rig
from preprocess.raw_videos import decode, read_video
from preprocess.square_crop import PUBLISHED_CROP, square_crop
from tests.preprocess.test_demo_subject import hashes
from tests.tiny_capture import CAMERAS, FILMING, FRAMES, SEQUENCES, SIZE, tiny_raw

SHORT = dataclasses.replace(FILMING, sequences=SEQUENCES[:1], frames=1, step=1)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    return tiny_raw(tmp_path_factory)


@pytest.fixture
def truth(raw):
    return CaptureFolder(truth_folder(raw))


def names(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_v2_looks_like_a_download(raw):
    videos = {f"031/sequences/{sequence}/images/cam_{camera}.mp4" for sequence in SEQUENCES for camera in CAMERAS}
    scenes = {f"031/sequences/BACKGROUND/image_{camera}.jpg" for camera in CAMERAS}
    assert names(raw) == videos | scenes | {"031/calibration/camera_params.json", "031/calibration/color_calibration.json"}


@pytest.mark.parametrize(("layout", "video", "scene"), [
    ("v1-zips", "sequence_EXP-2-eyes_part-1/031/EXP-2-eyes/cam_{}.mp4", "sequence_BACKGROUND_part-1/031/BACKGROUND/image_{}.jpg"),
    ("v1-subject", "031/EXP-2-eyes/cam_{}.mp4", "031/BACKGROUND/image_{}.jpg"),
])
def test_the_first_edition_looks_like_a_download(tmp_path, layout, video, scene):
    film(dataclasses.replace(SHORT, layout=layout), tmp_path / "raw")
    expected = {pattern.format(camera) for pattern in (video, scene, "color_correction/031/{}.npy") for camera in CAMERAS}
    assert names(tmp_path / "raw") == expected | {"camera_params/031/camera_params.json"}
    assert np.load(tmp_path / "raw" / "color_correction" / "031" / f"{CAMERAS[0]}.npy").shape == (4, 4)


def test_truth_has_every_nth_frame_of_every_sequence(truth):
    records = truth.records(truth.frames())
    assert [record.frame for record in records] == [f"{k:04d}" for k in range(len(SEQUENCES) * FRAMES // FILMING.step)]
    assert [(record.sequence, record.time) for record in records] == [
        (sequence, time) for sequence in sorted(SEQUENCES) for time in (0.0, FILMING.step / FILMING.rate)]


def test_landmarks_are_the_projected_ones_with_both_mouth_corners(truth):
    for frame in truth.frames():
        points = truth.read_control_points(frame).points[:66]
        for camera in CAMERAS:
            stored = np.load(truth.detections_path(frame, camera))
            assert stored.shape == (68, 3) and stored.dtype == np.float32
            extrinsic, intrinsic = truth.read_camera(frame, camera)
            projected = Camera(extrinsic[None], intrinsic[None], SIZE, SIZE).project(points[None])[0]
            assert np.abs(np.delete(stored, (48, 54), axis=0)[:, :2] - projected.numpy()).max() < 1e-3
            # The outer corners are outside of the inner ones.
            across = stored[54, :2] - stored[48, :2]
            assert (stored[60, :2] - stored[48, :2]) @ across > 0 and (stored[54, :2] - stored[64, :2]) @ across > 0
    assert truth.detection_size(SIZE, 0.0) == SIZE


def test_scores_tell_the_far_side_of_the_face(truth, tmp_path):
    side = dataclasses.replace(SHORT, cameras=("220700191",))  # 80 degrees to one side
    film(side, tmp_path / "raw")
    scores = np.load(CaptureFolder(tmp_path / "raw_truth").detections_path("0000", "220700191"))[:, 2]
    near, far = (scores[:5], scores[12:17]) if scores[:5].mean() > 0.5 else (scores[12:17], scores[:5])
    assert near.min() > 0.9 and far.max() == np.float32(HIDDEN_SCORE)
    front = np.load(truth.detections_path("0000", CAMERAS[0]))[:, 2]
    assert (front > 0.9).mean() > 0.85


def test_noise_and_outliers_of_landmarks_are_as_asked(truth):
    exact = Detector()
    head = demo_capture.DemoHead(**dataclasses.asdict(FILMING.look), texture_size=16)
    camera = Camera(*(value[None] for value in truth.read_camera("0000", CAMERAS[0])), SIZE, SIZE)
    skin = 0.1 * head.neutral
    at = exact.detect(head, skin, camera, shot=0)[..., :2]
    noisy = np.concatenate([Detector(noise=0.5).detect(head, skin, camera, shot)[..., :2] - at for shot in range(8)])
    assert noisy.std() == pytest.approx(0.5, rel=0.1) and abs(noisy.mean()) < 0.06
    wrong = np.concatenate([np.abs(Detector(outliers=0.25).detect(head, skin, camera, shot)[..., :2] - at).max(axis=2) > 1e-3 for shot in range(8)])
    assert wrong.mean() == pytest.approx(0.25, abs=0.08)


def test_outside_the_matte_is_the_empty_scene_of_that_camera(raw, truth):
    crop = square_crop(PUBLISHED_CROP, SIZE, FILMING.width, FILMING.height)
    scenes = []
    for camera in CAMERAS:
        video = read_video(raw / "031" / "sequences" / SEQUENCES[0] / "images" / f"cam_{camera}.mp4")
        pixels = crop.cut(next(decode(video, frozenset(video.stamps[:1]), threads=1))[1]).astype(float)
        scene = crop.cut(cv2.imread(str(raw / "031" / "sequences" / "BACKGROUND" / f"image_{camera}.jpg"))[..., ::-1]).astype(float)
        row = next(record.frame for record in truth.records(truth.frames()) if record.sequence == SEQUENCES[0])
        matte = cv2.imread(str(truth.image_path(row, camera, "mask")))[..., 0]
        far, inside = cv2.dilate(matte, np.ones((3, 3))) < 8, matte > 250
        assert 0.2 < inside.mean() < 0.6
        assert np.abs(pixels - scene)[far].mean() < 4.0 < 20.0 < np.abs(pixels - scene)[inside].mean()
        scenes.append(scene)
        seen = crop.visible(FILMING.width, FILMING.height) > 0
        assert scene[seen].std() > 10.0  # no plain wall
    assert np.abs(scenes[0] - scenes[1]).mean() > 10.0


def test_the_published_crop_frames_the_head_as_the_demo_subject_does():
    cameras = demo_capture.raw_rig(torch.arange(16))
    cut = square_crop(PUBLISHED_CROP, 256, cameras.width, cameras.height).camera(cameras)
    other = rig(256, FOCAL_WITH_HAIR)
    assert torch.equal(cut.world_to_camera, other.world_to_camera)
    assert torch.allclose(cut.intrinsics[:, 0, 0], other.intrinsics[:, 0, 0])
    assert float((cut.intrinsics[:, :2, 2] - 128.0).abs().max()) < 1.0


def test_the_same_options_write_the_same_bytes_again_and_others_do_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sensor = dataclasses.replace(SHORT.sensor, noise=2.0, blur=0.3, color=0.05, seed=seed)
        film(dataclasses.replace(SHORT, sensor=sensor), tmp_path / name)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") != hashes(tmp_path / "c")
    assert hashes(tmp_path / "a_truth") == hashes(tmp_path / "b_truth") != hashes(tmp_path / "c_truth")


@pytest.fixture
def make(monkeypatch, tmp_path):
    def run(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["demo_capture", "bald", "--output", str(tmp_path / "raw"), "--height", "32", "--size", "16",
                                          "--frames", "1", "--cameras", CAMERAS[0], "--sequences", SEQUENCES[0], *options])
        demo_capture.main()
    return run


def test_the_command_writes_once_and_refuses_to_replace(make, tmp_path, capsys):
    make()
    before = hashes(tmp_path)
    make()
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"raw.*--overwrite"):
        make("--seed", "3")
    assert hashes(tmp_path) == before
    make("--seed", "3", "--overwrite")
    assert hashes(tmp_path) != before


@pytest.mark.parametrize("options", [("--frames", "0"), ("--height", "8"), ("--crf", "90"), ("--noise", "-1"), ("--landmark-outliers", "2")])
def test_impossible_options_are_refused_by_name_and_leave_nothing(make, tmp_path, options):
    with pytest.raises(InputError, match=options[0]):
        make(*options)
    assert list(tmp_path.iterdir()) == []
