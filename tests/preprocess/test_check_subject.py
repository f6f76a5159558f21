"""The command that looks at a subject folder: all problems at once, nothing written into the folder."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.datasets import layout
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.errors import InputError
from lib.training.runtime import run
from preprocess import check_findings, check_subject, check_tracking
from preprocess.check_sheet import spread_cameras
from preprocess.demo_subject import AZIMUTHS_DEG, CAMERA_IDS
from tests.preprocess.detections import write_detections
from tests.tiny import CAMERAS, SIZE, copy_subject, dataset_dict, mesh_dict

USED = CAMERAS[:3]
SHIFT = 100.0 / 2048 * SIZE  # pixels


@pytest.fixture
def copy(subject, tmp_path):
    return copy_subject(subject, tmp_path / "subject", cameras=USED)


@pytest.fixture
def look(monkeypatch, tmp_path, capsys):
    """`python -m preprocess.check_subject ...` in this process; returns what it printed."""
    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["check_subject", *map(str, words), "--output", str(tmp_path / "sheet.png")])
        capsys.readouterr()
        check_subject.main()
        return capsys.readouterr().out
    return call


def problems(look, *words: object) -> list[str]:
    with pytest.raises(InputError) as error:
        look(*words)
    return str(error.value).splitlines()


def shift(folder: Path, camera: str, pixels: float) -> None:
    """Moves the principal point of one camera to the right."""
    for path in folder.rglob(f"camera_{camera}.npz"):
        arrays = dict(np.load(path))
        arrays["intrinsic"][0, 2] += pixels
        np.savez(path, **arrays)


def test_a_good_folder_needs_no_configuration(copy, look, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    said = look(copy)
    assert "7 frames x 3 cameras, original_resolution 64" in said and "nothing is wrong" in said and "model_bbox" in said
    assert all(f"camera {camera}: matte covers" in said for camera in USED)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 1024 and sheet.shape[0] < 1100


def test_a_configuration_with_overrides(copy, look, tmp_path):
    path = tmp_path / "stage1.yaml"
    path.write_text(yaml.safe_dump(mesh_dict(copy, tmp_path / "runs")))
    cameras = ", ".join(USED)
    said = look("--config", path, f"dataset.camera_ids=[{cameras}, 999]", f"dataset.held_out_cameras=[{USED[0]}]", "--full")
    assert "note: 1 camera of dataset.camera_ids without any image, left out: 999" in said
    assert "model_bbox -2.1 to 1.6" in said and said.rstrip().endswith("nothing is wrong")


def test_all_missing_files_are_told_at_once(copy, look):
    for frame in ("0001", "0002", "0003"):
        (copy / "params" / frame / "vertices.npy").unlink()
        for camera in USED:
            (copy / "images" / frame / f"mask_{camera}.jpg").unlink()
    (copy / "cameras" / "0000" / f"camera_{USED[1]}.npz").write_bytes(b"")
    told = problems(look, copy)
    assert sum("file is missing" in line for line in told) == check_findings.LISTED
    assert any("12 of the kind missing_file in all" in line for line in told)
    assert any(f"camera_{USED[1]}.npz: cannot be read" in line for line in told)


def test_mattes_are_told_at_once(copy, look):
    for frame in ("0000", "0005"):
        cv2.imwrite(str(copy / "images" / frame / f"mask_{USED[0]}.jpg"), np.zeros((SIZE, SIZE, 3), np.uint8))
    told = problems(look, copy, "--full")
    assert sum("the matte is black" in line for line in told) == 2


def test_off_scale_is_told_with_the_extent(copy, look):
    for path in copy.rglob("params.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"scale": arrays["scale"] * 10}))
    assert any("canonical units around" in line and "model_bbox" in line for line in problems(look, copy))


def test_exact_detections_agree(copy, look):
    write_detections(copy, SIZE)
    said = look(copy)
    assert "taken as detected in pictures of 64 x 64" in said and "0.0 px from those of 7 detections" in said


def test_smaller_detector_pictures_are_recognised(copy, look, monkeypatch):
    write_detections(copy, SIZE // 2)
    monkeypatch.setattr(layout, "DETECTOR_SIZES", (SIZE // 2,))
    said = look(copy)
    assert "taken as detected in pictures of 32 x 32" in said and "0.0 px from those of 7 detections" in said


def test_detections_of_a_smaller_picture_that_says_its_size_agree(copy, look):
    write_detections(copy, SIZE // 2)
    (copy / "landmarks" / "detector.json").write_text('{"size": 32, "detector": "exact"}')
    said = look(copy)
    assert "taken as detected in pictures of 32 x 32" in said and "0.0 px from those of 7 detections" in said
    (copy / "landmarks" / "detector.json").write_text('{"size": "32"}')
    with pytest.raises(InputError, match="detector.json: 'size'"):
        look(copy)


def test_points_that_a_detector_is_not_sure_of_are_not_compared(copy, look):
    write_detections(copy, SIZE)
    for number, path in enumerate(sorted((copy / "landmarks").rglob("lmk_*.npy"))):
        points = np.load(path)
        points[20:40] += [30.0, -20.0, -0.9]
        if number == 0:
            points[:, 2] = 0.1
        np.save(path, points)
    said = look(copy)
    assert said.count("0.0 px from those of 7 detections") == 2 and said.count("0.0 px from those of 6 detections") == 1


def test_a_shifted_principal_point_is_found_by_detections(copy, look):
    write_detections(copy, SIZE)
    shift(copy, USED[1], SHIFT)
    (line,) = [line for line in problems(look, copy) if "principal point" in line]
    assert f"camera {USED[1]}: " in line and f"off by {SHIFT:+.1f}, " in line and f"instead of {SHIFT:.1f} px" in line


def test_one_camera_is_judged_by_its_mattes_and_detections(subject, look, tmp_path):
    alone = copy_subject(subject, tmp_path / "alone", cameras=USED[1:2])
    assert "one camera: pictures of other cameras that could contradict it are missing" in look(alone)
    shift(alone, USED[1], 4 * SHIFT)
    (line,) = [line for line in problems(look, alone) if "fall on the matte" in line]
    assert "in 1 of 1 cameras" in line and USED[1] in line


def test_the_report_is_always_written(copy, look, tmp_path):
    look(copy, "--json", tmp_path / "other.json")
    report = json.loads((tmp_path / "other.json").read_text())
    assert report["problems"] == 0 and report["findings"] == [] and report["measured"]["box_y_low"] < report["measured"]["face_y_low"]
    shutil.rmtree(copy / "images")
    with pytest.raises(InputError):
        check_subject.check(HeadCaptureConfig(**dataset_dict(copy)), MeshHeadConfig().model_bbox, False, tmp_path / "sheet.png")
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert finding["kind"] == "unusable" and str(copy) in finding["message"]


def test_a_box_is_proposed_that_passes(copy, look):
    said = look(copy)
    assert "model_bbox that fits this subject: [[-1" in said


def test_heads_that_jump_are_named_but_are_no_problem(copy, look, monkeypatch):
    monkeypatch.setattr(check_tracking, "LARGEST_JUMP", 0.0)
    assert "look at frames 0000 and 0001: the head jumps by 0.0" in look(copy)


def test_pictures_without_detections_are_skipped(copy, look):
    write_detections(copy, SIZE)
    for path in (copy / "landmarks" / "0002").glob("*.npy"):
        np.save(path, np.zeros((68, 3)))
    assert "0.0 px from those of 6 detections" in look(copy)
    np.save(copy / "landmarks" / "0003" / f"lmk_{USED[0]}.npy", np.zeros((5, 3)))
    assert any("expected 68 landmarks" in line for line in problems(look, copy))


def test_nothing_is_written_into_the_subject_folder(copy, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check_subject", str(copy), "--output", str(copy / "check" / "sheet.png")])
    with pytest.raises(InputError, match="lies in the subject folder"):
        check_subject.main()
    assert not (copy / "check").exists()


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_what_to_check_must_be_said(look, words):
    with pytest.raises(InputError, match="expected one subject folder"):
        look(*words)


def test_a_folder_beside_a_configuration_and_one_that_is_not_there_are_told(look, tmp_path):
    with pytest.raises(InputError, match=r"'a': with --config the YAML names the subject; write dataset.dataroot=a"):
        look("a", "--config", "file.yaml")
    with pytest.raises(InputError, match=rf"^{tmp_path / 'a'}: expected a subject folder, found nothing there"):
        look(tmp_path / "a")


def test_exit_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["check_subject", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as end:
        run(check_subject.main)
    assert end.value.code == 2 and "nowhere" in capsys.readouterr().err


def test_the_four_views_are_far_apart_and_in_order(subject):
    capture = HeadCapture(HeadCaptureConfig(**dataset_dict(subject, camera_ids=list(CAMERA_IDS))))
    azimuths = [AZIMUTHS_DEG[CAMERA_IDS.index(camera)] for camera in spread_cameras(capture, "0000", list(CAMERA_IDS))]
    steps = np.diff(azimuths)
    assert len(azimuths) == 4 and (np.all(steps > 25) or np.all(steps < -25)) and abs(azimuths[-1] - azimuths[0]) > 150
    assert spread_cameras(capture, "0000", list(CAMERA_IDS[:2])) == list(CAMERA_IDS[:2])
    assert spread_cameras(capture, "0000", [CAMERA_IDS[3]]) == [CAMERA_IDS[3]]
