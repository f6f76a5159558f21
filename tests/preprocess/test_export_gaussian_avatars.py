"""What is written is what GaussianAvatars reads, and what our reader reads back; no pixel moves."""

import json
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch

from lib.datasets.tracked.record import TrackedFrame
from lib.datasets.tracked.sources import read_tracking, recognise
from lib.datasets.tracked.vhap import EXPORT
from lib.errors import InputError
from preprocess import export_gaussian_avatars
from preprocess.export_gaussian_avatars import export
from tests.published_tracking import (
    CAMERAS,
    OPENGL,
    SIZE,
    Performance,
    write_benchmark,
    write_flame_subject,
    write_flashavatar,
    write_imavatar,
    write_insta,
    write_union,
    write_vhap_export,
    write_vhap_tracker,
)
from tests.tiny import copy_subject

POINT = np.array([0.03, -0.05, 0.02])
SOURCES = {"vhap": write_vhap_export, "benchmark": write_benchmark, "imavatar": write_imavatar, "flashavatar": write_flashavatar,
           "insta": write_insta, "subject": write_flame_subject}


@pytest.fixture
def show() -> Performance:
    return Performance()


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        export(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def pixel(frame: TrackedFrame) -> np.ndarray:
    """Of POINT, where the head of the record puts it."""
    point = torch.from_numpy(POINT).float()[None]
    if frame.params.rotation is not None:
        head = frame.head_pose()
        assert head is not None
        point = head.to_world(point)
    elif frame.params.scale is not None:
        point = point * frame.params.scale
    assert frame.view is not None
    return frame.view.project(point[None])[0, 0].numpy()


@pytest.mark.parametrize("name", SOURCES)
def test_a_point_of_the_head_stays_on_its_pixel(name, tmp_path, show):
    source = SOURCES[name](tmp_path / "data" / "me", show)
    export(source, tmp_path / "out")
    assert recognise(tmp_path / "out").reader.name == EXPORT
    before, after = read_tracking(source), read_tracking(tmp_path / "out")
    views = {(frame.timestep, frame.camera): frame for frame in after.frames}
    assert len(views) == len(after.frames) == len(before.frames)
    numbers = {instant.timestep: number for number, instant in enumerate(before.instants())}
    for frame in before.frames:
        found = views[numbers[frame.timestep], frame.camera]
        assert found.sequence == frame.sequence and found.params.scale is None
        assert np.allclose(pixel(found), pixel(frame), atol=2e-3)
        for key in ("expression", "identity", "neck", "jaw", "eyes"):
            given, written = getattr(frame.params, key), getattr(found.params, key)
            if given is None:
                assert not written.any()
            else:
                assert torch.equal(written[:len(given)], given) and not written[len(given):].any()


def test_a_set_comes_back_exactly(tmp_path):
    source = write_union(tmp_path, [Performance(seed=seed) for seed in range(3)])
    export(source, tmp_path / "out")
    before, after = read_tracking(source), read_tracking(tmp_path / "out")
    assert (before.model, before.pivot, before.cameras, before.sequences) == (after.model, after.pivot, after.cameras, after.sequences)
    assert [(one.timestep, one.camera, one.split) for one in before.frames] == [(one.timestep, one.camera, one.split) for one in after.frames]
    for one, other in zip(before.frames, after.frames, strict=True):
        for key in ("expression", "identity", "rotation", "translation", "neck", "jaw", "eyes", "static_offset"):
            assert torch.equal(getattr(one.params, key), getattr(other.params, key)), key
        assert one.view is not None and other.view is not None and torch.equal(one.view.intrinsics, other.view.intrinsics)
        assert torch.allclose(one.view.world_to_camera, other.view.world_to_camera, rtol=2e-7, atol=1e-8)
        assert np.array_equal(cv2.imread(str(one.image)), cv2.imread(str(other.image)))
    assert export(tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again" / "transforms_val.json").read_text() == (tmp_path / "out" / "transforms_val.json").read_text()


def test_the_layout_is_that_of_vhap(tmp_path, show):
    reference = write_vhap_export(tmp_path / "vhap", show)
    export(write_flame_subject(tmp_path / "me", show), tmp_path / "out", test_sequences=["SEQ-0"])
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "images", "fg_masks", "flame_param", "canonical_flame_param.npz", "sequences_trainval.txt", "sequences_test.txt",
        "transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json"}
    for folder in ("images", "fg_masks", "flame_param"):
        assert {path.name for path in (out / folder).iterdir()} == {path.name for path in (reference / folder).iterdir()}
    theirs, ours = (json.loads((folder / "transforms.json").read_text()) for folder in (reference, out))
    assert ours.keys() == theirs.keys() and ours["frames"][0].keys() == theirs["frames"][0].keys() | {"sequence"}
    assert [(row["file_path"], row["camera_id"], row["flame_param_path"]) for row in ours["frames"]] == [
        (row["file_path"], row["camera_id"], row["flame_param_path"]) for row in theirs["frames"]]
    shapes = {"translation": (1, 3), "rotation": (1, 3), "neck_pose": (1, 3), "jaw_pose": (1, 3), "eyes_pose": (1, 6), "shape": (300,),
              "expr": (1, 100), "static_offset": (1, 5143, 3)}
    for file in (out / "flame_param" / "00001.npz", out / "canonical_flame_param.npz"):
        assert {key: value.shape for key, value in np.load(file).items()} == shapes
    canonical = dict(np.load(out / "canonical_flame_param.npz"))
    assert canonical["jaw_pose"].tolist() == [[np.float32(0.3), 0.0, 0.0]] and not canonical["expr"].any() and canonical["shape"].any()
    assert (out / "sequences_test.txt").read_text() == "SEQ-0\n" and (out / "sequences_trainval.txt").read_text() == "SEQ-1\n"
    mask = cv2.imread(str(out / "fg_masks" / "00000_00.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (SIZE, SIZE) and mask.dtype == np.uint8


def test_the_matrix_means_what_nerf_code_takes_it_for(tmp_path, show):
    """Camera->world, x right, y up, looking along -z; half the picture spans half of camera_angle_x."""
    source = write_vhap_export(tmp_path / "me", show)
    export(source, tmp_path / "out")
    row = json.loads((tmp_path / "out" / "transforms.json").read_text())["frames"][1]
    x, y, z = (np.linalg.inv(np.array(row["transform_matrix"])) @ np.append(POINT, 1.0))[:3]
    focal = row["w"] / 2 / np.tan(row["camera_angle_x"] / 2)
    seen = show.lens @ (show.views[CAMERAS[1]][:3] @ np.append(POINT, 1.0))
    assert z < 0 and [focal * x / -z + row["cx"], row["fl_y"] * y / z + row["cy"]] == pytest.approx((seen[:2] / seen[2]).tolist(), abs=1e-4)
    assert np.allclose(np.array(row["transform_matrix"]), np.linalg.inv(show.views[CAMERAS[1]]) @ OPENGL, atol=1e-6)


def split_of(out: Path) -> dict[str, set[tuple[int, str]]]:
    return {name: {(row["timestep_index"], row["camera_id"]) for row in json.loads((out / f"transforms_{name}.json").read_text())["frames"]}
            for name in ("train", "val", "test")}


@pytest.mark.parametrize(("options", "val", "test"), [
    ({}, "222200037", {2, 3}), ({"val_camera": CAMERAS[2]}, CAMERAS[2], {2, 3}), ({"test_sequences": ["SEQ-0"]}, "222200037", {0, 1}),
])
def test_one_camera_and_whole_sequences_are_held_out(options, val, test, tmp_path, show):
    export(write_flame_subject(tmp_path / "me", show), tmp_path / "out", **options)
    parts = split_of(tmp_path / "out")
    assert parts["test"] == {(t, camera) for t in test for camera in CAMERAS}
    assert parts["val"] == {(t, val) for t in set(range(4)) - test}
    assert parts["train"] == {(t, camera) for t in set(range(4)) - test for camera in CAMERAS if camera != val}


def test_of_a_single_sequence_the_last_tenth_is_held_out(tmp_path):
    show = Performance(frames=20)
    export(write_insta(tmp_path / "me", show), tmp_path / "kept")
    assert {t for t, _ in split_of(tmp_path / "kept")["test"]} == {19}  # as the source divides
    export(write_flame_subject(tmp_path / "one", show, sequences=1), tmp_path / "out")
    assert {t for t, _ in split_of(tmp_path / "out")["test"]} == {18, 19}


def test_pictures_are_put_on_white_once(tmp_path, show):
    source = write_flame_subject(tmp_path / "me", show)
    matte = np.zeros((SIZE, SIZE), np.uint8)
    matte[:, SIZE // 2:] = 255
    for path in source.rglob("mask_*.jpg"):
        cv2.imwrite(str(path), matte)
    export(source, tmp_path / "out")
    picture = cv2.imread(str(tmp_path / "out" / "images" / "00000_00.png")).astype(int)
    assert (picture[:, :SIZE // 2 - 2] > 250).all() and (abs(picture[:, SIZE // 2 + 2:] - 128) < 6).all()
    cv2.imwrite(str(tmp_path / "out" / "fg_masks" / "00000_00.png"), np.full((SIZE, SIZE), 128, np.uint8))
    export(tmp_path / "out", tmp_path / "again")
    assert np.array_equal(cv2.imread(str(tmp_path / "again" / "images" / "00000_00.png")), picture)


def test_a_subject_of_another_model_is_refused_and_may_go_without(made, tmp_path):
    source = copy_subject(made.subject, tmp_path / "me", CAMERAS[:1])
    said = refusal(source, tmp_path / "out")
    assert "55 coefficients of ICT-FaceKit" in said and "--without-params" in said and not (tmp_path / "out").exists()
    export(source, tmp_path / "out", params=False)
    rows = json.loads((tmp_path / "out" / "transforms.json").read_text())["frames"]
    assert not any("flame_param_path" in row for row in rows) and not (tmp_path / "out" / "flame_param").exists()
    assert all((tmp_path / "out" / row["file_path"]).is_file() for row in rows)
    with pytest.raises(InputError, match="'flame_param_path'"):
        recognise(tmp_path / "out")


def test_what_cannot_be_exported_is_said(tmp_path, show):
    source = write_flame_subject(tmp_path / "me", show)
    assert "--val-camera: '1'" in refusal(source, tmp_path / "out", val_camera="1")
    assert "--test-sequences: 'x'" in refusal(source, tmp_path / "out", test_sequences=["x"])
    assert "leave one" in refusal(source, tmp_path / "out", test_sequences=["SEQ-0", "SEQ-1"])
    assert "no picture with a camera" in refusal(write_vhap_tracker(tmp_path / "tracker", show), tmp_path / "out")
    assert "another folder" in refusal(source, source / "out") and "another folder" in refusal(source, tmp_path)
    mask = source / "images" / "0010" / f"mask_{CAMERAS[0]}.jpg"
    cv2.imwrite(str(mask), np.zeros((8, 8), np.uint8))
    assert str(mask) in refusal(source, tmp_path / "small")
    mask.unlink()
    assert str(mask) in refusal(source, tmp_path / "out") and "mask is missing" in refusal(source, tmp_path / "out")


def test_an_interrupted_export_is_made_again_and_a_whole_one_is_kept(tmp_path, show):
    source, out = write_flame_subject(tmp_path / "me", show), tmp_path / "out"
    with (mock.patch.object(export_gaussian_avatars, "_write_transforms", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt)):
        export(source, out)
    assert not (out / "transforms.json").exists()
    export(source, out)
    assert "transforms.json" in refusal(source, out)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("keep me")
    assert "thesis.txt" in refusal(source, tmp_path / "notes")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_picture_that_fails_ends_the_export(tmp_path, show):
    source = write_flame_subject(tmp_path / "me", show)
    broken = source / "images" / "0020" / f"image_{CAMERAS[1]}.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    assert str(broken) in refusal(source, tmp_path / "out") and not (tmp_path / "out" / "transforms.json").exists()


def test_the_command_line(tmp_path, show, capsys):
    source = write_flame_subject(tmp_path / "me", show)
    with mock.patch.object(sys, "argv", ["export", str(source), str(tmp_path / "out"), "--val-camera", CAMERAS[0], "--test-sequences", "SEQ-1"]):
        export_gaussian_avatars.main()
    said = capsys.readouterr().out
    assert "4 train, 2 val, 6 test" in said and "coefficients of FLAME" in said and "at rest" in said
