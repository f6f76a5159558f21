"""A capture that can be read but makes no sense is refused with what was measured; a good one is summed up in a few lines."""

import dataclasses
import shutil

import cv2
import numpy as np
import pytest
import torch

from lib.datasets.capture_check import BoundingBox, FaceBounds, check_capture, chosen_box, face_bounds, measure_picture, pose_jumps
from lib.datasets.head_capture import FOREGROUND, HeadCapture, HeadCaptureConfig, Picture
from lib.errors import InputError
from lib.face_models.ict import FACE_ROWS
from preprocess.demo_head import DemoHead
from preprocess.demo_presets import PRESETS
from tests.tiny import CAMERAS, SIZE, copy_subject, dataset_dict

PUBLISHED: BoundingBox = ((-1.6, 1.6), (-1.7, 1.8), (-2.5, 1.0))
DEMO: BoundingBox = ((-1.45, 1.45), (-2.1, 1.6), (-1.45, 1.25))
TURN = np.diag([1.0, -1.0, -1.0, 1.0])  # between OpenCV and OpenGL axes


@pytest.fixture
def copy(subject, tmp_path):
    return copy_subject(subject, tmp_path / "subject", cameras=CAMERAS[:3])


def capture_of(folder, **changes) -> HeadCapture:
    return HeadCapture(HeadCaptureConfig(**dataset_dict(folder, camera_ids=list(CAMERAS[:3]), **changes)))


def refusal(folder, bbox: BoundingBox = PUBLISHED, **changes) -> str:
    with pytest.raises(InputError) as error:
        check_capture(capture_of(folder, **changes), bbox)
    said = str(error.value)
    assert len(said.splitlines()) == 1
    return said


def change(folder, name: str, key: str, of) -> None:
    """Rewrites one array of all files of that name."""
    for path in folder.rglob(name):
        with np.load(path) as data:
            arrays = dict(data)
        np.savez(path, **(arrays | {key: of(arrays[key])}))


@pytest.mark.parametrize("bbox", [PUBLISHED, DEMO])
def test_a_good_subject_passes_and_is_summed_up(subject, bbox):
    report = check_capture(capture_of(subject), bbox)
    lines = report.lines()
    assert 3 <= len(lines) <= 6 and all(len(line) < 170 and "\n" not in line for line in lines)
    assert "7 frames x 3 cameras in 5 sequences" in lines[0] and "0.1 world units" in lines[0]
    assert len(report.measures) <= 8 and len({measure.picture.camera for measure in report.measures}) == 3
    assert all(measure.inside_picture == 1.0 and measure.inside_matte > 0.85 for measure in report.measures)
    assert all(0.2 < measure.coverage < 0.8 for measure in report.measures)
    # The nose of this head is 1.1 units in front of its origin.
    assert ("cuts the face along z" in lines[1]) == (bbox == PUBLISHED)


@pytest.mark.parametrize("height", [1.6, 2.0, 3.0])  # canonical units: BFM face, FLAME head, FLAME head with its neck
def test_faces_of_published_models_pass(copy, height):
    rng = np.random.default_rng(0)
    for frame in copy.glob("params/*"):
        for name in ("lmk_3d", "vertices"):
            points = np.load(frame / f"{name}.npy")
            box = np.array([0.75 * height, height, 0.6 * height])
            np.save(frame / f"{name}.npy", 0.1 * (rng.uniform(-0.5, 0.5, points.shape) * box - [0.0, 0.1, 0.3]))
    change(copy, "params.npz", "pose", np.zeros_like)
    capture = capture_of(copy)
    assert face_bounds(capture, capture.frames).problems(capture, PUBLISHED) == []


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_subject_ten_times_off_scale(copy, factor):
    change(copy, "params.npz", "scale", lambda scale: scale * factor)
    capture = capture_of(copy)
    size = (face_bounds(capture, capture.frames).high - face_bounds(capture, capture.frames).low)[0]
    said = refusal(copy)
    assert str(copy / "params" / "0000" / "params.npz") in said and "'scale'" in said and "7 of 7 frames" in said
    assert "model_bbox is x -1.6 to 1.6, y -1.7 to 1.8, z -2.5 to 1" in said
    assert " x ".join(f"{value:.2f}" for value in size.tolist()) in said


def test_world_points_in_other_units_than_the_pose(copy):
    for path in [*copy.glob("params/*/lmk_3d.npy"), *copy.glob("params/*/vertices.npy")]:
        np.save(path, np.load(path) * 1000.0)
    assert "model_bbox" in refusal(copy)


def test_one_frame_that_is_elsewhere(copy):
    path = copy / "params" / "0004" / "params.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"pose": arrays["pose"] + np.array([[0, 0, 0, 0, 0, 0.5]])}))
    said = refusal(copy)
    assert str(path) in said and "the centre is outside" in said and "1 of 7 frames" in said


@pytest.mark.parametrize("convention", ["opengl axes", "camera to world"])
def test_wrong_camera_convention(copy, convention):
    def wrong(extrinsic):
        matrix = np.concatenate([extrinsic, [[0, 0, 0, 1]]])
        return (TURN @ matrix if convention == "opengl axes" else np.linalg.inv(matrix))[:3]
    change(copy, "camera_*.npz", "extrinsic", wrong)
    said = refusal(copy)
    assert "camera_" in said and "OpenCV" in said and "0% of the landmarks" in said


def test_intrinsics_of_another_resolution(copy):
    change(copy, "camera_*.npz", "intrinsic", lambda k: k * np.array([[8.0], [8.0], [1.0]]))
    said = refusal(copy)
    assert f"original_resolution, which is {SIZE}" in said and any(camera in said for camera in CAMERAS[:3])


@pytest.mark.parametrize(("value", "words"), [(0, "black"), (255, "covers 100%")])
def test_mattes_that_say_nothing(copy, value, words):
    for path in copy.rglob("mask_*.jpg"):
        cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), value, np.uint8))
    said = refusal(copy)
    assert words in said and "mask_" in said


@pytest.mark.parametrize(("part", "said"), [(0.0, False), (0.2, True)])
def test_landmarks_beside_the_head_are_said_in_capitals(copy, part, said):
    """Too few to be sure that nothing fits, too many for a good capture."""
    change(copy, "camera_*.npz", "intrinsic", lambda k: k + np.array([[0, 0, part * SIZE], [0, 0, 0], [0, 0, 0]]))
    assert any(line.startswith("LESS THAN 80%") and "check_subject" in line for line in check_capture(capture_of(copy), PUBLISHED).lines()) is said


def test_a_shifted_principal_point_moves_landmarks_off_the_matte(copy):
    def on_head() -> float:
        capture = capture_of(copy)
        pictures = [Picture(frame, camera) for frame in capture.frames for camera in capture.camera_ids]
        return float(np.mean([measure_picture(capture, picture, capture.matte(picture) >= FOREGROUND).inside_matte for picture in pictures]))
    before = on_head()
    change(copy, "camera_*.npz", "intrinsic", lambda k: k + np.array([[0, 0, 100.0 / 2048 * SIZE], [0, 0, 0], [0, 0, 0]]))
    assert on_head() < before - 0.02


def test_points_behind_the_camera_are_not_inside(copy):
    change(copy, "camera_*.npz", "extrinsic", lambda extrinsic: (TURN @ np.concatenate([extrinsic, [[0, 0, 0, 1]]]))[:3])
    capture = capture_of(copy)
    picture = Picture("0000", CAMERAS[1])
    assert measure_picture(capture, picture, torch.ones(SIZE, SIZE, dtype=torch.bool)).inside_picture == 0.0


def test_pose_jumps_stay_within_sequences_and_count_canonical_units(copy):
    path = copy / "params" / "0001" / "params.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"pose": np.array([[0, 0, 0, 0.3, 0.0, 0.4]])}))
    capture = capture_of(copy)
    jumps = pose_jumps(capture)
    assert len(jumps) == len(capture.frames) - len(set(capture.sequence_of.values()))
    before = capture.params["0000"].pose[3:]
    (jump,) = (jump for jump in jumps if (jump.before, jump.after) == ("0000", "0001"))
    assert jump.distance == pytest.approx(float((torch.tensor([0.3, 0.0, 0.4]) - before).norm()) / 0.1, rel=1e-4)


def test_one_frame_and_one_camera_are_enough(copy):
    for frame in ("0001", "0002", "0003", "0004", "0005", "0006"):
        for folder in ("images", "cameras", "params"):
            shutil.rmtree(copy / folder / frame)
    capture = HeadCapture(HeadCaptureConfig(**dataset_dict(copy, camera_ids=[CAMERAS[0]], held_out_cameras=[], held_out_sequences=[])))
    report = check_capture(capture, PUBLISHED)
    assert len(report.measures) == 1 and report.largest_jump is None and 3 <= len(report.lines()) <= 6


@pytest.mark.parametrize("preset", PRESETS)
def test_the_chosen_box_holds_the_head_with_its_hair(preset):
    head = DemoHead(**dataclasses.asdict(PRESETS[preset]), texture_size=16)
    vertices = head.vertices(head.coefficients({"jawOpen": 1.0}))
    face = vertices[FACE_ROWS][None]
    box = chosen_box(FaceBounds(("0000",), face.amin(dim=1), face.amax(dim=1)))
    for (start, end), low, high in zip(box, vertices.amin(dim=0).tolist(), vertices.amax(dim=0).tolist(), strict=True):
        assert start < low < high < end
        assert end - start < 2.0 * (high - low)  # cells of the grid are not to be wasted


def test_the_chosen_box_leaves_stray_frames_out_and_grows_with_the_units():
    low, high = torch.tensor([-0.8, -1.6, -0.5]).repeat(8, 1), torch.tensor([0.8, 1.2, 1.1]).repeat(8, 1)
    low[0, 1] -= 0.2
    frames = tuple("abcdefgh")
    box = chosen_box(FaceBounds(frames, low, high))
    assert box[1][0] == pytest.approx(-1.8 - 0.35 * 1.6, abs=0.05)
    stray = low.clone()
    stray[3] -= 40.0
    assert chosen_box(FaceBounds(frames, stray, high)) == box
    assert np.allclose(np.array(chosen_box(FaceBounds(frames, low * 10.0, high * 10.0))), 10.0 * np.array(box), atol=0.01)
