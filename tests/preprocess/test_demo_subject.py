"""The synthetic subject: reproducible, consistent, and never in the place of something else."""

import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.geometry.camera import Camera
from preprocess import demo_subject
from preprocess.demo_subject import CAMERA_IDS, HELD_OUT_CAMERA, HELD_OUT_SEQUENCE, SEQUENCES, Performance, rig
from tests.tiny import SIZE, tiny_head


@pytest.fixture
def make(monkeypatch):
    """`python -m preprocess.demo_subject` at the smallest size, in this process."""
    def run(output: Path, *options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["demo_subject", "--output", str(output), "--resolution", "16", "--frames", "5", "--driver-frames", "3",
                                          "--identity", "neutral", *options])
        demo_subject.main()
    return run


def hashes(folder: Path) -> dict[str, str]:
    """Of all files but frames.json, which names the output folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "frames.json"}


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "frames.json").read_text())["frames"]


def frames(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "images").iterdir())


def test_same_seed_same_bytes_other_seed_other_bytes(make, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        make(tmp_path / name, "--seed", seed)
    a, b, c = (hashes(tmp_path / name) for name in "abc")
    assert a == b and rows(tmp_path / "a") == rows(tmp_path / "b")
    assert a.keys() == c.keys()
    changed = {name for name in a if a[name] != c[name]}
    assert {name for name in a if name.startswith("params/")} <= changed
    assert not {name for name in changed if name.startswith(("cameras/", "background/"))}  # the studio stays


def test_two_processes_write_what_one_does(make, tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two", "--workers", "2")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") and rows(tmp_path / "one") == rows(tmp_path / "two")


def test_the_same_command_again_does_nothing(make, tmp_path, capsys):
    make(tmp_path / "demo")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make(tmp_path / "demo")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "nothing to do" in capsys.readouterr().out


def test_existing_output_is_refused_without_overwrite(make, tmp_path):
    make(tmp_path / "demo")
    before = hashes(tmp_path)
    with pytest.raises(InputError, match=r"demo.*--overwrite"):
        make(tmp_path / "demo", "--seed", "5")
    assert hashes(tmp_path) == before
    make(tmp_path / "demo", "--seed", "5", "--overwrite")
    assert hashes(tmp_path) != before


def test_a_foreign_folder_is_refused(make, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"demo.*--overwrite"):
        make(tmp_path / "demo")
    assert (tmp_path / "demo" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_an_interrupted_output_is_refused_readably(make, tmp_path, text):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "frames.json").write_text(text)
    with pytest.raises(InputError, match="demo"):
        make(tmp_path / "demo")


@pytest.mark.parametrize("options", [
    ("--frames", "4"), ("--resolution", "8"), ("--driver-frames", "-1"), ("--identity", "nobody"), ("--skin", "none"), ("--iris", "none"),
])
def test_impossible_options_are_refused_and_leave_nothing(make, tmp_path, options):
    with pytest.raises(InputError):
        make(tmp_path / "demo", *options)
    assert list(tmp_path.iterdir()) == []


def test_impossible_options_do_not_cost_what_exists(make, tmp_path):
    make(tmp_path / "demo")
    before = hashes(tmp_path)
    with pytest.raises(InputError):
        make(tmp_path / "demo", "--overwrite", "--identity", "nobody")
    assert hashes(tmp_path) == before


def test_sixteen_cameras_of_every_frame(subject):
    folder = CaptureFolder(subject)
    assert len(set(CAMERA_IDS)) == 16 and HELD_OUT_CAMERA in CAMERA_IDS
    for frame in frames(subject):
        for camera in CAMERA_IDS:
            for kind in ("image", "mask", "visible"):
                assert cv2.imread(str(folder.image_path(frame, camera, kind))).shape == (SIZE, SIZE, 3)
                assert folder.image_path(frame, camera, kind, lowres=True).exists()
            folder.read_camera(frame, camera)
    assert cv2.imread(str(folder.image_path(frames(subject)[0], CAMERA_IDS[0], lowres=True))).shape == (256, 256, 3)


def test_masks_cover_a_good_part_of_the_picture(subject):
    folder = CaptureFolder(subject)
    cover = np.array([[(cv2.imread(str(folder.image_path(frame, camera, "mask")))[..., 0] / 255.0).mean() for camera in CAMERA_IDS]
                      for frame in frames(subject)])
    assert 0.35 < cover.mean() < 0.55
    assert cover.min() > 0.3 and cover.max() < 0.6


def test_outside_the_mask_is_the_wall(subject):
    folder = CaptureFolder(subject)
    for camera in CAMERA_IDS[::5]:
        image, mask = (cv2.imread(str(folder.image_path("0000", camera, kind))) / 255.0 for kind in ("image", "mask"))
        wall = cv2.imread(str(folder.background_path(camera))) / 255.0
        far = cv2.dilate(mask[..., 0], np.ones((9, 9))) < 0.02
        assert far.any() and np.abs(image - wall)[far].max() < 0.06
        assert np.abs(image - wall)[mask[..., 0] > 0.98].mean() > 0.1


def test_sequences_share_gestures_but_no_frames(subject):
    sequences = {row["sequence"] for row in rows(subject)}
    assert len(sequences) >= 4 and HELD_OUT_SEQUENCE in sequences
    assert [row["frame"] for row in rows(subject)] == frames(subject)  # each frame exactly once
    held = next(sequence for sequence in SEQUENCES if sequence.name == HELD_OUT_SEQUENCE)
    others = {gesture for sequence in SEQUENCES if sequence is not held for gesture in sequence.gestures}
    assert set(held.gestures) <= others
    assert all(set(sequence.gestures) & {g for other in SEQUENCES if other is not sequence for g in other.gestures} for sequence in SEQUENCES)
    expressions = np.stack([np.load(subject / "params" / frame / "params.npz")["exp_coeff"][0] for frame in frames(subject)])
    assert len(np.unique(expressions, axis=0)) == len(expressions)


def test_times_start_at_zero_and_rise_within_a_sequence(subject):
    for name in {row["sequence"] for row in rows(subject)}:
        times = [row["time"] for row in rows(subject) if row["sequence"] == name]
        assert times[0] == 0.0 and times == sorted(set(times))


def test_parameters_have_the_promised_shapes(subject):
    for frame in frames(subject):
        with np.load(subject / "params" / frame / "params.npz") as data:
            assert data["exp_coeff"].shape == (1, 55) and data["pose"].shape == (1, 6) and data["scale"].shape == (1,)
            assert data["exp_coeff"].min() >= 0.0 and data["exp_coeff"].max() <= 1.0
        assert np.load(subject / "params" / frame / "vertices.npy").shape == (9409, 3)
        assert np.load(subject / "params" / frame / "lmk_3d.npy").shape == (66, 3)


def test_landmarks_reproject_onto_the_head(subject):
    folder = CaptureFolder(subject)
    for frame in frames(subject):
        landmarks = torch.from_numpy(np.load(folder.landmarks_path(frame)))[None]
        for camera in CAMERA_IDS:
            extrinsic, intrinsic = folder.read_camera(frame, camera)
            pixels = Camera(extrinsic[None], intrinsic[None], SIZE, SIZE).project(landmarks)[0].numpy()
            assert pixels.min() > 0 and pixels.max() < SIZE
            mask = cv2.dilate(cv2.imread(str(folder.image_path(frame, camera, "mask")))[..., 0], np.ones((3, 3)))  # the jaw lies on the contour
            assert (mask[pixels[:, 1].astype(int), pixels[:, 0].astype(int)] > 100).all()


def test_landmarks_are_in_anatomical_order(subject):
    points = np.load(subject / "params" / "0000" / "lmk_3d.npy")
    # With y up and the left of the head at +x: jaw below the eyes, right eye at -x, mouth between nose and chin.
    right_eye, left_eye, mouth, chin, nose = points[36:42].mean(0), points[42:48].mean(0), points[48:66].mean(0), points[8], points[30]
    assert right_eye[0] < 0 < left_eye[0]
    assert chin[1] < mouth[1] < nose[1] < min(right_eye[1], left_eye[1])
    assert nose[2] > right_eye[2] and nose[2] > left_eye[2]


def test_camera_centres_lie_on_the_rig(subject):
    at, distance = np.array([0.0, -0.004, 0.0]), 1.1
    for k, camera in enumerate(CAMERA_IDS):
        data = np.load(subject / "cameras" / "0000" / f"camera_{camera}.npz")
        rotation, translation = data["extrinsic"][:, :3].astype(np.float64), data["extrinsic"][:, 3]
        a, e = np.deg2rad(np.linspace(-80, 80, 16)[k]), np.deg2rad((2.0, 20.0, -12.0, 8.0)[k % 4])
        expected = at + distance * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
        assert np.allclose(-rotation.T @ translation, expected, atol=1e-5)
        assert np.allclose(rotation[2], (at - expected) / distance, atol=1e-5)  # looks at `at`
        assert rotation[1, 1] < 0  # y down in the picture, y up in the world


def test_some_principal_points_are_off_centre_and_some_are_not(subject):
    centres = np.stack([np.load(subject / "cameras" / "0000" / f"camera_{camera}.npz")["intrinsic"][:2, 2] for camera in CAMERA_IDS])
    off = np.abs(centres - SIZE / 2).max(axis=1) > 1.0
    assert 4 <= off.sum() <= 12


def test_the_rig_scales_with_the_resolution():
    small, large = rig(32), rig(128)
    assert torch.equal(small.world_to_camera, large.world_to_camera)
    assert torch.allclose(small.resized(128, 128).intrinsics, large.intrinsics)


def test_expressionless_truth_exists_where_something_is_held_out(subject):
    folder = CaptureFolder(subject)
    for row in rows(subject):
        for camera in CAMERA_IDS:
            expected = row["sequence"] == HELD_OUT_SEQUENCE or camera == HELD_OUT_CAMERA
            assert folder.expressionless_path(row["frame"], camera).exists() == expected


def test_a_performance_is_smooth():
    performance = Performance(tiny_head(), SEQUENCES[-1], seed=0)
    for time in (0.0, 1.3, 7.0):
        near, far = performance.at(time + 0.001), performance.at(time)
        assert float((near.expression - far.expression).abs().max()) < 0.02
        assert float((near.head.pose - far.head.pose).abs().max()) < 0.002
    assert float((performance.at(0.0).expression - performance.at(1.0).expression).abs().max()) > 0.05


def test_expressions_move_the_face_and_neutral_is_neutral():
    head = tiny_head()
    assert torch.equal(head.vertices(torch.zeros(55)), head.neutral) or torch.allclose(head.vertices(torch.zeros(55)), head.neutral, atol=1e-5)
    opened = head.vertices(head.coefficients({"jawOpen": 1.0}))[head.landmark_rows]
    closed = head.neutral[head.landmark_rows]
    assert float(closed[8, 1] - opened[8, 1]) > 0.05  # the chin goes down
    with pytest.raises(KeyError):
        head.coefficients({"noSuchShape": 1.0})
