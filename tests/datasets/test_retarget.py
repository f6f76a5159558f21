"""Drivers of other systems, and what is done to their expressions: laws of neutral faces, gain and the range of the training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lib.datasets.driving import DrivingConfig, DrivingSequence
from lib.datasets.layout import MODELS, read_params_file
from lib.datasets.retarget import TrainedFace, trained_face, transfer
from lib.errors import InputError
from tests.published_tracking import (
    Performance,
    matrix,
    write_benchmark,
    write_flame_subject,
    write_flashavatar,
    write_imavatar,
    write_insta,
    write_vhap_export,
    write_vhap_tracker,
)

OWN, WIDTH = torch.arange(6.0), 59
BUILDERS = {"vhap": write_vhap_export, "tracker": write_vhap_tracker, "benchmark": write_benchmark, "imavatar": write_imavatar,
            "flashavatar": write_flashavatar, "insta": write_insta, "subject": write_flame_subject}


@pytest.fixture
def show() -> Performance:
    return Performance(frames=5)


def face(width: int = WIDTH, scale: float = 0.9) -> TrainedFace:
    return replace(trained_face(0.1 * torch.randn(9, width, generator=torch.Generator().manual_seed(1)), torch.ones(9, 1)),
                   scale=torch.tensor([scale]))


def drive(path: Path, width: int | None = WIDTH, trained: TrainedFace | None = None, **changes) -> DrivingSequence:
    config = DrivingConfig(**{"dataroot": path.parent, "param_files": path.name, "resolution": 32, "smoothing": 0.0} | changes)
    return DrivingSequence(config, OWN, width, trained)


def refusal(*args, **changes) -> str:
    with pytest.raises(InputError) as error:
        drive(*args, **changes)
    return str(error.value)


def joined(show: Performance) -> np.ndarray:
    """FLAME's 59 coefficients as the published fitting writes them."""
    return np.concatenate([show.expression[:, :50], show.jaw, show.eyes], axis=1)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_flame_source_drives_an_avatar_of_flame(name, tmp_path, show):
    driver = drive(BUILDERS[name](tmp_path / "data" / "me", show), trained=face())
    assert np.allclose(driver.expressions, joined(show), atol=1e-6)
    assert len(driver) == show.frames and all(driver[index].head.pose.shape == (1, 6) for index in range(len(driver)))
    assert any("recognised" in note for note in driver.notes)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_driver_of_another_model_is_refused(name, tmp_path, show):
    path = BUILDERS[name](tmp_path / "data" / "me", show)
    for width in (64, 52, 55):
        said = refusal(path, width, face(width))
        assert f"the avatar was trained with {width}" in said and "same 3DMM" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(("name", "width"), [("vhap", 100), ("vhap", 109), ("imavatar", 50), ("insta", 100)])
def test_other_widths_of_flame(name, width, tmp_path, show):
    driver = drive(BUILDERS[name](tmp_path / "data" / "me", show), width, face(width))
    kept = width if width in (50, 100) else width - 9
    assert np.array_equal(driver.expressions[:, :kept], show.expression[:, :kept]) and driver.expression_count == width


def test_without_a_jaw_flame_cannot_drive_59(tmp_path, show):
    assert "100 expression coefficients" in refusal(write_insta(tmp_path / "me", show, jaw=False))


def test_the_subject_folder_is_the_pattern_to_the_bit(tmp_path, show):
    path = write_flame_subject(tmp_path / "me", show)
    named, pattern = drive(path), drive(path, dataroot=path, param_files="params/*/params.npz")
    for key in ("expressions", "poses", "pose_codes", "scales"):
        assert torch.equal(getattr(named, key), getattr(pattern, key))
    assert named.files == pattern.files and pattern.notes == ()
    assert torch.equal(drive(path, dataroot=path, param_files=".").expressions, pattern.expressions)
    single = drive(path, dataroot=path, param_files="params/0020/params.npz")
    assert torch.equal(single.expressions, pattern.expressions[2:3]) and single.notes == ()


def test_the_head_turns_by_root_and_neck(tmp_path, show):
    driver = drive(write_vhap_export(tmp_path / "me", show), trained=face(), head_pose="driver")
    for t in range(show.frames):
        assert np.allclose(driver[t].head.rotation()[0], matrix(show.rotation[t]) @ matrix(show.neck[t]), atol=1e-5)
        assert np.allclose(driver[t].head.pose[0, 3:], show.translation[t])
    assert any("centimetres" in note for note in driver.notes)


@pytest.mark.parametrize("changes", [{"freeview": True}, {"head_pose": "own"}, {"head_pose": "zero"}])
def test_elsewhere_the_head_has_the_size_of_its_training(changes, tmp_path, show):
    path = write_imavatar(tmp_path / "me", show)
    assert float(drive(path, trained=face(), **changes)[1].head.scale) == pytest.approx(0.9)
    said = refusal(path, **changes)
    assert "dataset.head_pose_path" in said and "how large" in said


@pytest.mark.parametrize(("name", "units"), [("vhap", 1.0), ("flashavatar", 1.0), ("benchmark", 1.0), ("imavatar", 4.0)])
def test_in_the_world_of_a_tracker_the_head_keeps_its_size_in_metres(name, units, tmp_path, show):
    """A tracker says how large its own model is, not how large a canonical unit of the avatar is: a tenth of a metre, or so."""
    path = BUILDERS[name](tmp_path / "data" / "me", show)
    assert float(drive(path, trained=face(scale=0.1), head_pose="driver")[1].head.scale) == pytest.approx(0.1 * units)
    unknown = drive(path, head_pose="driver")
    assert float(unknown[1].head.scale) in (1.0, 1.5, 4.0) and any("how large" in note for note in unknown.notes)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_world_of_a_tracker_is_not_that_of_the_camera(name, tmp_path, show):
    driver = drive(BUILDERS[name](tmp_path / "data" / "me", show), trained=face())
    ours = name == "subject"
    assert driver.head_pose_mode == ("driver" if ours else "own") and any("dataset.head_pose is own" in note for note in driver.notes) is not ours


def test_a_fixed_head_has_the_size_of_its_file(tmp_path, show):
    pose = write_flame_subject(tmp_path / "subject", show) / "params" / "0010" / "params.npz"
    driver = drive(write_imavatar(tmp_path / "me", show), head_pose="fixed", head_pose_path=pose)
    assert float(driver[2].head.scale) == 1.25 and np.allclose(driver[2].head.pose[0, 3:], show.translation[1])


def rows(tmp_path: Path, show: Performance) -> Path:
    np.save(tmp_path / "take.npy", joined(show))
    return tmp_path / "take.npy"


def test_rows_drive_the_head_where_it_was_in_training(tmp_path, show):
    driver = drive(rows(tmp_path, show), trained=face())
    assert torch.equal(driver[3].head.pose[0], OWN) and float(driver[3].head.scale) == pytest.approx(0.9)
    assert driver.head_pose_mode == "own" and any("head_pose is own" in note for note in driver.notes)
    assert "where the head is" in refusal(rows(tmp_path, show), trained=face(), head_pose="driver")
    assert "the driver has 59" in refusal(rows(tmp_path, show), 64)


def test_gain_one_without_a_neutral_face_is_the_identity(tmp_path, show):
    plain = drive(rows(tmp_path, show), trained=face())
    assert torch.equal(plain.expressions, torch.from_numpy(joined(show)))
    values = torch.randn(4, 7)
    assert transfer(values, None, None, 1.0) is values


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("how", ["median", "first", "file"])
def test_the_neutral_face_of_the_driver_becomes_that_of_the_avatar(how, gain, tmp_path, show):
    trained, path, values = face(), rows(tmp_path, show), torch.from_numpy(joined(show))
    np.save(tmp_path / "rest.npy", joined(show)[3:4])
    more = {"neutral_path": tmp_path / "rest.npy"} if how == "file" else {}
    driver = drive(path, trained=trained, neutralize=how, gain=gain, **more)
    rest = {"median": values.median(dim=0).values, "first": values[0], "file": values[3]}[how]
    assert torch.allclose(driver.expressions - trained.median, gain * (values - rest), atol=1e-6)
    if how != "median":
        assert torch.equal(driver.expressions[0 if how == "first" else 3], trained.median)
    else:
        assert torch.allclose(driver.expressions.median(dim=0).values, trained.median, atol=1e-7)


def test_neutral_faces_are_taken_before_smoothing_which_changes_nothing_else(tmp_path, show):
    trained, path = face(), rows(tmp_path, show)
    smooth = drive(path, trained=trained, smoothing=0.5)
    both = drive(path, trained=trained, smoothing=0.5, neutralize="first", gain=2.0)
    rest = torch.from_numpy(joined(show)[0])
    assert torch.allclose(both.expressions, trained.median + 2.0 * (smooth.expressions - rest), atol=1e-6)


def test_the_neutral_face_of_the_avatar_may_be_a_file(tmp_path, show):
    file = write_flame_subject(tmp_path / "subject", show) / "params" / "0020" / "params.npz"
    driver = drive(rows(tmp_path, show), trained=face(), neutralize="first", avatar_neutral_path=file)
    assert np.allclose(driver.expressions[0], joined(show)[2])
    old = drive(rows(tmp_path, show), head_pose="fixed", head_pose_path=file, neutralize="first", avatar_neutral_path=file)
    assert torch.equal(old.expressions, driver.expressions)


@pytest.mark.parametrize("changes", [{}, {"gain": 9.0}, {"neutralize": "median", "gain": 5.0}, {"smoothing": 0.5, "gain": 9.0}])
def test_clamped_expressions_lie_within_the_training(changes, tmp_path, show):
    trained, path = face(), rows(tmp_path, show)
    free = drive(path, trained=trained, **changes).expressions
    held = drive(path, trained=trained, clamp_to_training=True, **changes).expressions
    inside = (free >= trained.lowest) & (free <= trained.highest)
    assert bool((held >= trained.lowest).all() and (held <= trained.highest).all()) and not bool(inside.all())
    assert torch.equal(held[inside], free[inside])


@pytest.mark.parametrize(("changes", "key"), [
    ({"neutralize": "median"}, "dataset.avatar_neutral_path"), ({"clamp_to_training": True}, "dataset.clamp_to_training"),
    ({"neutralize": "file"}, "dataset.neutral_path"),
])
def test_what_an_old_checkpoint_does_not_know_is_said(changes, key, tmp_path, show):
    file = write_flame_subject(tmp_path / "subject", show) / "params" / "0020" / "params.npz"
    assert refusal(rows(tmp_path, show), head_pose="fixed", head_pose_path=file, **changes).startswith(f"{key}: ")


@pytest.mark.parametrize("changes", [{"neutral_path": "a.npy"}, {"neutral_path": "a.npy", "neutralize": "first"}, {"avatar_neutral_path": "a.npz"}])
def test_a_neutral_face_that_would_not_be_used_is_refused(changes, tmp_path):
    with pytest.raises(ValidationError, match="neutral"):
        DrivingConfig(dataroot=tmp_path, **changes)


def test_a_neutral_face_of_another_width_is_refused(tmp_path, show):
    np.save(tmp_path / "rest.npy", np.zeros((1, 64)))
    said = refusal(rows(tmp_path, show), trained=face(), neutralize="file", neutral_path=tmp_path / "rest.npy")
    assert "rest.npy" in said and "64" in said and "59" in said


def _break_npz(path: Path, key: str, row: int, value: float) -> None:
    arrays = dict(np.load(path))
    arrays[key] = arrays[key].copy()
    arrays[key][row].flat[0] = value
    np.savez(path, **arrays)


def _break_json(path: Path, row: int, value: float) -> None:
    content = json.loads(path.read_text())
    content["frames"][row]["expression"][3] = value
    path.write_text(json.dumps(content))


def _break_frame(path: Path, value: float) -> None:
    content = torch.load(path, weights_only=False)
    content["flame"]["jaw"][0, 2] = value
    torch.save(content, path)


# Where frame 2 of a source is made NaN, and how an error calls it.
BREAKS = {
    "vhap": (lambda me, value: _break_npz(me / "flame_param" / "00002.npz", "jaw_pose", 0, value), "00002.npz: 'jaw_pose'"),
    "tracker": (lambda me, value: _break_npz(me / "tracked_flame_params_30.npz", "expr", 2, value), "timestep 00006: 'expr'"),
    "benchmark": (lambda me, value: _break_npz(next(me.rglob("*v2.npz")), "rotation_matrices", 2, value), "row 2: 'rotation_matrices'"),
    "imavatar": (lambda me, value: _break_json(me / "flame_params.json", 2, value), "('./image/3'): 'expression'"),
    "flashavatar": (lambda me, value: _break_frame(next(me.parents[1].rglob("00002.frame")), value), "00002.frame: 'jaw'"),
    "insta": (lambda me, value: (me / "flame" / "exp" / "00002.txt").write_text(" ".join([str(value)] * 100)), "exp/00002.txt"),
    "subject": (lambda me, value: _break_npz(me / "params" / "0020" / "params.npz", "pose", 0, value), "0020/params.npz: 'pose'"),
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", BREAKS)
def test_a_frame_that_is_nan_is_named_and_left_out_where_asked(name, value, tmp_path, show):
    path = BUILDERS[name](tmp_path / "data" / "me", show)
    damage, told = BREAKS[name]
    damage(path, value)
    said = refusal(path, trained=face())
    assert told in said and "NaN" in said and "dataset.nan_frames" in said and len(said.splitlines()) == 1
    driver = drive(path, trained=face(), nan_frames="skip")
    assert np.allclose(driver.expressions, np.delete(joined(show), 2, axis=0), atol=1e-6) and len(driver.files) == show.frames - 1
    (note,) = (note for note in driver.notes if "left out" in note)
    assert "1 frame" in note and told in note


def test_rows_that_are_nan_are_left_out_where_asked(tmp_path, show):
    values = show.expression.copy()
    values[[0, 3], 5] = np.nan
    for suffix in ("npy", "csv"):
        path = tmp_path / f"take.{suffix}"
        np.save(path, values) if suffix == "npy" else np.savetxt(path, values, delimiter=",")
        assert f"{path}: row 0: 1 of 100 values are NaN" in refusal(path, 100, face(100))
        driver = drive(path, 100, face(100), nan_frames="skip")
        assert np.allclose(driver.expressions, show.expression[[1, 2, 4]]) and driver.files[1] == f"{path}: row 2"
        assert any("left out 2 frames" in note and "row 0" in note and "row 3" in note for note in driver.notes)
    np.save(tmp_path / "take.npy", np.full_like(values, np.nan))
    assert "no frame" in refusal(tmp_path / "take.npy", 100, face(100), nan_frames="skip")


def test_pictures_of_the_driver_stay_beside_their_frames(tmp_path, show):
    path = write_flame_subject(tmp_path / "me", show)
    for folder in (path / "params").iterdir():
        (path / "shown" / folder.name).mkdir(parents=True)
        (path / "shown" / folder.name / "a.png").touch()
    _break_npz(path / "params" / "0020" / "params.npz", "exp_coeff", 0, np.nan)
    driver = drive(path, dataroot=path, param_files="params/*/params.npz", image_files="shown/*/a.png", nan_frames="skip")
    assert [image.parent.name for image in driver.images] == [Path(file).parent.name for file in driver.files]
    assert len(driver) == show.frames - 1


@pytest.mark.parametrize("frames", [1, 2, 40])
def test_short_and_long_drivers(frames, tmp_path):
    show = Performance(frames=frames)
    driver = drive(write_vhap_tracker(tmp_path / "me", show), trained=face(), smoothing=0.5, neutralize="median", clamp_to_training=True)
    assert len(driver) == frames and bool(torch.isfinite(torch.cat([driver[index].expression for index in range(frames)])).all())


def test_something_unknown_is_refused_with_what_was_looked_for(tmp_path):
    (tmp_path / "stuff").mkdir()
    assert "Looked for" in refusal(tmp_path / "stuff") and "VHAP" in refusal(tmp_path / "stuff")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_driver_of_another_model_is_refused_though_it_has_as_many_coefficients(name, tmp_path, show):
    path = BUILDERS[name](tmp_path / "data" / "me", show)
    assert len(drive(path, trained=replace(face(), model=("FLAME", "2020")))) == len(drive(path, trained=face()))
    said = refusal(path, trained=replace(face(), model=("BFM", "2009")))
    assert "coefficients of FLAME" in said and "as many of BFM 2009" in said and "same 3DMM" in said


def test_params_tell_their_model_by_their_widths(tmp_path):
    for (identity, expression), model in MODELS.items():
        np.savez(tmp_path / "params.npz", id_coeff=np.zeros((1, identity), np.float32), exp_coeff=np.zeros((1, expression), np.float32),
                 pose=np.zeros((1, 6), np.float32), scale=np.ones(1, np.float32))
        assert read_params_file(tmp_path / "params.npz").model == model
        said = refusal(tmp_path / "params.npz", expression, replace(face(expression), model=("another",)))
        assert f"coefficients of {model[0]}" in said
    np.savez(tmp_path / "params.npz", exp_coeff=np.zeros((1, 64), np.float32), pose=np.zeros((1, 6), np.float32), scale=np.ones(1, np.float32))
    assert read_params_file(tmp_path / "params.npz").model == ()
    assert len(drive(tmp_path / "params.npz", 64, replace(face(64), model=("BFM", "2009")))) == 1
