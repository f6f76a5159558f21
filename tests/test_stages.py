"""The three stages and the evaluation, through their scripts, on a subject of 64 pixels."""

import dataclasses
import importlib
import json
import re
import shutil
import sys
import weakref
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from lib.avatars.gaussian_head_avatar import evaluation
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadStage, GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.handover import hand_over, mesh_head_from, mouth_points
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadStage, MeshHeadTrainConfig
from lib.datasets.head_capture import CaptureRecord, HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError, NumericalError
from lib.losses.perceptual import Lpips
from lib.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from lib.training.runtime import run
from tests.tiny import (
    CAMERAS,
    EXPRESSIONS,
    HELD_OUT_CAMERA,
    SIZE,
    Tiny,
    copy_subject,
    gaussian_dict,
    mesh_dict,
    reenactment_dict,
    run_script,
)

CPU = torch.device("cpu")
MOUTH_POINTS = 20
LOGS = {"tiny/gaussianhead.log"}  # what a failing run may change


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory) -> Path:
    """A run folder with both stages trained for two steps; tests only read it."""
    runs = tmp_path_factory.mktemp("trained")
    run_script("train_meshhead", mesh_dict(made.subject, runs, steps=2), runs)
    run_script("train_gaussianhead", gaussian_dict(made.subject, runs, steps=2), runs)
    return runs


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """A private copy of the trained runs; paths in it point at itself."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".yaml", ".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def latest(runs: Path, stage: str, name: str = "tiny") -> Checkpoint:
    return read_checkpoint(runs / "checkpoints" / name / f"{stage}_latest", stage, "test")


def refusal(script: str, values: dict, folder: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        run_script(script, values, folder, *overrides)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def assert_same_state(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_state(a, b)
    else:
        assert one == other


def mesh_stage(made: Tiny, runs: Path) -> tuple[MeshHeadStage, TrainingBatches]:
    config = MeshHeadTrainConfig.model_validate(mesh_dict(made.subject, runs, name="fresh"))
    torch.manual_seed(0)
    capture = HeadCapture(config.dataset)
    return MeshHeadStage(config, capture, CPU), TrainingBatches(capture, 1, config.dataset.num_sample_view, 0)


def gaussian_stage(made: Tiny, runs: Path, loss: dict | None = None, **options) -> tuple[GaussianHeadStage, TrainingBatches]:
    values = gaussian_dict(made.subject, runs, name="fresh", **options)
    config = GaussianHeadTrainConfig.model_validate(values | {"loss": values["loss"] | (loss or {})})
    torch.manual_seed(0)
    capture = HeadCapture(config.dataset)
    return GaussianHeadStage(config, capture, CPU), TrainingBatches(capture, 1, 1, 0)


# --- training ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", ["meshhead", "gaussianhead"])
def test_two_steps_leave_a_finite_checkpoint_log_and_preview(trained, stage):
    checkpoint = latest(trained, stage)
    assert checkpoint.step == 2 and len(checkpoint.data.frames) == 7
    for module, state in checkpoint.modules.items():
        for name, tensor in state.items():
            assert bool(torch.isfinite(tensor).all()), (module, name)
    folder = trained / "checkpoints" / "tiny"
    assert "step 2/2" in (folder / f"{stage}.log").read_text()
    assert (folder / f"{stage}_config.yaml").exists()
    assert cv2.imread(str(trained / "results" / "tiny" / f"{stage}_preview.png")).shape == (2 * SIZE, 2 * SIZE, 3)
    assert not list(trained.rglob("*.partial"))


def test_stage_1_learns(made, tmp_path):
    stage, batches = mesh_stage(made, tmp_path)
    losses = [float(stage.step(batches[0], step).total) for step in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_stage_2_learns(made, trained):
    stage, batches = gaussian_stage(made, trained, augment=False)
    losses = [float(stage.step(batches[0], step).total) for step in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_every_parameter_of_stage_1_moves(made, tmp_path):
    stage, batches = mesh_stage(made, tmp_path)
    before = {name: value.clone() for name, value in stage.modules.named_parameters()}
    for step in range(2):
        stage.step(batches[step], step)
    assert [name for name, value in stage.modules.named_parameters() if torch.equal(value, before[name])] == []


def test_every_parameter_of_stage_2_moves(made, trained):
    stage, batches = gaussian_stage(made, trained)
    before = {name: value.clone() for name, value in stage.modules.named_parameters()}
    for step in range(3):
        stage.step(batches[step], step)
    assert [name for name, value in stage.modules.named_parameters() if torch.equal(value, before[name])] == []


def test_reported_terms_add_up(made, trained):
    for stage, batches in (mesh_stage(made, trained), gaussian_stage(made, trained)):
        report = stage.step(batches[0], 0)
        weights = {name: getattr(stage.config.loss, name) for name in report.terms}
        assert float(report.total) == pytest.approx(sum(weights[name] * float(term) for name, term in report.terms.items()), rel=1e-4)


def test_lpips_is_a_term_of_stage_2_and_changes_no_initial_weight(made, trained, tmp_path):
    state = {name: value.abs() for name, value in Lpips("vgg").state_dict().items()}
    for file, prefix in (("vgg16.pth", "features."), ("lpips_vgg.pth", "lin")):
        torch.save({name: value for name, value in state.items() if name.startswith(prefix)}, tmp_path / file)
    without, batches = gaussian_stage(made, trained)
    stage, _ = gaussian_stage(made, trained, loss={"lpips": 0.1, "lpips_weights": tmp_path, "lpips_crop": 32})
    assert_same_state(stage.modules.state_dict(), without.modules.state_dict())
    terms = stage.step(batches[0], 0).terms
    assert 0 < float(terms["lpips"]) < float("inf") and float(without.step(batches[0], 0).terms["lpips"]) == 0


def test_pose_offsets_receive_the_gradients_of_their_frame(made, trained):
    stage, batches = gaussian_stage(made, trained)
    batch = batches[0]
    stage.step(batch, 0)
    row, delta = int(batch.frame_index), stage.pose_offsets.delta
    assert delta.grad is not None and bool((delta.grad[row] != 0).all())
    others = [index for index in range(len(delta)) if index != row]
    assert not delta.grad[others].any() and not delta.detach()[others].any()
    assert delta.detach()[row].abs().max().item() == pytest.approx(1e-5, rel=0.1)  # one Adam step of lr_pose


def test_pose_offsets_stay_zero_when_not_wanted(made, runs):
    run_script("train_gaussianhead", gaussian_dict(made.subject, runs, name="still"), runs, "optimize_pose=False")
    assert not latest(runs, "gaussianhead", "still").modules["delta_poses"]["delta"].any()


def config_of(stage: str, made: Tiny, runs: Path, **options) -> tuple[str, dict]:
    return f"train_{stage}", {"meshhead": mesh_dict, "gaussianhead": gaussian_dict}[stage](made.subject, runs, **options)


@pytest.mark.parametrize("stage", ["meshhead", "gaussianhead"])
def test_resume_goes_on_as_if_never_stopped(made, runs, stage):
    run_script(*config_of(stage, made, runs, steps=6, name="whole"), runs)
    run_script(*config_of(stage, made, runs, steps=3, name="parts"), runs)
    run_script(*config_of(stage, made, runs, steps=6, name="parts"), runs)
    whole, parts = latest(runs, stage, "whole"), latest(runs, stage, "parts")
    assert whole.step == parts.step == 6
    assert_same_state(whole.modules, parts.modules)
    assert_same_state(whole.optimizers, parts.optimizers)


def test_an_interrupted_run_with_falling_rates_goes_on_as_if_never_stopped(made, runs, monkeypatch):
    script, values = config_of("gaussianhead", made, runs, steps=6, name="whole")
    values["trainer"]["final_lr_factor"] = 0.1
    values["recorder"]["save_freq"] = 2
    run_script(script, values, runs)
    values["recorder"]["name"] = "parts"
    step = GaussianHeadStage.step

    def stopped(self, batch, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, batch, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GaussianHeadStage, "step", stopped)
        run_script(script, values, runs)
    assert latest(runs, "gaussianhead", "parts").step == 2
    run_script(script, values, runs)
    assert_same_state(latest(runs, "gaussianhead", "whole").modules, latest(runs, "gaussianhead", "parts").modules)


@pytest.mark.parametrize("stage", ["meshhead", "gaussianhead"])
def test_the_same_command_again_says_finished_and_changes_nothing(made, runs, stage, capsys):
    before = snapshot(runs)
    script, values = config_of(stage, made, runs)
    values["load_meshhead_checkpoint"] = None if stage == "meshhead" else str(runs / "checkpoints" / "tiny" / "meshhead_latest")
    run_script(script, values, runs)
    assert "finished" in capsys.readouterr().out
    assert snapshot(runs) == before


def test_another_seed_gives_another_head(made, runs):
    run_script(*config_of("gaussianhead", made, runs, name="seeded"), runs, "trainer.seed=1")
    one, other = latest(runs, "gaussianhead"), latest(runs, "gaussianhead", "seeded")
    assert not torch.equal(one.modules["supres"]["exit.weight"], other.modules["supres"]["exit.weight"])


def test_only_the_last_checkpoints_are_kept(made, runs):
    script, values = config_of("gaussianhead", made, runs, steps=6, name="many")
    values["recorder"] |= {"save_freq": 1, "keep_last": 2}
    run_script(script, values, runs)
    names = sorted(path.name for path in (runs / "checkpoints" / "many").iterdir() if not path.suffix)
    assert names == ["gaussianhead_best", "gaussianhead_latest", "gaussianhead_step_0000005", "gaussianhead_step_0000006"]


def test_who_goes_back_keeps_what_is_saved_from_there_on(made, runs):
    script, values = config_of("gaussianhead", made, runs, steps=2, name="back")
    values["recorder"] |= {"save_freq": 1, "keep_last": 2}
    run_script(script, values, runs)
    folder = runs / "checkpoints" / "back"
    for step in (7, 8):
        shutil.copy(folder / "gaussianhead_latest", folder / f"gaussianhead_step_{step:07d}")
    shutil.copy(folder / "gaussianhead_latest", folder / "gaussianhead_step_mine2")  # somebody's own
    values["trainer"]["steps"] = 4
    run_script(script, values, runs)
    names = [f"{step:07d}" for step in (3, 4, 7, 8)]
    assert sorted(path.name.removeprefix("gaussianhead_step_") for path in folder.glob("gaussianhead_step_*")) == [*names, "mine2"]


# --- choices ----------------------------------------------------------------------------------------------------------

def moved(batch, pixels: float):
    """The batch as cameras see it whose principal points are moved to the right and down."""
    camera = batch.camera
    shift = torch.zeros_like(camera.intrinsics)
    shift[..., :2, 2] = pixels
    return dataclasses.replace(batch, camera=dataclasses.replace(camera, intrinsics=camera.intrinsics + shift))


def test_a_moved_principal_point_moves_the_mesh_of_stage_1(made, tmp_path):
    stage, batches = mesh_stage(made, tmp_path)
    with torch.no_grad():
        deformed = stage.head(batches[0])
        here, there = (stage._render(deformed, batch).attributes for batch in (batches[0], moved(batches[0], 8.0)))
    assert here.abs().max() > 0.1
    assert torch.allclose(there[:, :, 8:, 8:], here[:, :, :-8, :-8], atol=1e-4)


def test_a_moved_principal_point_moves_the_features_of_stage_2(made, trained):
    stage, batches = gaussian_stage(made, trained)
    batch = batches[0]
    with torch.no_grad():
        cloud = stage.avatar.head(batch.expression, batch.head.pose, batch.head)
        here, there = (stage.avatar.features(cloud, one.flat_camera()).features for one in (batch, moved(batch, 8.0)))  # 2 coarse pixels
    assert (here - 1.0).abs().max() > 0.1
    assert torch.allclose(there[:, :, 2:, 2:], here[:, :, :-2, :-2], atol=1e-3)


def test_pose_deformation_at_deformed_points_is_a_choice(made, trained):
    stage, batches = gaussian_stage(made, trained)
    batch, head = batches[0], stage.avatar.head
    with torch.no_grad():
        means = {}
        for choice in ("undeformed", "deformed"):
            head.config = head.config.model_copy(update={"pose_deform_at": choice})
            means[choice] = head(batch.expression, batch.head.pose, batch.head).means
        for layer in head.exp_deform.layers:  # no deformation by expression: both are the same points
            layer.weight.zero_()
            layer.bias.zero_()
        still = head(batch.expression, batch.head.pose, batch.head).means
        head.config = head.config.model_copy(update={"pose_deform_at": "undeformed"})
        assert torch.equal(still, head(batch.expression, batch.head.pose, batch.head).means)
    assert not torch.equal(means["undeformed"], means["deformed"])


def test_regularisers_pull_where_they_say(made, trained, tmp_path):
    """Opacity towards 1, long axes shorter."""
    def after(**loss) -> dict[str, torch.Tensor]:
        values = gaussian_dict(made.subject, trained, name="fresh")
        values["loss"] |= {"fine": 0.0, "coarse": 0.0} | loss
        config = GaussianHeadTrainConfig.model_validate(values)
        torch.manual_seed(0)
        capture = HeadCapture(config.dataset)
        stage, batches = GaussianHeadStage(config, capture, CPU), TrainingBatches(capture, 1, 1, 0)
        for step in range(3 if loss else 0):
            stage.step(batches[step], step)
        cloud = stage.avatar.head(batches[0].expression, batches[0].head.pose, batches[0].head)
        return {"opacity": cloud.opacities.mean(), "longest": cloud.scales.amax(dim=-1).mean()}

    plain, opaque, short = after(), after(opacity=1.0), after(scale=1.0, scale_limit=1e-3)
    assert opaque["opacity"] > plain["opacity"] and short["longest"] < plain["longest"]


# --- refusals ---------------------------------------------------------------------------------------------------------

def test_wrong_widths_are_explained_by_arithmetic(made, tmp_path):
    said = refusal("train_meshhead", mesh_dict(made.subject, tmp_path), tmp_path, "meshheadmodule.exp_deform_mlp=[91, 16, 16, 3]")
    for part in ("meshheadmodule.exp_deform_mlp[0] is 91", "82", "27", f"{EXPRESSIONS} expression coefficients"):
        assert part in said
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("override", "part"), [
    ("gaussianheadmodule.exp_attributes_mlp=[192, 16, 8]", "exp_attributes_mlp[0] is 192"),
    ("gaussianheadmodule.exp_attributes_mlp=[87, 16, 7]", "exp_attributes_mlp[-1] is 7"),
    ("gaussianheadmodule.exp_color_mlp=[87, 17, 32]", "exp_color_mlp"),
    ("gaussianheadmodule.exp_coeffs_dim=64", "exp_coeffs_dim is 64"),
    ("gaussianheadmodule.pos_freq=6", "pos_freq is 6"),
    ("supresmodule.input_dim=16", "supresmodule.input_dim is 16"),
    ("dataset.resolution=66", "dataset.resolution is 66"),
    ("meshheadmodule.deform_scale=0.5", "meshheadmodule.deform_scale is 0.5"),
])
def test_stage_2_refuses_what_does_not_fit(made, trained, tmp_path, override, part):
    values = gaussian_dict(made.subject, trained, name="refused")
    assert part in refusal("train_gaussianhead", values, tmp_path, override)
    assert not (trained / "checkpoints" / "refused").exists()


def test_stage_2_needs_a_mesh_head(made, trained, tmp_path):
    """Which is said before weights that it would have to download."""
    for path in ("null", tmp_path / "nowhere"):
        said = refusal("train_gaussianhead", gaussian_dict(made.subject, trained, name="refused"), tmp_path, f"load_meshhead_checkpoint={path}",
                       "loss.lpips=0.1", f"loss.lpips_weights={tmp_path}")
        assert said.startswith("load_meshhead_checkpoint: ")


def test_runs_that_share_a_log_are_told(made, runs, capfd):
    for name, steps in (("one", 1), ("one", 2), ("two", 1)):
        run_script("train_meshhead", mesh_dict(made.subject, runs, steps=steps, name=name), runs, f"recorder.logdir={runs / 'shared'}")
        said = [line for line in capfd.readouterr().out.splitlines() if "recorder.logdir: " in line]
        assert len(said) == (name == "two") and all("also has files of one, which" in line for line in said)


def test_stage_2_refuses_lpips_without_weights(made, trained, tmp_path):
    values = gaussian_dict(made.subject, trained, name="refused")
    said = refusal("train_gaussianhead", values, tmp_path, "loss.lpips=0.1", f"loss.lpips_weights={tmp_path}")
    assert said.startswith(f"loss.lpips is larger than 0, but {tmp_path / 'vgg16.pth'} is missing") and "preprocess.lpips_weights" in said
    assert not (trained / "checkpoints" / "refused").exists()


def test_stage_2_refuses_to_hold_out_what_stage_1_was_trained_on(made, trained, tmp_path):
    values = gaussian_dict(made.subject, trained, name="leak")
    cameras = ", ".join(f"'{camera}'" for camera in values["dataset"]["camera_ids"][:2])
    said = refusal("train_gaussianhead", values, tmp_path, f"dataset.held_out_cameras=[{cameras}]")
    assert "dataset.held_out_cameras" in said and "meshhead_latest" in said


def renamed(subject: Path, names: dict[str, str]) -> None:
    """Gives the frames of a subject other names."""
    for kind in ("images", "cameras", "params"):
        for old in names:
            (subject / kind / old).rename(subject / kind / f"{old}.moving")
        for old, new in names.items():
            (subject / kind / f"{old}.moving").rename(subject / kind / new)
    records = json.loads((subject / "frames.json").read_text())["frames"]
    (subject / "frames.json").write_text(json.dumps({"frames": [row | {"frame": names.get(row["frame"], row["frame"])} for row in records]}))


def test_a_trained_frame_is_known_by_its_content_whatever_it_is_called(made, trained, tmp_path):
    """A training frame becomes one of the held-out sequence: by name nothing has changed."""
    subject = copy_subject(made.subject, tmp_path / "subject")
    records = json.loads((subject / "frames.json").read_text())["frames"]
    trained_on, held_out = records[0]["frame"], records[-1]["frame"]
    renamed(subject, {trained_on: held_out, held_out: trained_on})
    rows = {row["frame"]: row for row in json.loads((subject / "frames.json").read_text())["frames"]}
    rows[trained_on]["sequence"], rows[held_out]["sequence"] = rows[held_out]["sequence"], rows[trained_on]["sequence"]
    (subject / "frames.json").write_text(json.dumps({"frames": list(rows.values())}))
    for script, values in (("evaluate", gaussian_dict(subject, trained)), ("train_gaussianhead", gaussian_dict(subject, trained, name="leak"))):
        said = refusal(script, values, tmp_path, f"recorder.result_path={tmp_path}")
        assert said.startswith("dataset.held_out_sequences: ") and f"there called {trained_on}" in said


def test_another_subject_with_the_same_frame_names_is_no_leak(made, trained, runs, tmp_path):
    subject = copy_subject(made.subject, tmp_path / "subject")
    for path in subject.rglob("params.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"exp_coeff": arrays["exp_coeff"] + 0.01}))
    values = gaussian_dict(subject, runs, name="other") | {"load_gaussianhead_checkpoint": str(runs / "checkpoints/tiny/gaussianhead_latest")}
    values["dataset"]["held_out_sequences"] = ["EXP-1-head"]  # was trained on, of the first subject
    run_script("train_gaussianhead", values, tmp_path)


def test_resume_refuses_data_that_changed_under_the_same_names(made, runs, tmp_path):
    subject = copy_subject(made.subject, tmp_path / "subject")
    arrays = dict(np.load(subject / "params" / "0001" / "params.npz"))
    np.savez(subject / "params" / "0001" / "params.npz", **(arrays | {"pose": arrays["pose"] + 0.001}))
    said = refusal("train_meshhead", mesh_dict(subject, runs, steps=4), tmp_path)
    assert "another frame 0001" in said


def another_person(made: Tiny, target: Path) -> Path:
    """The same performance by a wider head: frame names, expressions and poses are equal."""
    subject = copy_subject(made.subject, target)
    for path in subject.rglob("lmk_3d.npy"):
        np.save(path, np.load(path) * np.array([1.05, 1.0, 1.0]))
    return subject


def test_a_forgotten_name_does_not_go_on_with_another_person(made, runs, tmp_path):
    """Also when the run is finished: the command is about somebody else."""
    subject = another_person(made, tmp_path / "subject")
    before = snapshot(runs / "checkpoints")
    for steps in (2, 4):
        assert "is that another subject" in refusal("train_meshhead", mesh_dict(subject, runs, steps=steps), tmp_path)
        assert "is that another subject" in refusal("train_gaussianhead", gaussian_dict(subject, runs, steps=steps), tmp_path)
    assert snapshot(runs / "checkpoints") == before


def test_evaluation_refuses_another_person(made, trained, tmp_path):
    subject = another_person(made, tmp_path / "subject")
    assert "holds another subject" in refusal("evaluate", gaussian_dict(subject, trained), tmp_path, f"recorder.result_path={tmp_path}")


def test_a_mesh_head_of_another_person_is_said(made, runs, tmp_path, capsys):
    for subject, said in ((another_person(made, tmp_path / "subject"), True), (made.subject, False)):
        run_script("train_gaussianhead", gaussian_dict(subject, runs, steps=1, name=f"said_{said}"), tmp_path)
        assert ("ANOTHER subject" in capsys.readouterr().out) == said


def test_pose_offsets_of_a_start_checkpoint_follow_their_frames(made, runs, tmp_path):
    before = latest(runs, "gaussianhead").modules["delta_poses"]["delta"]
    state = torch.load(runs / "checkpoints/tiny/gaussianhead_latest", weights_only=True)
    state["modules"]["delta_poses"]["delta"] = torch.arange(before.numel()).reshape(before.shape).float() * 1e-4
    torch.save(state, runs / "checkpoints/tiny/gaussianhead_latest")
    subject = copy_subject(made.subject, tmp_path / "subject")
    renamed(subject, {"0000": "0006", "0006": "0000"})
    records = {row["frame"]: row["sequence"] for row in json.loads((subject / "frames.json").read_text())["frames"]}
    values = gaussian_dict(subject, runs, name="start") | {"load_gaussianhead_checkpoint": str(runs / "checkpoints/tiny/gaussianhead_latest")}
    values["dataset"]["held_out_sequences"] = [records["0000"]]
    config = GaussianHeadTrainConfig.model_validate(values)
    stage = GaussianHeadStage(config, HeadCapture(config.dataset), CPU)
    given = state["modules"]["delta_poses"]["delta"]
    assert torch.equal(stage.pose_offsets.delta[[0, 6]], given[[6, 0]]) and torch.equal(stage.pose_offsets.delta[1:6], given[1:6])
    assert stage.avatar.head.own_pose.any()


def test_evaluation_measures_the_avatar_of_the_run_not_the_one_it_started_from(made, runs, tmp_path, capsys):
    values = gaussian_dict(made.subject, runs, name="second") | {"load_gaussianhead_checkpoint": str(runs / "checkpoints/tiny/gaussianhead_latest")}
    run_script("train_gaussianhead", values, tmp_path)
    run_script("evaluate", values, tmp_path)
    assert f"evaluating {runs / 'checkpoints/second/gaussianhead_latest'}" in capsys.readouterr().out


def test_evaluation_measures_the_checkpoint_of_the_run_that_is_named(made, runs, tmp_path, capsys):
    best = runs / "checkpoints/tiny/gaussianhead_best"
    run_script("evaluate", gaussian_dict(made.subject, runs) | {"load_gaussianhead_checkpoint": str(best)}, tmp_path)
    assert f"evaluating {best}" in capsys.readouterr().out
    other = best.with_name("from_somebody")  # which a training may have started from
    shutil.copy(best, other)
    run_script("evaluate", gaussian_dict(made.subject, runs) | {"load_gaussianhead_checkpoint": str(other)}, tmp_path)
    assert f"evaluating {best.with_name('gaussianhead_latest')}" in (said := capsys.readouterr().out) and "is not measured" in said
    other.unlink()
    missing = best.with_name("gaussianhead_step_9999999")
    assert str(missing) in refusal("evaluate", gaussian_dict(made.subject, runs) | {"load_gaussianhead_checkpoint": str(missing)}, tmp_path)


def test_what_the_mesh_head_was_trained_on_is_not_measured(made, runs, tmp_path):
    """Stage 2 has not seen that camera, but what it started from has."""
    values = mesh_dict(made.subject, runs, name="saw_all")
    values["dataset"] |= {"held_out_cameras": [], "held_out_sequences": []}
    run_script("train_meshhead", values, tmp_path)
    values = gaussian_dict(made.subject, runs, steps=1, name="saw_less", mesh="saw_all")
    cameras = values["dataset"]["camera_ids"]
    values["dataset"] |= {"camera_ids": [camera for camera in cameras if camera != HELD_OUT_CAMERA], "held_out_cameras": [], "held_out_sequences": []}
    run_script("train_gaussianhead", values, tmp_path)
    run_script("train_gaussianhead", values, tmp_path, "trainer.steps=2")  # resumed: it is not forgotten
    values["dataset"] |= {"camera_ids": cameras, "held_out_cameras": [HELD_OUT_CAMERA]}
    said = refusal("evaluate", values, tmp_path)
    assert f"camera {HELD_OUT_CAMERA} is held out" in said and "goes back to" in said


@pytest.mark.parametrize(("override", "part"), [
    ("dataset.resolution=66", "dataset.resolution is 66"), ("gaussianheadmodule.deform_scale=3", "gaussianheadmodule.deform_scale is 3"),
    ("supresmodule.network_capacity=8", "supresmodule.network_capacity is 8"),
])
def test_evaluation_refuses_what_differs_from_the_training(made, trained, tmp_path, override, part):
    assert part in refusal("evaluate", gaussian_dict(made.subject, trained), tmp_path, f"recorder.result_path={tmp_path}", override)


def test_a_log_that_cannot_be_written_is_named(made, runs, tmp_path):
    (runs / "checkpoints" / "blocked" / "gaussianhead.log").mkdir(parents=True)
    assert "gaussianhead.log" in refusal("train_gaussianhead", gaussian_dict(made.subject, runs, name="blocked"), tmp_path)


@pytest.mark.parametrize("key", ["lr_net", "lr_lmk", "lr_pose"])
def test_a_learning_rate_of_zero_is_refused(made, trained, tmp_path, key):
    assert key in refusal("train_gaussianhead", gaussian_dict(made.subject, trained, name="zero"), tmp_path, f"{key}=0")


def test_stage_2_refuses_a_missing_mesh_head(made, trained, tmp_path):
    missing = trained / "checkpoints" / "tiny" / "meshead_latest"
    said = refusal("train_gaussianhead", gaussian_dict(made.subject, trained, name="refused"), tmp_path, f"load_meshhead_checkpoint={missing}")
    assert said.startswith("load_meshhead_checkpoint: ") and str(missing) in said and "meshhead_latest" in said


def test_stage_2_refuses_a_gaussian_head_as_mesh_head(made, trained, tmp_path):
    wrong = trained / "checkpoints" / "tiny" / "gaussianhead_latest"
    said = refusal("train_gaussianhead", gaussian_dict(made.subject, trained, name="refused"), tmp_path, f"load_meshhead_checkpoint={wrong}")
    assert str(wrong) in said and "'meshhead'" in said and "'gaussianhead'" in said


@pytest.mark.parametrize(("stage", "key"), [("meshhead", "load_meshhead_checkpoint"), ("gaussianhead", "load_gaussianhead_checkpoint")])
def test_a_wrong_path_never_trains_from_scratch_silently(made, runs, tmp_path, stage, key):
    script, values = config_of(stage, made, runs, name="refused")
    missing = tmp_path / "elsewhere" / f"{stage}_latest"
    assert str(missing) in refusal(script, values | {key: str(missing)}, tmp_path)


@pytest.mark.parametrize("stage", ["meshhead", "gaussianhead"])
def test_a_load_path_inside_the_own_folder_means_resume(made, trained, tmp_path, stage):
    runs = tmp_path
    script, values = config_of(stage, made, runs, name="own")
    if stage == "gaussianhead":
        values["load_meshhead_checkpoint"] = str(trained / "checkpoints" / "tiny" / "meshhead_latest")
    values[f"load_{stage}_checkpoint"] = str(runs / "checkpoints" / "own" / f"{stage}_latest")
    run_script(script, values, runs)
    assert latest(runs, stage, "own").step == 2


def test_stage_2_refuses_the_head_of_another_model(made, trained, tmp_path):
    subject = copy_subject(made.subject, tmp_path / "subject")
    for path in (subject / "params").rglob("vertices.npy"):
        np.save(path, np.load(path)[:5000])
    said = refusal("train_gaussianhead", gaussian_dict(subject, trained, name="refused"), tmp_path)
    assert "control landmarks" in said and "meshhead_latest" in said


def test_resume_refuses_other_frames(made, runs, tmp_path):
    subject = copy_subject(made.subject, tmp_path / "subject")
    shutil.rmtree(subject / "images" / "0003")
    before = snapshot(runs)
    said = refusal("train_meshhead", mesh_dict(subject, runs, steps=4), tmp_path)
    assert "meshhead_latest" in said and "0003" in said
    assert snapshot(runs) == before


@pytest.mark.parametrize(("stage", "override", "part"), [
    ("meshhead", "meshheadmodule.exp_color_mlp=[87, 24, 32]", "exp_color"),
    ("meshhead", "meshheadmodule.grid_cells=11", "grid_cells"),
    ("gaussianhead", "supresmodule.network_capacity=8", "network_capacity"),
    ("gaussianhead", "gaussianheadmodule.exp_attributes_mlp=[87, 24, 8]", "exp_attributes"),
    ("gaussianhead", "gaussianheadmodule.num_add_mouth_points=21", "num_add_mouth_points"),
])
def test_resume_refuses_another_architecture(made, runs, stage, override, part):
    before = snapshot(runs)
    script, values = config_of(stage, made, runs, steps=4)
    said = refusal(script, values, runs, override)
    assert part in said and f"{stage}_latest" in said
    assert snapshot(runs) == before


def test_how_a_run_is_measured_may_change_on_its_way(made, runs, capsys):
    """A section that was left out is not another training."""
    script, values = config_of("meshhead", made, runs, steps=2, name="measured")
    run_script(script, values, runs)
    best = latest(runs, "meshhead", "measured").best_psnr
    run_script(script, values, runs, "evaluation.worst=3", "trainer.steps=3", "trainer.validate_count=1")
    assert latest(runs, "meshhead", "measured").step == 3
    assert "meshhead_best is chosen anew" in capsys.readouterr().out
    assert latest(runs, "meshhead", "measured").best_psnr != best
    run_script(script, values, runs, "trainer.steps=4", "trainer.validate_count=1")
    assert latest(runs, "meshhead", "measured").step == 4 and "anew" not in capsys.readouterr().out


def test_what_no_training_reads_stops_no_resume(made, runs):
    """Older code allowed values there that this one refuses."""
    script, values = config_of("meshhead", made, runs, steps=2, name="older")
    run_script(script, values, runs)
    path = runs / "checkpoints" / "older" / "meshhead_latest"
    state = torch.load(path, weights_only=True)
    state["config"]["evaluation"] = {"worst": 10_000}
    state["config"]["dataset"] |= {"head_pose_path": "somewhere.npz", "gone": 1}
    torch.save(state, path)
    said = refusal(script, values, runs, "trainer.steps=3")
    assert "gone" in said or "not one that this code knows" in said
    del state["config"]["dataset"]["gone"]
    torch.save(state, path)
    run_script(script, values, runs, "trainer.steps=3")
    assert latest(runs, "meshhead", "older").step == 3


def test_resume_with_pose_optimization_switched_on_is_refused(made, runs):
    script, values = config_of("gaussianhead", made, runs, steps=2, name="toggled")
    run_script(script, values, runs, "optimize_pose=False")
    assert refusal(script, values, runs, "optimize_pose=True", "trainer.steps=3").startswith("optimize_pose is True, but ")
    assert latest(runs, "gaussianhead", "toggled").step == 2


def test_a_damaged_own_checkpoint_is_refused_not_replaced(made, runs):
    path = runs / "checkpoints" / "tiny" / "meshhead_latest"
    path.unlink()  # it may be a hard link
    path.write_bytes(b"damaged")
    assert str(path) in refusal("train_meshhead", mesh_dict(made.subject, runs, steps=4), runs)
    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("key", ["checkpoint_path", "logdir", "result_path"])
def test_an_output_folder_that_is_a_file(made, runs, tmp_path, key):
    (tmp_path / "file").write_text("mine")
    values = gaussian_dict(made.subject, runs, name="refused")
    assert str(tmp_path / "file") in refusal("train_gaussianhead", values, tmp_path, f"recorder.{key}={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_loss_that_is_not_finite_stops_with_a_numerical_error(made, runs, monkeypatch):
    losses = GaussianHeadStage._losses

    def exploded(self, batch):
        found = losses(self, batch)
        return dataclasses.replace(found, coarse=found.coarse * float("nan"))

    monkeypatch.setattr(GaussianHeadStage, "_losses", exploded)
    before = snapshot(runs / "checkpoints")
    with pytest.raises(NumericalError, match=r"step 3, frames \d{4}, cameras \d{9}: the loss is not finite \(fine = 0\.\d+, coarse = nan"):
        run_script("train_gaussianhead", gaussian_dict(made.subject, runs, steps=3), runs)
    after = snapshot(runs / "checkpoints")
    assert {name for name in before if after[name] != before[name]} <= LOGS


def test_a_gradient_that_is_not_finite_is_named_before_any_weight_changes(made, runs, monkeypatch):
    losses = GaussianHeadStage._losses

    def exploded(self, batch):
        self.avatar.head.opacity.register_hook(lambda gradient: gradient / 0.0)
        return losses(self, batch)

    monkeypatch.setattr(GaussianHeadStage, "_losses", exploded)
    before = snapshot(runs / "checkpoints")
    with pytest.raises(NumericalError, match=r"step 3, frames \d{4}, cameras \d{9}: the gradient of gaussianhead\.opacity is not finite"):
        run_script("train_gaussianhead", gaussian_dict(made.subject, runs, steps=3), runs)
    after = snapshot(runs / "checkpoints")
    assert {name for name in before if after[name] != before[name]} <= LOGS


def test_broken_weights_are_not_saved_over_good_ones(made, runs, monkeypatch):
    step = GaussianHeadStage.step

    def broken(self, batch, number):
        report = step(self, batch, number)  # the loss is still finite
        with torch.no_grad():
            self.avatar.head.xyz[0, 0] = float("nan")
        return report

    monkeypatch.setattr(GaussianHeadStage, "step", broken)
    before = snapshot(runs / "checkpoints")
    with pytest.raises(NumericalError, match=r"gaussianhead\.xyz"):
        run_script("train_gaussianhead", gaussian_dict(made.subject, runs, steps=3), runs)
    after = snapshot(runs / "checkpoints")
    assert {name for name in before if after[name] != before[name]} <= LOGS


@pytest.mark.parametrize("script", ["train_meshhead", "train_gaussianhead", "reenactment", "evaluate", "viewer"])
def test_scripts_end_with_one_line_and_code_2(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--config", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(SystemExit) as stop:
        run(importlib.import_module(script).main)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and "nowhere.yaml" in captured.err and captured.err.count("\n") == 1


def test_exit_codes(capsys):
    def fail(error: BaseException):
        raise error

    for error, code in ((InputError("a"), 2), (NumericalError("b"), 3), (KeyboardInterrupt(), 130)):
        with pytest.raises(SystemExit) as stop:
            run(lambda error=error: fail(error))
        assert stop.value.code == code
    assert capsys.readouterr().err == "error: a\nerror: b\ninterrupted\n"
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run(lambda: fail(ZeroDivisionError()))


# --- surface and handover ---------------------------------------------------------------------------------------------

def test_a_field_without_sign_change_is_refused(trained):
    head = mesh_head_from(latest(trained, "meshhead"))
    for bias, word in ((5.0, "positive"), (-5.0, "negative")):
        with torch.no_grad():
            head.geometry.layers[-1].weight[0] = 0.0
            head.geometry.layers[-1].bias[0] = bias
        with pytest.raises(InputError, match=f"{word}.*model_bbox"):
            head.neutral_surface()
        config = GaussianHeadTrainConfig.model_validate(gaussian_dict(trained, trained)).gaussianheadmodule.resolved(head.config, EXPRESSIONS)
        with pytest.raises(InputError, match=word):
            hand_over(head, config, seed=0)


def test_a_box_inside_the_head_is_refused(made, tmp_path):
    said = refusal("train_meshhead", mesh_dict(made.subject, tmp_path), tmp_path, "meshheadmodule.model_bbox=[[-0.2,0.2],[-0.2,0.2],[-0.2,0.2]]")
    assert "model_bbox" in said


@pytest.fixture
def pair(trained):
    """A mesh head and the Gaussian head it becomes."""
    mesh = mesh_head_from(latest(trained, "meshhead"))
    config = GaussianHeadTrainConfig.model_validate(gaussian_dict(trained, trained)).gaussianheadmodule.resolved(mesh.config, EXPRESSIONS)
    return mesh, config, hand_over(mesh, config, seed=0)


def test_handover_takes_the_vertices_of_the_once_more_subdivided_surface(pair):
    mesh, config, head = pair
    surface = mesh.neutral_surface(subdivisions=1)
    assert len(head.xyz) == len(surface.vertices) + MOUTH_POINTS
    assert torch.equal(head.xyz[:-MOUTH_POINTS], surface.vertices)
    assert 3.5 < len(surface.vertices) / len(mesh.neutral_surface().vertices) < 4.7  # a surface: four times the vertices
    mesh.config = mesh.config.model_copy(update={"subdivide": True})
    twice = hand_over(mesh, config, seed=0)
    assert len(twice.xyz) == len(mesh.neutral_surface(subdivisions=2).vertices) + MOUTH_POINTS


def test_handover_keeps_features_landmarks_and_networks(pair):
    mesh, _, head = pair
    surface = mesh.neutral_surface(subdivisions=1)
    assert torch.allclose(head.feature[:-MOUTH_POINTS].tanh(), surface.features, atol=2e-5)
    assert not head.feature[-MOUTH_POINTS:].any()
    assert torch.equal(head.landmarks_3d_neutral, mesh.landmarks_3d_neutral)
    for name in ("exp_color", "pose_color", "exp_deform", "pose_deform"):
        for ours, theirs in zip(getattr(head, name).parameters(), getattr(mesh, name).parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_handover_starts_isotropic_unturned_and_faint(pair):
    _, _, head = pair
    distance = torch.cdist(head.xyz.double(), head.xyz.double()).square()
    distance.fill_diagonal_(float("inf"))
    expected = distance.topk(3, dim=1, largest=False).values.mean(dim=1).clamp(min=1e-7).sqrt()
    assert torch.allclose(head.scales.exp(), expected[:, None].expand(-1, 3).float(), rtol=1e-2)
    assert torch.equal(head.rotation, torch.tensor([[1.0, 0, 0, 0]]).expand(len(head.xyz), -1))
    assert torch.allclose(head.opacity.sigmoid(), torch.tensor(0.3))


def test_mouth_points_fill_their_box(pair):
    mesh, _, head = pair
    mouth = mesh.landmarks_3d_neutral.detach()[48:66].double()
    centre = mouth.mean(dim=0)
    centre[2] = mouth[:, 2].min()
    half = 0.8 * (mouth - centre).abs().amax(dim=0)
    points = head.xyz.detach()[-MOUTH_POINTS:].double()
    assert bool(((points - centre).abs() <= half + 1e-6).all())
    many = (mouth_points(mesh.landmarks_3d_neutral.detach(), 4000, seed=1).double() - centre) / half
    assert torch.allclose(many.mean(dim=0), torch.zeros(3).double(), atol=0.05)
    assert torch.allclose(many.var(dim=0), torch.full((3,), 1 / 3).double(), atol=0.03)  # uniform in [-1, 1]


def test_saturated_features_survive_the_handover(made, runs):
    """After long training tanh is exactly ±1; its atanh is infinite, and interpolation even exceeds 1."""
    stage, _ = mesh_stage(made, runs)
    with torch.no_grad():
        last = stage.head.geometry.layers[-1]
        last.weight[4:] = 0.0
        last.bias[4:] = torch.tensor([60.0, -60.0]).repeat(len(last.bias))[:len(last.bias) - 4]
    features = stage.head.neutral_surface(subdivisions=1).features
    assert bool((features.abs() >= 1.0 - 1e-6).all()) and bool((features == 1.0).any())
    path = runs / "checkpoints" / "saturated" / "meshhead_latest"
    save_checkpoint(path, stage, 2, 0.0, 0.0, latest(runs, "meshhead").data, [])
    run_script("train_gaussianhead", gaussian_dict(made.subject, runs, name="saturated", mesh="saturated"), runs)
    state = latest(runs, "gaussianhead", "saturated").modules["gaussianhead"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    assert torch.allclose(state["feature"][:-MOUTH_POINTS].tanh().abs(), torch.ones(1), atol=1e-3)


# --- reenactment and evaluation ---------------------------------------------------------------------------------------

def video_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("freeview", [False, True])
def test_reenactment_writes_frames_video_and_sheet(made, trained, tmp_path, freeview, capfd):
    values = reenactment_dict(made, trained, name=f"out_{freeview}")
    run_script("reenactment", values, tmp_path, f"recorder.result_path={tmp_path}", f"dataset.freeview={freeview}")
    folder = tmp_path / f"out_{freeview}"
    names = [f"{index:05d}" for index in range(len(list((made.driver / "params").iterdir())))]
    assert sorted(path.stem for path in (folder / "frames").iterdir()) == names
    pictures = np.stack([cv2.imread(str(folder / "frames" / f"{name}.png"))[..., ::-1] for name in names])
    assert pictures.shape == (len(names), SIZE, SIZE, 3)
    assert all((pictures[0] != picture).any() for picture in pictures[1:])  # the driver moves it
    video = video_frames(folder / "reenactment.mp4")
    assert video.shape == pictures.shape
    assert np.abs(video.astype(float) - pictures.astype(float)).mean() < 16  # lossy, subsampled colour
    assert cv2.imread(str(folder / "contact_sheet.png")).shape == (2 * SIZE, 2 * SIZE, 3)
    origin = json.loads((folder / "reenactment.json").read_text())
    assert origin["trained_by"]["versions"]["torch"] and origin["drawn_by"]["device"] == "cpu" and len(origin["driver"]) == len(names)
    assert origin["config"]["dataset"]["freeview"] is freeview
    assert not list(tmp_path.rglob("*.partial"))
    said = capfd.readouterr()
    assert "WARN" not in said.err  # no noise of libraries between our lines
    assert f"reenactment: avatar {values['load_gaussianhead_checkpoint']}, step 2\n" in said.out


def test_reenactment_shows_the_driver_beside(made, trained, tmp_path):
    names = sorted(path.name for path in (made.driver / "params").iterdir())
    driver = tmp_path / "driver"
    shutil.copytree(made.driver, driver)
    for index, name in enumerate(names):
        (driver / "images" / name).mkdir(parents=True)
        cv2.imwrite(str(driver / "images" / name / "image.png"), np.full((32, 32, 3), 20 * index, np.uint8))
    values = reenactment_dict(Tiny(made.subject, driver), trained, name="beside")
    values["recorder"]["result_path"] = str(tmp_path)
    run_script("reenactment", values, tmp_path, "dataset.image_files=images/*/image.png")
    video = video_frames(tmp_path / "beside" / "reenactment.mp4")
    assert video.shape[1:] == (SIZE, 2 * SIZE, 3)
    assert np.allclose([frame[8:-8, 8:SIZE - 8].mean() for frame in video], 20 * np.arange(len(names)), atol=6)
    assert cv2.imread(str(tmp_path / "beside" / "frames" / "00000.png")).shape == (SIZE, SIZE, 3)


def test_reenactment_is_reproducible(made, trained, tmp_path):
    for name in ("one", "two"):
        run_script("reenactment", reenactment_dict(made, trained, name=name), tmp_path, f"recorder.result_path={tmp_path}")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name / "frames").iterdir()} for name in ("one", "two"))
    assert one == two


def test_reenactment_of_the_coarse_picture_to_a_video_alone(made, trained, tmp_path, capsys):
    run_script("reenactment", reenactment_dict(made, trained, name="coarse"), tmp_path, f"recorder.result_path={tmp_path}",
               "super_resolution=false", "video.frames=none", "video.preset=ultrafast")
    assert sorted(path.name for path in (tmp_path / "coarse").iterdir()) == [
        "contact_sheet.png", "reenactment.json", "reenactment.mp4", "seconds.json"]
    assert video_frames(tmp_path / "coarse" / "reenactment.mp4").shape[1:] == (SIZE // 4, SIZE // 4, 3)
    assert re.search(r"reenactment: 6 frames in .* a second, rendered .* a second; latency .* ms, 95 % below .* ms", capsys.readouterr().out)


def test_a_driver_of_another_width_is_refused(made, trained, tmp_path):
    driver = tmp_path / "driver"
    shutil.copytree(made.driver, driver)
    for path in driver.rglob("params.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"exp_coeff": arrays["exp_coeff"][:, :50]}))
    values = reenactment_dict(Tiny(made.subject, driver), trained, name="refused")
    said = refusal("reenactment", values, tmp_path, f"recorder.result_path={tmp_path}")
    assert str(driver / "params" / "0000" / "params.npz") in said and "50" in said and f"{EXPRESSIONS}" in said
    assert not (tmp_path / "refused").exists()


def expression_rows(made) -> np.ndarray:
    return np.concatenate([np.load(path)["exp_coeff"] for path in sorted((made.driver / "params").rglob("params.npz"))])


def test_rows_of_another_tracker_drive_the_avatar_within_its_training(made, trained, tmp_path, capsys):
    np.save(tmp_path / "take.npy", expression_rows(made) * 3.0)
    values = reenactment_dict(Tiny(made.subject, tmp_path), trained, name="rows")
    run_script("reenactment", values, tmp_path, f"recorder.result_path={tmp_path}", "dataset.param_files=take.npy", "dataset.clamp_to_training=true",
               "dataset.neutralize=median", "dataset.gain=1.5")
    said = capsys.readouterr().out
    assert "driver: " in said and "expression rows" in said and "head pose own" in said
    assert len(list((tmp_path / "rows" / "frames").iterdir())) == len(expression_rows(made))


def test_the_checkpoint_knows_the_expressions_and_the_size_it_was_trained_on(made, trained):
    for stage in ("meshhead", "gaussianhead"):
        data = latest(trained, stage).data
        trained_on = [np.load(made.subject / "params" / frame / "params.npz") for frame in data.train_frames]
        values = np.concatenate([params["exp_coeff"] for params in trained_on]).astype(np.float32)
        face = data.trained_face()
        assert np.array_equal(face.lowest, values.min(axis=0)) and np.array_equal(face.highest, values.max(axis=0))
        assert bool(((face.median >= face.lowest) & (face.median <= face.highest)).all())
        assert float(face.scale) == np.float32(trained_on[0]["scale"].item())


def test_a_checkpoint_without_that_record_drives_as_before_and_gets_it_when_training_goes_on(made, runs, tmp_path):
    path = runs / "checkpoints" / "tiny" / "gaussianhead_latest"
    for name in ("new", "old"):
        run_script("reenactment", reenactment_dict(made, runs, name=name), tmp_path, f"recorder.result_path={tmp_path}")
        state = torch.load(path, weights_only=True)
        state["data"] = {key: state["data"][key] for key in ("frames", "digests", "train_frames", "train_cameras")}
        torch.save(state, path)
    new, old = ({path.name: path.read_bytes() for path in (tmp_path / name / "frames").iterdir()} for name in ("new", "old"))
    assert new == old and latest(runs, "gaussianhead").data.trained_face() is None
    said = refusal("reenactment", reenactment_dict(made, runs, name="refused"), tmp_path, "dataset.clamp_to_training=true")
    assert said.startswith("dataset.clamp_to_training: ")
    run_script("train_gaussianhead", gaussian_dict(made.subject, runs, steps=3), tmp_path)
    assert latest(runs, "gaussianhead").step == 3 and latest(runs, "gaussianhead").data.trained_face() is not None


@pytest.mark.parametrize(("override", "part"), [
    ("load_gaussianhead_checkpoint=null", "load_gaussianhead_checkpoint"),
    ("load_gaussianhead_checkpoint=no/where", "no/where"),
    ("dataset.resolution=30", "dataset.resolution is 30"),
    ("dataset.param_files=none/*.npz", "none/*.npz"),
    ("supresmodule.network_capacity=32", "supresmodule.network_capacity is 32"),
    ("gaussianheadmodule.attributes_scale=0.05", "gaussianheadmodule.attributes_scale is 0.05"),
])
def test_reenactment_refuses(made, trained, tmp_path, override, part):
    said = refusal("reenactment", reenactment_dict(made, trained, name="refused"), tmp_path, f"recorder.result_path={tmp_path}", override)
    assert part in said
    assert not (tmp_path / "refused").exists()


def test_reenactment_refuses_a_mesh_head(made, trained, tmp_path):
    wrong = trained / "checkpoints" / "tiny" / "meshhead_latest"
    said = refusal("reenactment", reenactment_dict(made, trained, name="refused"), tmp_path, f"load_gaussianhead_checkpoint={wrong}")
    assert "'gaussianhead'" in said and "'meshhead'" in said


@pytest.mark.parametrize(("section", "key", "value"), [("supresmodule", "of_newer_code", True), ("gaussianheadmodule", "deform_scale", "large")])
def test_an_avatar_with_options_that_this_code_does_not_know_is_refused(made, runs, tmp_path, section, key, value):
    path = runs / "checkpoints" / "tiny" / "gaussianhead_latest"
    state = torch.load(path)
    state["config"][section][key] = value
    state["made_by"]["commit"] = "c0ffee"
    torch.save(state, path)
    said = refusal("reenactment", reenactment_dict(made, runs, name="refused"), tmp_path)
    assert said.startswith(f"{path}: {section}.{key} in its configuration is not known to this code") and "commit c0ffee" in said


def test_reenactment_that_cannot_write_says_so(made, trained, tmp_path):
    (tmp_path / "refused").write_text("a file")
    said = refusal("reenactment", reenactment_dict(made, trained, name="refused"), tmp_path, f"recorder.result_path={tmp_path}")
    assert str(tmp_path / "refused") in said


def test_evaluation_measures_the_held_out_splits(made, trained, tmp_path, monkeypatch):
    load, portions, most = evaluation.load_portion, weakref.WeakSet(), [0]

    def counted(*arguments):
        portions.add(portion := load(*arguments))
        most[0] = max(most[0], len(portions))
        return portion

    monkeypatch.setattr(evaluation, "load_portion", counted)
    run_script("evaluate", gaussian_dict(made.subject, trained), tmp_path, f"recorder.result_path={tmp_path}")
    metrics = json.loads((tmp_path / "tiny" / "metrics.json").read_text())
    pictures = json.loads((tmp_path / "tiny" / "pictures.json").read_text())
    capture = HeadCapture(GaussianHeadTrainConfig.model_validate(gaussian_dict(made.subject, trained)).dataset)
    for split, expected in (("novel_view", capture.novel_view()), ("novel_sequence", capture.novel_sequence())):
        assert {(row["frame"], row["camera"]) for row in pictures[split]} == {(picture.frame, picture.camera) for picture in expected}
        assert metrics[split]["frames"] == len(expected)
        for name in ("psnr", "mask_psnr", "ssim", "expressionless_psnr"):
            assert metrics[split][name] == pytest.approx(np.mean([row[name] for row in pictures[split]]), abs=1e-3)
        assert 0 < metrics[split]["psnr"] < 60 and -1 <= metrics[split]["ssim"] <= 1
        assert cv2.imread(str(tmp_path / "tiny" / f"{split}.png")).shape[0] == 3 * SIZE
    origin = metrics["origin"]
    assert origin["step"] == 2 and origin["config"]["trainer"]["seed"] == 0 and origin["avatar"].endswith("gaussianhead_latest")
    assert origin["trained_by"] == origin["measured_by"] and origin["measured_by"]["device"] == "cpu"
    assert most[0] <= 2 < len(capture.novel_view())  # pictures that are in memory at once, however many there are


def test_evaluation_says_by_which_protocol_and_leaves_a_report(made, trained, tmp_path, capsys):
    run_script("evaluate", gaussian_dict(made.subject, trained), tmp_path, f"recorder.result_path={tmp_path}", "evaluation.worst=2",
               f"loss.lpips_weights={tmp_path}", "evaluation.conventions=[hg_masked]")
    printed, folder = capsys.readouterr().out, tmp_path / "tiny"
    assert "LPIPS (vgg) is skipped" in printed and "vgg16.pth" in printed and "protocol gha-eval-3" in printed
    metrics, pictures = (json.loads((folder / name).read_text()) for name in ("metrics.json", "pictures.json"))
    assert metrics["protocol"]["id"] == "gha-eval-3" and metrics["protocol"]["lpips"] == {}
    assert metrics["protocol"]["splits"]["novel_view"]["cameras"] == [HELD_OUT_CAMERA]
    for split in ("novel_view", "novel_sequence"):
        rows, summary = pictures[split], metrics[split]
        assert {"face_psnr", "mask_ssim", "mask_l1", "mask_flicker", "hg_masked_psnr"} <= summary.keys() and summary["frames_per_second"] > 0
        assert summary["hg_masked_lpips"] is None and summary["median"]["psnr"] == pytest.approx(np.median([row["psnr"] for row in rows]), abs=1e-3)
        assert summary["worst"]["psnr"]["value"] == min(row["psnr"] for row in rows)
        by_camera = {}
        for row in rows:
            by_camera.setdefault(row["camera"], []).append(row)
        assert all(column[0]["flicker"] is None and column == sorted(column, key=lambda row: row["frame"]) for column in by_camera.values())
        assert any(row["flicker"] is not None for row in rows) is (split == "novel_view")  # the other has a single frame
        assert cv2.imread(str(folder / f"worst_{split}.png")).shape[1] == 3 * SIZE
    report = (folder / "report.html").read_text()
    assert "novel_sequence" in report and report.count("data:image/jpeg;base64,") == 4 and "http" not in report
    assert len((folder / "pictures.csv").read_text().splitlines()) == 1 + sum(map(len, pictures.values()))


def test_an_evaluation_that_cannot_begin_leaves_the_one_before(made, trained, tmp_path):
    before = tmp_path / "tiny" / "metrics.json"
    before.parent.mkdir()
    before.write_text("of an evaluation before")
    values = gaussian_dict(made.subject, trained) | {"evaluation": {"cross": {"dataroot": str(tmp_path / "nowhere"), "param_files": "*.npz"}}}
    said = refusal("evaluate", values, tmp_path, f"recorder.result_path={tmp_path}")
    assert said == f"evaluation.cross.dataroot: '{tmp_path / 'nowhere'}' is not a folder"
    assert before.read_text() == "of an evaluation before"


def test_an_evaluation_at_another_size_says_so(made, trained, tmp_path, capsys):
    values = gaussian_dict(made.subject, trained)
    values["dataset"]["resolution"] = SIZE // 2
    refusal("evaluate", values, tmp_path, f"recorder.result_path={tmp_path}", "dataset.held_out_cameras=[]", "dataset.held_out_sequences=[]")
    assert f"trained at {SIZE}x{SIZE}, measured at {SIZE // 2}x{SIZE // 2}" in capsys.readouterr().out


def test_an_avatar_is_measured_without_a_truth_and_compared(made, trained, tmp_path, monkeypatch, capsys):
    values = gaussian_dict(made.subject, trained)
    old = [tmp_path / "one" / "tiny" / name for name in ("novel_view.png", "worst_novel_sequence.png")]
    old[0].parent.mkdir(parents=True)
    for path in old:
        path.write_bytes(b"of an evaluation before")
    for name in ("one", "two"):
        run_script("evaluate", values | {"evaluation": {"cross": {"dataroot": str(made.driver), "param_files": "params/*/params.npz"}}}, tmp_path,
                   f"recorder.result_path={tmp_path / name}", "dataset.held_out_cameras=[]", "dataset.held_out_sequences=[]")
    metrics = json.loads((tmp_path / "one" / "tiny" / "metrics.json").read_text())
    assert not any(path.exists() for path in old)
    assert "novel_view" not in metrics and metrics["cross"]["frames"] == 6 and metrics["cross"]["nonfinite"] == 0.0
    assert 0.0 < metrics["cross"]["silhouette_iou"] <= 1.0 and metrics["cross"]["jitter"] > 0.0
    assert cv2.imread(str(tmp_path / "one" / "tiny" / "cross.png")).shape[0] == 2 * SIZE
    folders = [str(tmp_path / name / "tiny") for name in ("one", "two")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--compare", *folders, "--output", str(tmp_path / "table.html")])
    importlib.import_module("evaluate").main()
    assert "| cross | jitter |" in capsys.readouterr().out and "one/tiny" in (tmp_path / "table.html").read_text()


def test_videos_for_the_benchmark_come_from_a_folder_that_looks_like_it(made, trained, tmp_path, capsys, monkeypatch):
    """Tracking and calibration, no pictures: the hidden cameras and sequences of the mono task. The avatar says it was trained with FLAME."""
    face = latest(trained, "gaussianhead").data.trained_face()
    monkeypatch.setattr(CaptureRecord, "trained_face", lambda self: dataclasses.replace(face, model=("FLAME", "2023")))
    root = tmp_path / "benchmark" / "393"
    sequence = root / "sequences" / "FREE" / "tracking"
    sequence.mkdir(parents=True)
    count, flat = 3, {"jaw": 3, "neck": 3, "eyes": 6, "translation": 3}
    tracking = sequence / "flame2023_tracking_v2.npz"
    np.savez(tracking, shape=np.zeros((1, 300)), expression=0.1 * np.ones((count, EXPRESSIONS)),
             rotation=np.zeros((count, 3)), rotation_matrices=np.tile(np.eye(3), (count, 1, 1)), scale=np.full((1, 1), 0.1),
             frames=np.arange(count), **{name: np.zeros((count, width)) for name, width in flat.items()})
    with np.load(made.subject / "cameras" / "0000" / f"camera_{HELD_OUT_CAMERA}.npz") as camera:
        extrinsic, intrinsic = np.vstack([camera["extrinsic"], [0, 0, 0, 1]]), camera["intrinsic"]
    (root / "calibration").mkdir()
    (root / "calibration" / "camera_params.json").write_text(json.dumps({
        "world_2_cam": {HELD_OUT_CAMERA: extrinsic.tolist()}, "intrinsics": {HELD_OUT_CAMERA: intrinsic.tolist()}, "width": SIZE, "height": SIZE}))
    submission = {"folder": str(tmp_path / "sent"), "participant": "393", "expected": ["393/FREE", "404/FREE"], "cameras": [HELD_OUT_CAMERA],
                  "dataroot": str(tmp_path / "benchmark" / "{participant}"), "width": 48, "height": 64,
                  "calibration": str(tmp_path / "benchmark" / "{participant}" / "calibration" / "camera_params.json")}
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "metrics.json").write_text("of an evaluation before")
    for key, said in (("calibration", "nowhere"), ("dataroot", "evaluation.submission.dataroot: ")):  # with splits to measure, which are not begun
        values = gaussian_dict(made.subject, trained) | {"evaluation": {"submission": submission | {key: str(tmp_path / "nowhere")}}}
        assert said in refusal("evaluate", values, tmp_path, f"recorder.result_path={tmp_path}")
        assert (tmp_path / "tiny" / "metrics.json").read_text() == "of an evaluation before"
    with np.load(tracking) as file:
        good = dict(file)
    np.savez(tracking, **good | {"translation": np.full((count, 3), [[0.0], [np.nan], [0.0]])})
    values = gaussian_dict(made.subject, trained) | {"evaluation": {"submission": submission}}
    said = refusal("evaluate", values, tmp_path, f"recorder.result_path={tmp_path}")
    assert "row 1" in said and "NaN" in said and "nan_frames" not in said  # a benchmark wants every frame
    np.savez(tracking, **good)
    run_script("evaluate", values, tmp_path, f"recorder.result_path={tmp_path}", "dataset.held_out_cameras=[]", "dataset.held_out_sequences=[]")
    assert (tmp_path / "tiny" / "metrics.json").read_text() == "of an evaluation before"  # nothing was measured
    assert f"1 videos; still missing: 404/FREE/cam_{HELD_OUT_CAMERA}.mp4" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        (name,) = archive.namelist()
        with archive.open(name) as file, av.open(file) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert name == f"393/FREE/cam_{HELD_OUT_CAMERA}.mp4" and len(frames) == count and frames[0].shape == (64, 48, 3)
    assert frames[0].min() < 200 < frames[0].max()  # a head on white


@pytest.mark.parametrize(("override", "part"), [
    (f"dataset.held_out_cameras=['{CAMERAS[0]}']", "dataset.held_out_cameras"),
    (f"dataset.held_out_cameras=['{HELD_OUT_CAMERA}', '{CAMERAS[0]}']", "dataset.held_out_cameras"),
    ("dataset.held_out_sequences=[EXP-1-head]", "dataset.held_out_sequences"),
])
def test_evaluation_refuses_what_was_trained_on(made, trained, tmp_path, override, part):
    said = refusal("evaluate", gaussian_dict(made.subject, trained), tmp_path, f"recorder.result_path={tmp_path}", override)
    assert part in said and "gaussianhead_latest" in said
    assert not (tmp_path / "tiny").exists()


def test_evaluation_needs_something_held_out(made, trained, tmp_path):
    said = refusal("evaluate", gaussian_dict(made.subject, trained), tmp_path, "dataset.held_out_cameras=[]", "dataset.held_out_sequences=[]")
    assert "held out" in said


def test_evaluation_refuses_a_subject_of_another_width(made, trained, tmp_path):
    subject = copy_subject(made.subject, tmp_path / "subject")
    for path in subject.rglob("params.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"exp_coeff": arrays["exp_coeff"][:, :50]}))
    said = refusal("evaluate", gaussian_dict(subject, trained), tmp_path, f"recorder.result_path={tmp_path}")
    assert "50" in said and f"{EXPRESSIONS}" in said


def test_evaluation_without_an_avatar(made, tmp_path):
    assert "gaussianhead_latest" in refusal("evaluate", gaussian_dict(made.subject, tmp_path), tmp_path)
