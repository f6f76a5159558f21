"""The three YAML files of a subject: they load, say what they hold, train, and are never overwritten once somebody edited them."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_meshhead
from lib.avatars.gaussian_head_avatar import mesh_head
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig
from lib.config import Config, read_config
from lib.config.reader import Arguments, yaml_value
from lib.datasets.head_capture import HeadCapture
from lib.datasets.layout import CaptureFolder
from lib.errors import InputError
from lib.geometry.camera import look_at
from lib.geometry.head_pose import HeadPose
from preprocess import new_subject
from preprocess.subject_files import CONFIG_FOLDER, PRESETS, STAGES, UNUSED
from preprocess.subject_measures import held_out_camera, measure
from preprocess.subject_yaml import is_edited
from tests.tiny import CAMERAS, EXPRESSIONS, HELD_OUT_CAMERA, HELD_OUT_SEQUENCE, SIZE, copy_subject


class OneValue(Config):
    value: Any


@pytest.fixture
def subject(made, tmp_path):
    return copy_subject(made.subject, tmp_path / "me")


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """`python -m preprocess.new_subject ...` in this process, with its files in tmp_path; returns what it printed."""
    def run(*words: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["new_subject", *map(str, words)])
        capsys.readouterr()
        new_subject.main()
        return capsys.readouterr().out
    return run


def refusal(call, *words: object) -> str:
    with pytest.raises(InputError) as error:
        call(*words)
    return str(error.value)


def load(tmp_path: Path, name: str = "me") -> tuple[MeshHeadTrainConfig, GaussianHeadTrainConfig, ReenactmentConfig]:
    paths = {stage: tmp_path / "config" / f"{stage}_{name}.yaml" for stage in STAGES}
    mesh, gaussian, reenactment = (read_config(Arguments(paths[stage], ()), schema) for stage, schema in STAGES.items())
    return mesh, gaussian, reenactment


def leaves(values: dict, prefix: str = "") -> set[str]:
    """Dotted names of everything that is no section."""
    return {name for key, value in values.items() for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"})}


def rewrite_params(subject: Path, **changes) -> None:
    for path in subject.glob("params/*/params.npz"):
        with np.load(path) as archive:
            np.savez(path, **(dict(archive) | {key: change(archive[key]) for key, change in changes.items()}))


@pytest.mark.parametrize("preset", PRESETS)
def test_files_load_fit_the_subject_and_are_one_chain(subject, call, tmp_path, preset):
    out = call(subject, "--preset", preset)
    mesh, gaussian, reenactment = load(tmp_path)
    for config in (mesh, gaussian):
        assert config.dataset.dataroot == subject and config.dataset.camera_ids == tuple(sorted(CAMERAS))
        assert config.dataset.original_resolution == config.dataset.resolution == SIZE
        assert config.dataset.held_out_cameras == (HELD_OUT_CAMERA,) and config.dataset.held_out_sequences == (HELD_OUT_SEQUENCE,)
    resolved = mesh.meshheadmodule.resolved(EXPRESSIONS)
    head = gaussian.gaussianheadmodule.resolved(resolved, EXPRESSIONS)
    assert head.color_channels == gaussian.supresmodule.input_dim
    assert (mesh.meshheadmodule.dist_threshold_near, mesh.meshheadmodule.dist_threshold_far) == (0.1, 0.25)
    assert gaussian.gaussianheadmodule.num_add_mouth_points == {"published": 3000, "demo": 500}[preset]
    assert gaussian.load_meshhead_checkpoint == mesh.recorder.run_folder / "meshhead_latest"
    assert reenactment.load_gaussianhead_checkpoint == gaussian.recorder.run_folder / "gaussianhead_latest"
    assert reenactment.dataset.camera_path.exists() and HELD_OUT_CAMERA in reenactment.dataset.camera_path.name
    assert len(list(subject.glob(reenactment.dataset.param_files))) == len(list(subject.glob(reenactment.dataset.image_files)))
    for script, stage in (("train_meshhead", "train_meshhead"), ("train_gaussianhead", "train_gaussianhead"), ("reenactment", "reenactment")):
        assert f"python {script}.py --config config/{stage}_me.yaml" in out


@pytest.mark.parametrize("preset", PRESETS)
def test_tiny_subject_trains_with_the_file(subject, call, tmp_path, monkeypatch, preset):
    call(subject, "--preset", preset)
    monkeypatch.setattr(mesh_head, "SPHERE_POINTS", 256)  # of the fit to a sphere: a minute with all
    config = Path("config") / "train_meshhead_me.yaml"
    monkeypatch.setattr(sys, "argv", ["train_meshhead.py", "--config", str(config), "trainer.steps=2", "trainer.device=cpu",
                                      "trainer.validate_count=1", "dataset.num_sample_view=1", "meshheadmodule.grid_cells=8"])
    train_meshhead.main()
    assert (tmp_path / "checkpoints" / "meshhead_me" / "meshhead_latest").exists()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_key_stands_there_with_its_documentation_and_the_value_that_holds(subject, call, tmp_path, preset, stage):
    """Removing every '#' before a key changes nothing but makes derived widths explicit."""
    call(subject, "--preset", preset)
    path = tmp_path / "config" / f"{stage}_me.yaml"
    lines = path.read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r" *#?[a-z_]+:( |$)", line)]
    for number in keys:
        assert re.match(r" *# \S", lines[number - 1]), lines[number]  # a line of documentation before each
    shown = tmp_path / "shown.yaml"
    shown.write_text("\n".join(re.sub(r"^( *)#(?=[a-z_]+:( |$)|  )", r"\1", line) for line in lines))
    as_written, explicit = (read_config(Arguments(file, ()), STAGES[stage]) for file in (path, shown))
    assert leaves(explicit.model_dump()) - leaves(explicit.model_dump(exclude_unset=True)) == UNUSED[stage]
    if stage == "train_meshhead":
        as_written, explicit = (one.model_copy(update={"meshheadmodule": one.meshheadmodule.resolved(EXPRESSIONS)}) for one in (as_written, explicit))
    elif stage == "train_gaussianhead":
        mesh = load(tmp_path)[0].meshheadmodule.resolved(EXPRESSIONS)
        as_written, explicit = (
            one.model_copy(update={"gaussianheadmodule": one.gaussianheadmodule.resolved(mesh, EXPRESSIONS)}) for one in (as_written, explicit))
    assert explicit == as_written


def test_another_number_of_coefficients_fits_too(subject, call, tmp_path):
    rewrite_params(subject, exp_coeff=lambda values: values[:, :40])
    for preset in PRESETS:
        call(subject, "--preset", preset, "--name", preset, "--driver", subject)
        mesh, gaussian, _ = load(tmp_path, preset)
        resolved = mesh.meshheadmodule.resolved(40)
        assert gaussian.gaussianheadmodule.resolved(resolved, 40).exp_attributes_mlp[0] == resolved.feature_width + 40


def test_model_bbox_holds_the_head_and_is_no_larger_than_needed(subject, call, tmp_path):
    call(subject)
    box = torch.tensor(load(tmp_path)[0].meshheadmodule.model_bbox)
    capture = HeadCapture(new_subject.found_dataset(subject))
    for frame in capture.frames:
        params = capture.params[frame]
        points = HeadPose(params.pose, params.scale).to_canonical(capture.control_points[frame])
        assert (points > box[:, 0]).all() and (points < box[:, 1]).all()
    # The head of the demo, hair and neck included, is known to fit this box of its shipped file.
    shipped = torch.tensor(read_config(Arguments(CONFIG_FOLDER / "demo_meshhead.yaml", ()), MeshHeadTrainConfig).meshheadmodule.model_bbox)
    assert (box[:, 0] <= shipped[:, 0] + 0.01).all() and (box[:, 1] >= shipped[:, 1] - 0.01).all()
    assert float((box - shipped).abs().max()) < 0.4


def test_what_is_measured_does_not_depend_on_where_the_head_is_in_the_world(subject):
    """Moving and scaling the world moves nothing in canonical units."""
    before = measure(HeadCapture(new_subject.found_dataset(subject)))
    factor, shift = 3.0, np.float32([5.0, -2.0, 1.0])
    rewrite_params(subject, scale=lambda values: values * factor,
                   pose=lambda values: np.concatenate([values[:, :3], values[:, 3:] * factor + shift], axis=1))
    for path in [*subject.glob("params/*/lmk_3d.npy"), *subject.glob("params/*/vertices.npy")]:
        np.save(path, np.load(path) * factor + shift)
    for path in subject.glob("cameras/*/*.npz"):
        with np.load(path) as archive:
            extrinsic, intrinsic = archive["extrinsic"], archive["intrinsic"]
        np.savez(path, extrinsic=np.concatenate([extrinsic[:, :3], extrinsic[:, 3:] * factor - extrinsic[:, :3] @ shift[:, None]], axis=1),
                 intrinsic=intrinsic)
    after = measure(HeadCapture(new_subject.found_dataset(subject)))
    assert np.abs(np.array(after.model_bbox) - np.array(before.model_bbox)).max() < 0.051  # rounded to 0.05
    assert after.held_out_camera == before.held_out_camera
    assert after.scale == pytest.approx(factor * before.scale) and before.is_metric and not after.is_metric


def at_angles(subject: Path, degrees: dict[str, float]) -> HeadCapture:
    """The capture with its cameras at these azimuths around a head that looks along +z."""
    rewrite_params(subject, pose=lambda values: np.zeros_like(values))
    for frame in CaptureFolder(subject).frames():
        for camera, angle in degrees.items():
            path = CaptureFolder(subject).camera_path(frame, camera)
            with np.load(path) as archive:
                intrinsic = archive["intrinsic"]
            centre = torch.tensor([math.sin(math.radians(angle)), 0.0, math.cos(math.radians(angle))])
            np.savez(path, extrinsic=look_at(centre[None], torch.zeros(1, 3))[0].numpy(), intrinsic=intrinsic)
    return HeadCapture(new_subject.found_dataset(subject).model_copy(update={"camera_ids": tuple(degrees)}))


@pytest.mark.parametrize(("angles", "expected"), [
    ((-60, -30, 0, 20, 60), 2),  # the most frontal one
    ((-60, -30, 0, 30, 60), 1),  # the only frontal one is trained on
    ((0, 20, 40, 60, 80), 1),  # the outermost one is no view between others
])
def test_held_out_camera_is_frontal_inner_and_not_the_only_one(subject, angles, expected):
    capture = at_angles(subject, dict(zip(CAMERAS, map(float, angles), strict=True)))
    head = HeadPose(torch.zeros(len(capture.frames), 6), torch.stack([capture.params[frame].scale for frame in capture.frames]))
    assert held_out_camera(capture, head).name == CAMERAS[expected]


def test_two_cameras_or_one_sequence_hold_nothing_out(made, call, tmp_path):
    few = copy_subject(made.subject, tmp_path / "few", cameras=CAMERAS[1:3])
    rows = [{"frame": frame, "sequence": "all", "time": 0.0} for frame in CaptureFolder(few).frames()]
    (few / "frames.json").write_text(json.dumps({"frames": rows}))
    out = call(few)
    assert "held-out camera: none" in out and "held-out sequence: none" in out
    assert load(tmp_path, "few")[0].dataset.held_out_cameras == () == load(tmp_path, "few")[1].dataset.held_out_sequences


def test_without_frames_json_the_last_block_is_held_out(subject, call, tmp_path):
    (subject / "frames.json").unlink()
    call(subject)
    config = load(tmp_path)[0].dataset
    assert config.held_out_sequences == ("block_6",)
    assert HeadCapture(config).held_out_frames == ["0006"]


def test_an_edited_file_is_not_overwritten(subject, call, tmp_path):
    call(subject)
    call(subject, "--preset", "demo")  # nobody touched them
    path = tmp_path / "config" / "train_gaussianhead_me.yaml"
    assert not is_edited(path)
    path.write_text(path.read_text().replace("lr_net: 0.001", "lr_net: 0.002"))
    before = {file: file.read_text() for file in path.parent.iterdir()}
    assert str(path.relative_to(tmp_path)) in refusal(call, subject)
    assert {file: file.read_text() for file in path.parent.iterdir()} == before
    call(subject, "--overwrite")
    assert not is_edited(path)


def test_a_wrong_subject_is_refused_unless_forced(subject, call, tmp_path):
    rewrite_params(subject, scale=lambda values: values / 10.0)  # the head is then ten times too large in canonical units
    message = refusal(call, subject)
    assert "what fits" in message and "--force" in message and not (tmp_path / "config").exists()
    assert "ignored (--force)" in call(subject, "--force")
    assert len(load(tmp_path)) == 3


def test_a_head_that_looks_backwards_is_told(subject, call):
    rewrite_params(subject, pose=lambda values: np.concatenate([values[:, :3] * 0.0 + [[0.0, math.pi, 0.0]], values[:, 3:]], axis=1))
    assert "the nose is behind the jaw ends" in refusal(call, subject)


def test_a_subject_in_which_something_is_missing_is_refused_even_by_force(subject, call, tmp_path):
    (subject / "params" / "0003" / "vertices.npy").unlink()
    for words in ((), ("--force",)):
        message = refusal(call, subject, *words)
        assert "0003/vertices.npy" in message and not (tmp_path / "config").exists()


def test_the_driver_must_have_the_same_coefficients(subject, made, call, tmp_path):
    call(subject, "--driver", made.driver)
    reenactment = load(tmp_path)[2]
    assert reenactment.dataset.dataroot == made.driver and (reenactment.dataset.head_pose, reenactment.dataset.pose_code) == ("own", "own")
    other = copy_subject(made.driver, tmp_path / "other")
    rewrite_params(other, exp_coeff=lambda values: values[:, :40])
    assert "40 expression coefficients" in refusal(call, subject, "--driver", other)
    assert "found none" in refusal(call, subject, "--driver", tmp_path / "config")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b"])
def test_names_that_make_no_file_are_refused(subject, call, name):
    assert "--name" in refusal(call, subject, "--name", name)


@pytest.mark.parametrize("value", ["0010", "1e-3", "1e3", "no", "a: b", "#x", "", "null", 0.001, 1e-5, True, None, 3, ["1_2", "222200036"] * 30])
def test_values_are_read_back_as_they_were(value, tmp_path):
    path = tmp_path / "one.yaml"
    first, *rest = yaml_value(value).split("\n")
    path.write_text("\n".join([f"value: {first}", *(f"  {line}" for line in rest)]))
    assert read_config(Arguments(path, ()), OneValue).value == value
