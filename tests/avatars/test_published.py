"""Checkpoints of the published system: written here by an independent map, read by ours, and then the same avatar."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lib.avatars.gaussian_head_avatar.avatar import avatar_from
from lib.avatars.gaussian_head_avatar.config import check_same
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.handover import mesh_head_from
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.publish import MESH_KEYS
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head, read_mesh_head
from lib.avatars.gaussian_head_avatar.reenactment import load_avatar
from lib.avatars.gaussian_head_avatar.viewer.config import ViewerConfig
from lib.errors import InputError
from lib.networks.upsampler import UpsamplerConfig
from lib.training.checkpoint import Checkpoint, read_checkpoint
from tests.tiny import FRAMES, Tiny, copy_subject, gaussian_dict, mesh_dict, reenactment_dict, run_script

MESH, HEAD, SUPRES, POSES = "meshhead_latest", "gaussianhead_latest", "supres_latest", "delta_poses_latest"


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    run_script("train_meshhead", mesh_dict(made.subject, folder, steps=2), folder)
    run_script("train_gaussianhead", gaussian_dict(made.subject, folder, steps=2), folder)
    return folder


@pytest.fixture
def published(runs, tmp_path) -> Path:
    """The four files as the published system names and shapes them."""
    mesh, head = ours(runs, "meshhead"), ours(runs, "gaussianhead")
    state = mesh.modules["meshhead"]
    torch.save({name: state[name] for name in ("landmarks_3d_neutral", "tet_verts", "tets")} | mlps(state, {
        "geometry": "geo_mlp", "exp_color": "exp_color_mlp", "pose_color": "pose_color_mlp", "exp_deform": "exp_deform_mlp",
        "pose_deform": "pose_deform_mlp"}), tmp_path / MESH)
    state = head.modules["gaussianhead"]
    torch.save({name: state[name] for name in ("xyz", "feature", "scales", "rotation", "opacity", "landmarks_3d_neutral")} | mlps(state, {
        "exp_color": "exp_color_mlp", "pose_color": "pose_color_mlp", "exp_deform": "exp_deform_mlp", "pose_deform": "pose_deform_mlp",
        "exp_attributes": "exp_attributes_mlp", "pose_attributes": "pose_attributes_mlp"}), tmp_path / HEAD)
    state = head.modules["supres"]
    torch.save({
        "upsampler.inc.double_conv.0.weight": state["entry.0.weight"], "upsampler.inc.double_conv.3.weight": state["entry.3.weight"],
        "upsampler.up1.conv.double_conv.0.weight": state["up1.0.weight"], "upsampler.up1.conv.double_conv.3.weight": state["up1.3.weight"],
        "upsampler.up2.conv.double_conv.0.weight": state["up2.0.weight"], "upsampler.up2.conv.double_conv.3.weight": state["up2.3.weight"],
        "upsampler.outc.conv.weight": state["exit.weight"], "upsampler.outc.conv.bias": state["exit.bias"],
    }, tmp_path / SUPRES)
    torch.save(torch.nn.Parameter(head.modules["delta_poses"]["delta"] + 0.25), tmp_path / POSES)
    return tmp_path


def ours(runs: Path, stage: str) -> Checkpoint:
    return read_checkpoint(runs / "checkpoints" / "tiny" / f"{stage}_latest", stage, "test")


def mlps(state: dict, names: dict[str, str]) -> dict:
    """Linear layer i as `<mlp>.conv<i>`, a 1x1 convolution."""
    named = {}
    for mine, theirs in names.items():
        for name, value in state.items():
            module, _, rest = name.partition(".layers.")
            if module == mine and rest:
                layer, kind = rest.split(".")
                named[f"{theirs}.conv{layer}.{kind}"] = value[..., None] if kind == "weight" else value
    return named


def head_config(runs: Path, **changes) -> GaussianHeadConfig:
    """What a user's YAML says: options, no widths."""
    trained = GaussianHeadConfig.model_validate(ours(runs, "gaussianhead").config["gaussianheadmodule"])
    names = ("pos_freq", "dist_threshold_near", "dist_threshold_far", "deform_scale", "attributes_scale")
    return GaussianHeadConfig.model_validate({name: getattr(trained, name) for name in names} | changes)


def read_head(published: Path, runs: Path, **changes) -> Checkpoint:
    config = head_config(runs, **changes)
    return read_gaussian_head(published / HEAD, "load_gaussianhead_checkpoint", config, None, published / SUPRES, published / POSES)


def test_an_imported_gaussian_head_is_the_same_avatar(published, runs, capsys):
    imported, trained = read_head(published, runs), ours(runs, "gaussianhead")
    expected, found = avatar_from(trained).state_dict(), avatar_from(imported).state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if name != "head.own_pose" and not torch.equal(expected[name], found[name])] == []
    assert torch.equal(imported.modules["delta_poses"]["delta"], trained.modules["delta_poses"]["delta"] + 0.25)
    own = {key: value for key, value in trained.config["gaussianheadmodule"].items() if key != "num_add_mouth_points"}
    assert {key: imported.config["gaussianheadmodule"][key] for key in own} == own
    said = capsys.readouterr().out
    for part in (f"{len(expected['head.xyz']):,} Gaussians", "exp_attributes_mlp [87, 16, 8]", "capacity 4", f"pose offsets of {FRAMES} frames"):
        assert part in said


def test_an_imported_mesh_head_is_the_same_head(published, runs):
    trained = ours(runs, "meshhead")
    options = {key: trained.config["meshheadmodule"][key] for key in ("dist_threshold_near", "dist_threshold_far", "geo_mlp")}
    imported = read_mesh_head(published / MESH, "load_meshhead_checkpoint", MeshHeadConfig.model_validate(options))
    expected, found = mesh_head_from(trained), mesh_head_from(imported)
    a, b = expected.neutral_surface(), found.neutral_surface()
    assert torch.equal(a.vertices, b.vertices) and torch.equal(a.features, b.features) and torch.equal(a.faces, b.faces)


def test_an_avatar_beside_another_has_its_own_super_resolution(published, runs, made, tmp_path):
    """Published files of one name lie in a folder each."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(published / HEAD, other / HEAD)
    config = ViewerConfig.model_validate(reenactment_dict(made, runs) | {
        "gaussianheadmodule": head_config(runs).model_dump(exclude_unset=True), "beside": [str(other / HEAD)],
        "load_gaussianhead_checkpoint": str(published / HEAD), "load_supres_checkpoint": str(published / SUPRES)})
    with pytest.raises(InputError, match=r"other.*\(beside\) is a published checkpoint without its super-resolution network.*must lie beside"):
        load_avatar(config.of_another(other / HEAD), other / HEAD, "beside")
    state = torch.load(published / SUPRES)
    torch.save({name: value + 1.0 for name, value in state.items()}, other / SUPRES)
    first = load_avatar(config, published / HEAD).avatar.upsampler.state_dict()
    second = load_avatar(config.of_another(other / HEAD), other / HEAD, "beside").avatar.upsampler.state_dict()
    assert all(torch.equal(value + 1.0, second[name]) for name, value in first.items())


def test_layers_may_be_counted_from_one(published, runs):
    state = torch.load(published / HEAD)
    renamed = {}
    for name, value in state.items():
        head, conv, rest = name.partition(".conv")
        renamed[f"{head}.conv{int(rest[0]) + 1}{rest[1:]}" if conv else name] = value
    torch.save(renamed, published / HEAD)
    assert avatar_from(read_head(published, runs)).state_dict().keys() == avatar_from(ours(runs, "gaussianhead")).state_dict().keys()


def test_what_is_left_over_is_told(published, runs, capsys):
    torch.save(torch.load(published / HEAD) | {"something.else": torch.zeros(2, 3)}, published / HEAD)
    read_head(published, runs)
    assert "not used: something.else (2, 3)" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "parts"), [
    (lambda state: {name: value for name, value in state.items() if name != "opacity"}, ("'opacity' is missing",)),
    (lambda state: {name: value for name, value in state.items() if not name.startswith("exp_deform_mlp.conv1")}, ("exp_deform_mlp",)),
    (lambda state: state | {"xyz": state["xyz"] * float("nan")}, ("'xyz' holds NaN", "earlier epoch")),
    (lambda state: list(state), ("expected a checkpoint of this project or a published state dict",)),
    (lambda state: {"epoch": 3}, ("expected a checkpoint of this project or a published state dict",)),
    (lambda state: {}, ("'xyz' is missing",)),
])
def test_files_that_are_something_else_are_refused(published, runs, change, parts):
    torch.save(change(torch.load(published / HEAD)), published / HEAD)
    with pytest.raises(InputError) as error:
        read_head(published, runs)
    assert str(error.value).startswith(("load_gaussianhead_checkpoint: ", "gaussianheadmodule")) and str(published / HEAD) in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_stage_1_starts_from_a_published_mesh_head_whose_widths_no_yaml_tells(published, made, tmp_path):
    values = mesh_dict(made.subject, tmp_path / "run", steps=1, name="next")
    values["meshheadmodule"] = {key: value for key, value in values["meshheadmodule"].items() if not key.endswith("_mlp")}
    (tmp_path / "elsewhere").mkdir()
    shutil.move(published / MESH, tmp_path / "elsewhere" / MESH)
    run_script("train_meshhead", values | {"load_meshhead_checkpoint": str(tmp_path / "elsewhere" / MESH)}, tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "next" / MESH).exists()


@pytest.mark.parametrize("origin", ["ours", "published"])
def test_stage_1_does_not_start_from_a_head_of_other_coefficients(published, runs, made, tmp_path, origin):
    path = published / MESH if origin == "published" else runs / "checkpoints" / "tiny" / MESH
    shutil.copy(path, tmp_path / "other")
    subject = copy_subject(made.subject, tmp_path / "subject")
    for file in subject.rglob("params.npz"):
        arrays = dict(np.load(file))
        np.savez(file, **arrays | {"exp_coeff": arrays["exp_coeff"][:, :7]})
    values = mesh_dict(subject, tmp_path / "run", steps=1, name="next") | {"load_meshhead_checkpoint": str(tmp_path / "other")}
    values["meshheadmodule"] = {key: value for key, value in values["meshheadmodule"].items() if not key.endswith("_mlp")}
    with pytest.raises(InputError, match=r"other: was trained with 55 expression coefficients, the data has 7"):
        run_script("train_meshhead", values, tmp_path)


def test_a_key_that_is_newer_than_a_checkpoint_had_its_default(runs):
    checkpoint = ours(runs, "gaussianhead")
    section = {key: value for key, value in checkpoint.config["supresmodule"].items() if key != "skip"}
    check_same(UpsamplerConfig(skip=False), section, "supresmodule", "old")
    with pytest.raises(InputError, match=r"supresmodule\.skip is True, but old was trained with False"):
        check_same(UpsamplerConfig(skip=True), section, "supresmodule", "old")


def test_the_geometry_network_follows_the_encoding():
    assert MeshHeadConfig().geo_mlp == (27, 256, 256, 256, 256, 256, 132) and MeshHeadConfig(pos_freq=6).geo_mlp[0] == 39
    exported = MeshHeadConfig(pos_freq=6, geo_mlp=[39, 8, 8]).resolved(5).model_dump(mode="json", include=MESH_KEYS)
    assert MeshHeadConfig.model_validate(exported).pos_freq == 6
    with pytest.raises(ValidationError, match="geo_mlp must go from 39"):
        MeshHeadConfig(pos_freq=6, geo_mlp=[27, 8, 8])


def test_widths_that_differ_from_the_yaml_are_named(published, runs):
    with pytest.raises(InputError, match=r"gaussianheadmodule\.exp_color_mlp is \[192, 256, 256, 32\], but .* has \[87, 16, 32\]"):
        read_head(published, runs, exp_color_mlp=[192, 256, 256, 32])
    with pytest.raises(InputError, match=r"exp_coeffs_dim is 64, but .* has 55"):
        read_head(published, runs, exp_coeffs_dim=64)


def test_an_upsampler_of_another_size_is_named(published, runs):
    with pytest.raises(InputError, match=r"supresmodule\.network_capacity is 32, but .* has 4"):
        read_gaussian_head(published / HEAD, "load_gaussianhead_checkpoint", head_config(runs), UpsamplerConfig(network_capacity=32),
                           published / SUPRES, None)
    with pytest.raises(InputError, match="load_supres_checkpoint: .* is a published checkpoint without its super-resolution"):
        read_gaussian_head(published / HEAD, "load_gaussianhead_checkpoint", head_config(runs), None, None, None)


def imported_run(made: Tiny, runs: Path, published: Path, name: str) -> dict:
    values = gaussian_dict(made.subject, runs, steps=1, name=name)
    return values | {"load_gaussianhead_checkpoint": str(published / HEAD), "load_supres_checkpoint": str(published / SUPRES),
                     "load_delta_poses_checkpoint": str(published / POSES)}


def test_training_goes_on_from_published_files_and_leaves_them_alone(made, runs, published, capsys):
    before = {path.name: path.read_bytes() for path in published.iterdir() if not path.suffix}
    run_script("train_gaussianhead", imported_run(made, runs, published, "import"), published)
    trained = read_checkpoint(runs / "checkpoints" / "import" / HEAD, "gaussianhead", "test")
    start = ours(runs, "gaussianhead")
    assert trained.step == 1
    assert torch.allclose(trained.modules["gaussianhead"]["xyz"], start.modules["gaussianhead"]["xyz"], atol=1e-3)
    assert torch.allclose(trained.modules["delta_poses"]["delta"], start.modules["delta_poses"]["delta"] + 0.25, atol=1e-3)
    assert {path.name: path.read_bytes() for path in published.iterdir() if not path.suffix} == before
    said = capsys.readouterr().out
    assert "published Gaussian head" in said and "does not say what it was trained on" in said
    run_script("train_gaussianhead", imported_run(made, runs, published, "import"), published, "trainer.steps=2")  # and resumes as its own
    assert read_checkpoint(runs / "checkpoints" / "import" / HEAD, "gaussianhead", "test").step == 2


def test_stage_1_goes_on_from_a_published_mesh_head(made, runs, published):
    values = mesh_dict(made.subject, runs, steps=1, name="mesh_import") | {"load_meshhead_checkpoint": str(published / MESH)}
    values["meshheadmodule"]["grid_cells"] = 7  # of no effect: a checkpoint brings its grid
    run_script("train_meshhead", values, published)
    run_script("train_meshhead", values, published, "trainer.steps=2")
    trained = read_checkpoint(runs / "checkpoints" / "mesh_import" / MESH, "meshhead", "test")
    assert trained.step == 2
    assert torch.equal(trained.modules["meshhead"]["tet_verts"], ours(runs, "meshhead").modules["meshhead"]["tet_verts"])


def test_stage_2_starts_from_a_published_mesh_head(made, runs, published):
    values = gaussian_dict(made.subject, runs, steps=1, name="from_mesh") | {"load_meshhead_checkpoint": str(published / MESH)}
    values["meshheadmodule"] = mesh_dict(made.subject, runs)["meshheadmodule"]
    run_script("train_gaussianhead", values, published)
    xyz = read_checkpoint(runs / "checkpoints" / "from_mesh" / HEAD, "gaussianhead", "test").modules["gaussianhead"]["xyz"]
    assert xyz.shape == ours(runs, "gaussianhead").modules["gaussianhead"]["xyz"].shape


def test_published_files_drive_and_are_evaluated(made, runs, published):
    values = reenactment_dict(made, runs, name="driven")
    run_script("reenactment", values, published)
    mine = sorted((runs / "results" / "driven" / "frames").iterdir())
    pictures = [path.read_bytes() for path in mine]
    values |= {"load_gaussianhead_checkpoint": str(published / HEAD), "load_supres_checkpoint": str(published / SUPRES),
               "gaussianheadmodule": head_config(runs).model_dump(mode="json", exclude_unset=True)}
    run_script("reenactment", values, published)
    assert [path.read_bytes() for path in mine] == pictures
    run_script("evaluate", imported_run(made, runs, published, "evaluated"), published)
    assert (runs / "results" / "evaluated" / "metrics.json").exists()


def test_a_published_file_in_the_own_folder_is_never_overwritten(made, runs, published):
    folder = runs / "checkpoints" / "theirs"
    folder.mkdir()
    for stage, name in (("meshhead", MESH), ("gaussianhead", HEAD)):
        (folder / name).write_bytes((published / name).read_bytes())
        values = {"meshhead": mesh_dict, "gaussianhead": gaussian_dict}[stage](made.subject, runs, name="theirs")
        with pytest.raises(InputError, match=r"is a published checkpoint in this run's own folder"):
            run_script(f"train_{stage}", values, published)
        assert (folder / name).read_bytes() == (published / name).read_bytes()


def test_another_number_of_pose_offsets_is_refused(made, runs, published):
    torch.save(torch.zeros(FRAMES + 1, 6), published / POSES)
    with pytest.raises(InputError, match="load_delta_poses_checkpoint"):
        run_script("train_gaussianhead", imported_run(made, runs, published, "refused"), published)


def test_a_stale_published_file_beside_ours_is_not_used(made, runs, published, capsys):
    values = reenactment_dict(made, runs, name="stale") | {"load_supres_checkpoint": str(published / SUPRES)}
    run_script("reenactment", values, published)
    assert "load_supres_checkpoint" in (said := capsys.readouterr().out) and "is not used" in said


@pytest.mark.parametrize("key", ["load_supres_checkpoint", "load_delta_poses_checkpoint"])
def test_parts_without_the_head_are_refused(made, runs, published, key):
    values = gaussian_dict(made.subject, runs, name="parts") | {key: str(published / (SUPRES if "supres" in key else POSES))}
    with pytest.raises(InputError, match=f"{key}: given without load_gaussianhead_checkpoint"):
        run_script("train_gaussianhead", values, published)
