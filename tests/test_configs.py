"""Every shipped YAML loads with the schema of its stage; every key is documented."""

import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from lib.avatars.gaussian_head_avatar.config import AvatarConfig
from lib.avatars.gaussian_head_avatar.export import ExportConfig
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig
from lib.avatars.gaussian_head_avatar.subjects import SubjectsConfig, plan
from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.config import Config, read_config, write_config
from lib.config.reader import Arguments

FOLDER = Path(__file__).resolve().parent.parent / "config"
LISTS = sorted(FOLDER.glob("*_subjects.y*ml"))
FILES = sorted(set(FOLDER.glob("*.y*ml")) - {*LISTS})
PRESETS = sorted((FOLDER / "presets").glob("*.y*ml"))
BENCHMARKS = sorted((FOLDER / "benchmarks").glob("*.y*ml"))
SCHEMAS: dict[str, type[AvatarConfig]] = {
    "train_meshhead": MeshHeadTrainConfig, "demo_meshhead": MeshHeadTrainConfig,
    "train_gaussianhead": GaussianHeadTrainConfig, "demo_gaussianhead": GaussianHeadTrainConfig,
    "reenactment": ReenactmentConfig, "demo_reenactment": ReenactmentConfig, "demo_viewer": ViewerConfig,
    "demo_export": ExportConfig,
}
DOCUMENTED = {*SCHEMAS.values(), SubjectsConfig}


def schema_of(path: Path) -> type[AvatarConfig]:
    return next(schema for prefix, schema in SCHEMAS.items() if path.name.startswith(prefix))


def load(path: Path) -> typing.Any:
    return read_config(Arguments(path, ()), schema_of(path))


def sections(schema: type[BaseModel]) -> set[type[BaseModel]]:
    """The schema and all schemas nested in it."""
    found = {schema}
    for field in schema.model_fields.values():
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= sections(part)
    return found


def test_there_are_configurations_of_all_stages_the_viewer_and_export():
    assert {schema_of(path) for path in FILES} == {MeshHeadTrainConfig, GaussianHeadTrainConfig, ReenactmentConfig, ViewerConfig, ExportConfig}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_file_loads_and_survives_a_round_trip(path, tmp_path):
    config = load(path)
    write_config(config, tmp_path / "again.yaml")
    assert read_config(Arguments(tmp_path / "again.yaml", ()), schema_of(path)) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_cameras_are_sane(path):
    dataset = load(path).dataset
    assert len(set(dataset.camera_ids)) == len(dataset.camera_ids)
    assert set(dataset.held_out_cameras) < {*dataset.camera_ids, "one must be left"}
    assert all(camera.isdigit() for camera in dataset.camera_ids)
    if not issubclass(schema_of(path), ReenactmentConfig):
        assert len(set(dataset.camera_ids) - set(dataset.held_out_cameras)) >= 1
    assert 0 < dataset.resolution <= dataset.original_resolution


@pytest.mark.parametrize("path", [path for path in FILES if schema_of(path) in (ReenactmentConfig, ViewerConfig)], ids=lambda path: path.name)
def test_shipped_reenactment_has_a_driver_and_a_camera(path):
    config = load(path)
    assert config.dataset.param_files and (config.dataset.freeview or config.dataset.camera_path)
    assert config.load_gaussianhead_checkpoint is not None
    assert config.dataset.resolution % 4 == 0


@pytest.mark.parametrize("base", [path for path in FILES if schema_of(path) is GaussianHeadTrainConfig], ids=lambda path: path.name)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_presets_change_what_fits_into_memory_and_nothing_else(preset, base):
    config, before = read_config(Arguments(base, (), (preset,)), GaussianHeadTrainConfig), load(base)
    free = {"batch_size": before.batch_size, "trainer": before.trainer.model_copy(update={
        name: getattr(config.trainer, name) for name in ("precision", "accumulate", "workers")})}
    assert config.model_copy(update={"batch_size": before.batch_size}) == before.model_copy(update=free)
    assert config.batch_size % config.trainer.accumulate == 0


def test_there_are_presets_of_three_cards_and_larger_ones_take_more():
    sizes = {path.stem: read_config(Arguments(FOLDER / "train_gaussianhead_N031.yaml", (), (path,)), GaussianHeadTrainConfig).batch_size
             for path in PRESETS}
    assert sizes == {"8gb": 1, "24gb": 4, "80gb": 8}


@pytest.mark.parametrize("overlay", BENCHMARKS, ids=lambda path: path.name)
@pytest.mark.parametrize("base", [path for path in FILES if schema_of(path) is GaussianHeadTrainConfig], ids=lambda path: path.name)
def test_benchmarks_lie_over_every_subject_and_hide_what_is_hidden(overlay, base):
    config = read_config(Arguments(base, (), (overlay,)), GaussianHeadTrainConfig)
    submission = config.evaluation.submission
    participants = list(dict.fromkeys(name.split("/")[0] for name in submission.expected))
    assert len(participants) == 5 and submission.participant == participants[0]
    assert len(submission.names()) == len(set(submission.names())) == {"nersemble_mono": 80, "nersemble_nvs": 15}[overlay.stem]
    hidden = set(submission.cameras) - set(config.dataset.camera_ids)
    assert len(hidden) == 3 and not config.dataset.held_out_cameras and not config.dataset.held_out_sequences
    for participant in participants:
        again = read_config(Arguments(base, (f"evaluation.submission.participant={participant}",), (overlay,)), GaussianHeadTrainConfig)
        assert again.evaluation.submission.driver(again.evaluation.submission.sequences[0]).dataroot.name == participant


@pytest.mark.parametrize("overlay", BENCHMARKS, ids=lambda path: path.name)
@pytest.mark.parametrize("base", [path for path in FILES if schema_of(path) is MeshHeadTrainConfig], ids=lambda path: path.name)
def test_benchmarks_lie_over_stage_1_too(overlay, base):
    config = read_config(Arguments(base, (), (overlay,)), MeshHeadTrainConfig)
    assert not config.dataset.held_out_cameras and config.evaluation.submission is not None


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_a_shipped_list_of_subjects_loads_and_all_its_stages_can_be_planned(path, tmp_path, monkeypatch):
    config = read_config(Arguments(path, ()), SubjectsConfig)
    write_config(config, tmp_path / "again.yaml")
    assert read_config(Arguments(tmp_path / "again.yaml", ()), SubjectsConfig) == config
    monkeypatch.chdir(FOLDER.parent)
    assert [len(subject.task.commands) for subject in plan(config)] == [4] * len(config.subjects)


def test_a_list_of_subjects_is_shipped():
    assert [path.name for path in LISTS] == ["demo_subjects.yaml"]


def test_demo_files_are_one_chain():
    mesh, gaussian, reenactment, viewer = (
        load(FOLDER / f"demo_{stage}.yaml") for stage in ("meshhead", "gaussianhead", "reenactment", "viewer"))
    assert gaussian.load_meshhead_checkpoint == mesh.recorder.run_folder / "meshhead_latest"
    assert viewer.load_gaussianhead_checkpoint == reenactment.load_gaussianhead_checkpoint == gaussian.recorder.run_folder / "gaussianhead_latest"
    assert mesh.dataset.dataroot == gaussian.dataset.dataroot
    assert (mesh.dataset.camera_ids, mesh.dataset.held_out_cameras, mesh.dataset.held_out_sequences) == (
        gaussian.dataset.camera_ids, gaussian.dataset.held_out_cameras, gaussian.dataset.held_out_sequences)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_demo_widths_fit_the_demo_subject(device):
    mesh, gaussian = (
        read_config(Arguments(path, (), (FOLDER / "demo_cuda" / f"{stage}.yaml",) if device == "cuda" else ()), schema_of(path))
        for stage in ("meshhead", "gaussianhead") for path in [FOLDER / f"demo_{stage}.yaml"])
    assert mesh.dataset.original_resolution == gaussian.dataset.original_resolution
    resolved = mesh.meshheadmodule.resolved(55)
    head = gaussian.gaussianheadmodule.resolved(resolved, 55)
    assert gaussian.supresmodule.input_dim == head.color_channels


@pytest.mark.parametrize("expressions", [64, 59, 52, 55])
def test_derived_widths_are_the_published_ones(expressions):
    least = {"dataset": {"dataroot": "x"}, "recorder": {"name": "x"}}
    mesh = MeshHeadTrainConfig.model_validate(least).meshheadmodule.resolved(expressions)
    head = GaussianHeadTrainConfig.model_validate(least).gaussianheadmodule.resolved(mesh, expressions)
    assert mesh.geo_mlp == (27, 256, 256, 256, 256, 256, 132)
    assert head.exp_color_mlp == (128 + expressions, 256, 256, 32)
    assert head.pose_color_mlp == (182, 128, 32)
    assert head.exp_deform_mlp == (27 + expressions, 256, 256, 256, 256, 256, 3)
    assert head.pose_deform_mlp == (81, 256, 256, 3)
    assert head.exp_attributes_mlp == (128 + expressions, 256, 256, 256, 8)
    assert head.pose_attributes_mlp == (182, 128, 128, 8)


def test_absent_published_keys_have_the_published_defaults():
    config = GaussianHeadTrainConfig.model_validate({"dataset": {"dataroot": "x"}, "recorder": {"name": "x"}})
    head, dataset, recorder = config.gaussianheadmodule, config.dataset, config.recorder
    assert (head.dist_threshold_far, head.attributes_scale, head.num_add_mouth_points) == (0.2, 0.05, 0)
    assert (config.supresmodule.network_capacity, dataset.num_sample_view, dataset.resolution) == (64, 8, 512)
    assert (config.optimize_pose, recorder.save_freq, recorder.show_freq) == (False, 1, 1)


def test_every_key_has_one_line_of_documentation():
    bare = [
        f"{section.__name__}.{name}"
        for schema in DOCUMENTED for section in sections(schema) for name, field in section.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)) and not (field.description or "").strip()
    ]
    assert sorted(set(bare)) == []


def test_every_section_says_what_it_is():
    assert [section.__name__ for schema in DOCUMENTED for section in sections(schema)
            if issubclass(section, Config) and not (section.__doc__ or "").strip()] == []
