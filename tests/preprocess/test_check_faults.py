"""Every fault that people make is planted into a good subject and found by name: with 2D detections and, where it can be seen, without."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocess.check_subject import check, whole_folder
from tests.preprocess.detections import write_detections
from tests.tiny import CAMERAS, SIZE, copy_subject

BOX = ((-1.45, 1.45), (-2.1, 1.6), (-1.45, 1.25))
CAMERA, OTHER = CAMERAS[1], CAMERAS[3]
FRAME, OTHER_FRAME = "0002", "0005"
PIXELS = 100.0 / 2048 * SIZE
TURN = np.diag([1.0, -1.0, -1.0])
Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def copy(subject, tmp_path):
    return copy_subject(subject, tmp_path / "subject")


@pytest.fixture(params=["detections", "pictures alone"])
def evidence(request, copy):
    """The copy with detections that are exact but for one point of every picture, of which they are not sure; and without any."""
    if request.param == "detections":
        write_detections(copy)
        for number, path in enumerate(sorted((copy / "landmarks").rglob("lmk_*.npy"))):
            points = np.load(path)
            points[20 + number % 40] = (30.0, 5.0, 0.3)
            np.save(path, points)
    return copy


def findings(folder: Path) -> list[dict]:
    """The problems of the JSON report, which are those that are told."""
    output = folder.parent / "sheet.png"
    told = check(whole_folder(folder), BOX, False, output)
    rows = [row for row in json.loads((folder.parent / "report.json").read_text())["findings"] if row["is_problem"]]
    assert {row["message"] for row in rows} >= {line for line in told if not line.startswith("... ")} and bool(rows) == bool(told)
    return rows


def change_cameras(folder: Path, cameras: tuple[str, ...], change: Change) -> None:
    for camera in cameras:
        for path in folder.glob(f"cameras/*/camera_{camera}.npz"):
            arrays = dict(np.load(path))
            extrinsic, intrinsic = change(arrays["extrinsic"], arrays["intrinsic"])
            np.savez(path, extrinsic=extrinsic, intrinsic=intrinsic)


def inverse(extrinsic: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.concatenate([extrinsic, [[0, 0, 0, 1]]]))[:3]


def moved(extrinsic: np.ndarray, factor: float) -> np.ndarray:
    return extrinsic * np.array([1, 1, 1, factor])


def swap(first: Path, second: Path) -> None:
    aside = first.with_name(first.name + ".aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


CAMERA_FAULTS: dict[str, tuple[str, str, Change]] = {
    "cx shifted": ("principal_point", "cx is shifted", lambda e, k: (e, k + np.array([[0, 0, PIXELS], [0, 0, 0], [0, 0, 0]]))),
    "not rescaled": ("principal_point", "rescaled after a crop", lambda e, k: (e, k * np.array([[1, 1, 2600 / 2048]] * 2 + [[1, 1, 1]]))),
    "y-flipped": ("opengl_axes", "OpenGL axes", lambda e, k: (TURN @ e, k)),
    "camera to world": ("camera_to_world", "is camera->world", lambda e, k: (inverse(e), k)),
    "ten times": ("unit_scale", "times 0.1 fits", lambda e, k: (moved(e, 10.0), k)),
}


@pytest.mark.parametrize("cameras", [(CAMERA,), CAMERAS], ids=["one", "all"])
@pytest.mark.parametrize("name", CAMERA_FAULTS)
def test_a_wrong_camera(evidence, name, cameras):
    kind, words, change = CAMERA_FAULTS[name]
    change_cameras(evidence, cameras, change)
    (found,) = findings(evidence)
    assert found["kind"] == kind and set(found["cameras"]) == set(cameras) and words in found["message"]
    if kind == "principal_point" and name == "cx shifted":
        assert found["numbers"]["shift_x_px"] == pytest.approx(-PIXELS, abs=0.02 * SIZE)


def test_two_cameras_exchanged(evidence):
    for frame in (evidence / "cameras").iterdir():
        swap(frame / f"camera_{CAMERA}.npz", frame / f"camera_{OTHER}.npz")
    (found,) = findings(evidence)
    assert found["kind"] == "exchanged_cameras" and set(found["cameras"]) == {CAMERA, OTHER}


def test_two_frames_exchanged(evidence):
    swap(evidence / "params" / FRAME, evidence / "params" / OTHER_FRAME)
    (found,) = findings(evidence)
    assert found["kind"] == "exchanged_frames" and set(found["frames"]) == {FRAME, OTHER_FRAME}


def test_one_camera_with_another_gain_in_red(evidence):
    for path in evidence.glob(f"images/*/image_{CAMERA}.jpg"):
        pixels = cv2.imread(str(path)).astype(float)
        pixels[..., 2] *= 1.2
        cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8))
    (found,) = findings(evidence)
    assert found["kind"] == "camera_color" and found["cameras"] == [CAMERA] and "red 1." in found["message"]
    assert found["numbers"]["red"] == pytest.approx(1.2, abs=0.04) and found["numbers"]["green"] == pytest.approx(1.0, abs=0.04)


def test_a_blank_matte(evidence):
    cv2.imwrite(str(evidence / "images" / FRAME / f"mask_{CAMERA}.jpg"), np.zeros((SIZE, SIZE, 3), np.uint8))
    (found,) = findings(evidence)
    assert found["kind"] == "blank_matte" and (found["frames"], found["cameras"]) == ([FRAME], [CAMERA])
    assert f"python -m preprocess.remove_background {evidence}" in found["message"]


@pytest.mark.parametrize("kind", ["black", "smaller"])
def test_all_mattes_of_a_camera(evidence, kind):
    """No frame is decoded by that camera; all else is still looked at."""
    size = SIZE if kind == "black" else SIZE - 8
    for path in (evidence / "images").rglob(f"mask*_{CAMERA}.jpg"):
        if "_lowres_" not in path.name:
            cv2.imwrite(str(path), np.full((size, size, 3), 0 if kind == "black" else 255, np.uint8))
    cv2.imwrite(str(evidence / "images" / FRAME / f"mask_{OTHER}.jpg"), np.zeros((SIZE, SIZE, 3), np.uint8))
    found = {(one["kind"], *one["cameras"]) for one in findings(evidence)}
    assert ("blank_matte", OTHER) in found and (("blank_matte" if kind == "black" else "picture_size"), CAMERA) in found


def test_a_truncated_picture(evidence):
    path = evidence / "images" / FRAME / f"image_{CAMERA}.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (found,) = findings(evidence)
    assert found["kind"] == "unreadable_picture" and (found["frames"], found["cameras"]) == ([FRAME], [CAMERA]) and "cut off" in found["message"]


def test_a_pose_that_is_nan(evidence):
    path = evidence / "params" / FRAME / "params.npz"
    arrays = dict(np.load(path))
    arrays["pose"][0, 1] = np.nan
    np.savez(path, **arrays)
    (found,) = findings(evidence)
    assert found["kind"] == "unreadable_file" and found["frames"] == [FRAME] and "'pose': 1 of 6 values are NaN" in found["message"]


@pytest.mark.parametrize(("name", "command"), [
    ("params/{}/vertices.npy", "fit_3dmm"), ("params/{}/params.npz", "landmarks"), ("images/{}/mask_{}.jpg", "remove_background"),
    ("images/{}/image_{}.jpg", "nersemble"), ("cameras/{}/camera_{}.npz", "nersemble"),
])
def test_a_missing_file_with_the_command_that_makes_it(copy, name, command):
    (copy / name.format(FRAME, CAMERA)).unlink()
    (found,) = findings(copy)
    assert found["kind"] == "missing_file" and found["frames"] == [FRAME] and f"`python -m preprocess.{command}" in found["message"]


@pytest.mark.parametrize("rows", [(60, 64), (0, 16), (17, 26)])
def test_two_other_rows_of_the_68_are_left_out(evidence, rows):
    for path in evidence.glob("params/*/lmk_3d.npy"):
        full = np.insert(np.load(path), [48, 53], 0.0, axis=0)
        full[48], full[54] = (1.05 * full[[60, 64]] - 0.05 * full[[64, 60]])  # outer corners lie just outside the inner ones
        np.save(path, np.delete(full, rows, axis=0))
    (found,) = [row for row in findings(evidence) if row["kind"] == "landmark_order"]
    assert f"rows {rows[0]} and {rows[1]} of the 68-point set seem to be missing" in found["message"]


@pytest.mark.parametrize("order", ["two exchanged", "left and right"])
def test_permuted_landmarks(copy, order):
    rows = np.arange(66)
    if order == "two exchanged":
        rows[[10, 40]] = rows[[40, 10]]
    for path in copy.glob("params/*/lmk_3d.npy"):
        points = np.load(path)
        np.save(path, points[rows] if order == "two exchanged" else points * np.array([-1.0, 1.0, 1.0]))
    found = [row for row in findings(copy) if row["kind"] == "landmark_order"]
    assert len(found) == 1 and ("row 10 where 40 belongs" if order == "two exchanged" else "left and right") in found[0]["message"]


def test_landmarks_of_another_order_in_one_frame(copy):
    path = copy / "params" / FRAME / "lmk_3d.npy"
    np.save(path, np.load(path)[::-1])
    assert ("landmarks_off_vertices", [FRAME]) in [(row["kind"], row["frames"]) for row in findings(copy)]


@pytest.mark.parametrize("what", ["params", "pictures"])
def test_a_frame_under_two_names(copy, what):
    if what == "params":
        shutil.rmtree(copy / "params" / OTHER_FRAME)
        shutil.copytree(copy / "params" / FRAME, copy / "params" / OTHER_FRAME)
    else:
        for path in (copy / "images" / FRAME).glob("image_*"):
            shutil.copy(path, copy / "images" / OTHER_FRAME / path.name)
    found = findings(copy)
    (twice,) = [row for row in found if row["kind"] == ("duplicate_params" if what == "params" else "duplicate_picture")]
    assert twice["frames"] == [FRAME, OTHER_FRAME] and FRAME in twice["message"] and OTHER_FRAME in twice["message"]
    assert all(OTHER_FRAME in row["frames"] for row in found)


def test_params_alone_of_two_frames_exchanged(copy):
    swap(copy / "params" / "0000" / "params.npz", copy / "params" / "0003" / "params.npz")
    found = findings(copy)
    assert {row["kind"] for row in found} == {"pose_mismatch"} and {frame for row in found for frame in row["frames"]} == {"0000", "0003"}


def test_a_frame_of_another_scale(copy):
    for name in ("lmk_3d", "vertices"):
        path = copy / "params" / FRAME / f"{name}.npy"
        np.save(path, np.load(path) * 1.3)
    path = copy / "params" / FRAME / "params.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"scale": arrays["scale"] * 1.3, "pose": arrays["pose"] * np.array([1, 1, 1, 1.3, 1.3, 1.3])}))
    assert ("scale_outlier", [FRAME]) in [(row["kind"], row["frames"]) for row in findings(copy)]


def test_a_frame_of_another_face(copy):
    rng = np.random.default_rng(0)
    for name in ("lmk_3d", "vertices"):
        path = copy / "params" / FRAME / f"{name}.npy"
        points = np.load(path)
        np.save(path, points + 0.04 * rng.standard_normal(points.shape))
    assert ("shape_outlier", [FRAME]) in [(row["kind"], row["frames"]) for row in findings(copy)]


def test_no_problem_where_there_is_none(evidence):
    assert findings(evidence) == []

