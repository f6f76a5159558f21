"""Through export.py: a tiny trained head as PLY, bundle, mesh and published files, each read back by what would read it."""

import dataclasses
import importlib
import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar, avatar_from
from lib.avatars.gaussian_head_avatar.color_fit import CHECKED, coarse_rgb, draw, look_at_head, quarter
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.handover import mesh_head_from
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head, read_mesh_head
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.datasets.driving import DrivingConfig, DrivingFrame, DrivingSequence, front_camera
from lib.datasets.head_capture import CaptureRecord, HeadCapture, Picture
from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.head_pose import HeadPose
from lib.metrics.psnr import psnr
from lib.networks.upsampler import UpsamplerConfig
from lib.render.gaussian.interface import rasterize
from lib.training.checkpoint import Checkpoint, read_checkpoint
from tests.gaussians.test_ply import parse, table
from tests.geometry.test_mesh_files import parse_glb
from tests.published_tracking import Performance, write_vhap_export
from tests.tiny import DRIVER_FRAMES, EXPRESSIONS, SIZE, Tiny, gaussian_dict, mesh_dict, reenactment_dict, run_script

CREDIT = "Somebody, CC BY 4.0"
SUPRES = {"network_capacity": 8, "skip": True}


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory) -> Path:
    """Both stages, trained until the picture is that of a head."""
    folder = tmp_path_factory.mktemp("export")
    run_script("train_meshhead", mesh_dict(made.subject, folder, steps=5), folder)
    values = gaussian_dict(made.subject, folder, steps=12, augment=False)
    values["supresmodule"], values["loss"]["coarse"], values["lr_net"] = SUPRES, 10.0, 3e-3
    run_script("train_gaussianhead", values, folder)
    return folder


def ours(runs: Path, stage: str = "gaussianhead") -> Checkpoint:
    return read_checkpoint(runs / "checkpoints" / "tiny" / f"{stage}_latest", stage, "test")


def values_of(made: Tiny, runs: Path, target: Path, **changes: object) -> dict:
    values = reenactment_dict(made, runs)
    values["recorder"]["result_path"] = str(target)
    return values | {"load_meshhead_checkpoint": str(runs / "checkpoints" / "tiny" / "meshhead_latest"), "attribution": CREDIT} | changes


def exported(made: Tiny, runs: Path, target: Path, **changes: object) -> tuple[Path, dict]:
    """The folder and the report."""
    values = values_of(made, runs, target, **changes)
    run_script("export", values, target)
    folder = target / "tiny" / "export"
    assert not list(target.rglob("*.partial"))
    return folder, json.loads((folder / f"{values['format']}.json").read_text())


def driver_of(made: Tiny, runs: Path) -> DrivingSequence:
    checkpoint = ours(runs)
    config = DrivingConfig.model_validate(reenactment_dict(made, runs)["dataset"])
    return DrivingSequence(config, checkpoint.modules["gaussianhead"]["own_pose"], EXPRESSIONS, checkpoint.data.trained_face())


def neutral(runs: Path) -> DrivingFrame:
    checkpoint = ours(runs)
    head = HeadPose(torch.zeros(1, 6), torch.tensor([list(checkpoint.data.head_scale)]))
    return DrivingFrame(torch.zeros(1, EXPRESSIONS), checkpoint.modules["gaussianhead"]["own_pose"][None], head, front_camera(SIZE))


def cloud_of(path: Path) -> GaussianCloud:
    """A PLY as a viewer understands it, by a parser that shares nothing with the writer."""
    _, vertices = parse(path.read_bytes())

    def columns(*names: str) -> torch.Tensor:
        return torch.from_numpy(table(vertices, *names)).float()[None]

    return GaussianCloud(
        columns("x", "y", "z"), columns("rot_0", "rot_1", "rot_2", "rot_3"), columns("scale_0", "scale_1", "scale_2").exp(),
        columns("opacity").sigmoid()[..., 0], (0.5 + columns("f_dc_0", "f_dc_1", "f_dc_2") * 0.28209479177387814).clamp(min=0.0))


def scores(avatar: GaussianAvatar, cloud: GaussianCloud, frame: DrivingFrame) -> list[float]:
    """PSNR against the super-resolved picture, the same at a quarter, and against the coarse picture; means over directions."""
    rows = []
    with torch.no_grad():
        for direction in CHECKED:
            drawn = draw(avatar, frame, direction, SIZE)
            image = rasterize(cloud, look_at_head(frame.head, *direction, SIZE), torch.ones(3)).features
            rows.append([float(psnr(a, b)) for a, b in (
                (image, drawn.image), (quarter(image), quarter(drawn.image)), (quarter(image), coarse_rgb(drawn)))])
    return torch.tensor(rows).mean(dim=0).tolist()


# --- Gaussians --------------------------------------------------------------------------------------------------------

def test_a_ply_is_the_neutral_head(made, runs, tmp_path, capsys):
    folder, report = exported(made, runs, tmp_path, format="ply")
    avatar, frame = avatar_from(ours(runs)).eval(), neutral(runs)
    comments, vertices = parse((folder / "neutral.ply").read_bytes())
    assert len(vertices) == len(avatar.head.xyz) == report["gaussians"] and report["files"] == ["neutral.ply"]
    assert comments[0] == CREDIT and any("metres" in line for line in comments) and any("y up" in line for line in comments)
    assert any("head pose not applied" in line for line in comments)
    with torch.no_grad():
        expected = avatar.head(frame.expression, frame.pose_code, frame.head)
    cloud = cloud_of(folder / "neutral.ply")
    assert torch.equal(cloud.means, expected.means)
    torch.testing.assert_close(cloud.quats_wxyz, expected.quats_wxyz, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(cloud.opacities, expected.opacities, rtol=0.0, atol=1e-6)
    assert bool((cloud.scales > expected.scales).all())
    found = scores(avatar, cloud, frame)
    told = report["psnr"]
    assert found == pytest.approx([told["super_resolved"], told["quarter"], told["coarse"]], abs=0.02)
    nothing = scores(avatar, dataclasses.replace(cloud, opacities=torch.zeros_like(cloud.opacities)), frame)
    assert told["quarter"] > told["first_channels"]  # fitted colours are worth it
    assert all(with_head > without + 3.0 for with_head, without in zip(found, nothing, strict=True))
    assert f"{told['coarse']:.2f} dB against its coarse picture; the fit of colours leaves {told['residual']:.4f}" in capsys.readouterr().out
    assert cv2.imread(str(folder / "ply.png")).shape == (2 * SIZE, len(CHECKED) * SIZE, 3)


def test_a_frame_is_where_the_driver_puts_it(made, runs, tmp_path):
    folder, report = exported(made, runs, tmp_path, format="ply", frame=3, low_pass=0)
    avatar, frame = avatar_from(ours(runs)), driver_of(made, runs)[3]
    with torch.no_grad():
        expected = avatar.head(frame.expression, frame.pose_code, frame.head)
    cloud = cloud_of(folder / "frame_00003.ply")
    assert torch.equal(cloud.means, expected.means)
    torch.testing.assert_close(cloud.scales, expected.scales, rtol=1e-5, atol=1e-7)
    assert report["sources"] == [f"frame 3 of {DRIVER_FRAMES}, params/0003/params.npz; head pose applied (driver), pose code head"]
    assert str(made.driver).encode() not in (folder / "frame_00003.ply").read_bytes()


def test_the_folders_of_a_driver_are_not_told(made, runs, tmp_path, monkeypatch):
    """Not even where the source of a frame names two files. The avatar says it was trained with FLAME."""
    face = dataclasses.replace(ours(runs).data.trained_face(), model=("FLAME", "2023"))
    monkeypatch.setattr(CaptureRecord, "trained_face", lambda self: face)
    write_vhap_export(tmp_path / "private" / "me", Performance(expressions=EXPRESSIONS))
    driver = {"dataroot": str(tmp_path / "private"), "param_files": "me", "resolution": SIZE}
    folder, report = exported(made, runs, tmp_path, format="ply", frame=1, dataset=driver)
    assert "me/transforms.json" in report["sources"][0] and "me/flame_param/" in report["sources"][0]
    for path in (folder / "frame_00001.ply", folder / "ply.json"):
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_sequence_has_a_file_per_frame_and_one_map_of_colours(made, runs, tmp_path):
    old = tmp_path / "tiny" / "export" / "sequence"
    old.mkdir(parents=True)
    for name in ("00099.ply", "mine.ply"):
        (old / name).write_bytes(b"old")
    folder, report = exported(made, runs, tmp_path, format="ply", frame="all")
    assert report["files"] == [f"sequence/{index:05d}.ply" for index in range(DRIVER_FRAMES)]
    assert sorted(path.name for path in old.iterdir()) == [f"{index:05d}.ply" for index in range(DRIVER_FRAMES)] + ["mine.ply"]
    avatar, driver = avatar_from(ours(runs)), driver_of(made, runs)
    rows, colors = [], []
    for index in range(DRIVER_FRAMES):
        cloud = cloud_of(old / f"{index:05d}.ply")
        with torch.no_grad():
            expected = avatar.head(driver[index].expression, driver[index].pose_code, driver[index].head)
        assert torch.equal(cloud.means, expected.means)
        rows.append(torch.cat([expected.features[0], torch.ones(len(cloud.means[0]), 1)], dim=1))
        colors.append(cloud.features[0])
    rows, colors = torch.cat(rows).double(), torch.cat(colors).double()
    inside = ((colors > 0.0) & (colors < 1.0)).all(dim=1)  # others were cut off
    assert int(inside.sum()) > 0.2 * len(inside)
    fitted = torch.linalg.lstsq(rows[inside], colors[inside], driver="gelsd").solution
    assert float((rows[inside] @ fitted - colors[inside]).abs().max()) < 1e-4  # of all frames one affine map


# --- bundle -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def bundle(made, runs, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("bundle")
    (target / "LICENSE").write_text("Nobody may laugh at it.")
    origin = {"avatar": str(runs / "avatar"), "step": 12, "config": {"dataset": {"dataroot": str(made.subject)}}}
    (target / "metrics.json").write_text(json.dumps({"protocol": "p-2", "psnr": 30.0, "origin": origin}))
    folder, report = exported(made, runs, target, format="bundle", license_files=[str(target / "LICENSE")],
                              metrics_file=str(target / "metrics.json"))
    assert report["files"] == ["tiny.avatar"]
    return folder / "tiny.avatar"


def test_a_bundle_renders_as_its_checkpoint_to_the_bit(made, runs, bundle):
    config = GaussianHeadConfig.model_validate(ours(runs).config["gaussianheadmodule"])
    read = read_gaussian_head(bundle, "load_gaussianhead_checkpoint", config, None, None)
    assert read.data == ours(runs).data and read.modules.keys() == ours(runs).modules.keys()
    frame = driver_of(made, runs)[2]
    images = [AvatarRenderer(avatar_from(checkpoint).eval(), SIZE, SIZE)(frame).image for checkpoint in (read, ours(runs))]
    assert float(images[1].std()) > 0.01 and torch.equal(*images)


def test_reenactment_takes_a_bundle_in_place_of_a_checkpoint(made, runs, bundle, tmp_path):
    pictures = []
    for name, changes in (("a", {}), ("b", {"load_gaussianhead_checkpoint": str(bundle)})):
        values = reenactment_dict(made, runs) | changes
        values["recorder"] = values["recorder"] | {"result_path": str(tmp_path / name)}
        run_script("reenactment", values, tmp_path)
        pictures.append([path.read_bytes() for path in sorted((tmp_path / name / "tiny" / "frames").iterdir())])
    assert len(pictures[0]) == DRIVER_FRAMES and pictures[0] == pictures[1]


def test_training_starts_from_a_bundle(made, runs, bundle, tmp_path):
    values = gaussian_dict(made.subject, tmp_path, steps=1, name="next") | {"load_gaussianhead_checkpoint": str(bundle)}
    values["supresmodule"] = SUPRES
    run_script("train_gaussianhead", values, tmp_path)
    xyz = read_checkpoint(tmp_path / "checkpoints" / "next" / "gaussianhead_latest", "gaussianhead", "test").modules["gaussianhead"]["xyz"]
    torch.testing.assert_close(xyz, ours(runs).modules["gaussianhead"]["xyz"], rtol=0.0, atol=1e-3)


def test_a_bundle_says_whose_it_is_and_tells_nothing_of_the_machine(made, runs, bundle):
    with zipfile.ZipFile(bundle) as archive:
        assert archive.read("LICENSE.txt").decode() == f"{CREDIT}\n\nNobody may laugh at it."
        assert json.loads(archive.read("avatar.json"))["protocols"]["evaluation"] == "p-2"
        thumbnail = cv2.imdecode(np.frombuffer(archive.read("thumbnail.png"), np.uint8), cv2.IMREAD_COLOR)
        assert thumbnail.shape == (SIZE, SIZE, 3) and thumbnail.std() > 10
        assert json.loads(archive.read("metrics.json")) == {"protocol": "p-2", "psnr": 30.0, "origin": {"step": 12}}
    assert str(made.subject.parent).encode() not in bundle.read_bytes() and str(runs).encode() not in bundle.read_bytes()


def test_a_bundle_does_not_tell_where_the_tetrahedra_were(made, runs, tmp_path):
    shutil.copytree(runs / "checkpoints", tmp_path / "checkpoints")
    _change(tmp_path, "meshheadmodule", "grid_file", "/home/somebody/grid.npz")
    folder, _ = exported(made, tmp_path, tmp_path, format="bundle")
    assert b"/home/somebody" not in (folder / "tiny.avatar").read_bytes()


def test_a_bundle_without_a_licence_says_so(made, runs, tmp_path, capsys):
    folder, _ = exported(made, runs, tmp_path, format="bundle", attribution=None)
    with zipfile.ZipFile(folder / "tiny.avatar") as archive:
        assert archive.read("LICENSE.txt").decode().startswith("No licence was given")
    assert "no licence was given" in capsys.readouterr().out


def test_a_damaged_bundle_is_refused_by_name(made, runs, bundle, tmp_path):
    damaged = tmp_path / "damaged.avatar"
    values = reenactment_dict(made, runs) | {"load_gaussianhead_checkpoint": str(damaged)}
    damaged.write_bytes(bundle.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"load_gaussianhead_checkpoint: .*damaged\.avatar: the bundle is cut off or altered"):
        run_script("reenactment", values, tmp_path)


# --- mesh -------------------------------------------------------------------------------------------------------------

def test_a_glb_is_the_posed_mesh(made, runs, tmp_path):
    folder, report = exported(made, runs, tmp_path, format="gltf", frame=2)
    head, frame = mesh_head_from(ours(runs, "meshhead")), driver_of(made, runs)[2]
    with torch.no_grad():
        mesh = head.deform(frame.expression, frame.pose_code, frame.head).mesh
    document, (indices, positions, normals, colors) = parse_glb((folder / "frame_00002.glb").read_bytes())
    assert document["asset"]["copyright"] == CREDIT and (report["vertices"], report["faces"]) == (len(positions), len(indices) // 3)
    assert np.array_equal(positions, mesh.vertices_world[0].numpy()) and np.array_equal(indices.reshape(-1, 3), mesh.faces.numpy())
    shown = np.where(colors <= 0.0031308, colors * 12.92, 1.055 * colors ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(shown, mesh.colors[0, :, :3].numpy(), atol=1e-5)
    assert ((normals * (positions - positions.mean(axis=0))).sum(axis=1) > 0).mean() > 0.8  # outward, of a head


def test_a_posed_mesh_is_what_training_draws(made, runs):
    values = mesh_dict(made.subject, runs)["dataset"]
    capture = HeadCapture(MeshHeadTrainConfig.model_validate(mesh_dict(made.subject, runs)).dataset)
    batch = capture.pictures([Picture(capture.frames[1], values["camera_ids"][0])])
    head = mesh_head_from(ours(runs, "meshhead"))
    with torch.no_grad():
        expected, found = head(batch).mesh, head.deform(batch.expression, batch.head.pose, batch.head).mesh
    assert torch.equal(expected.vertices_world, found.vertices_world) and torch.equal(expected.colors, found.colors)


def test_objs_of_a_sequence_share_their_faces(made, runs, tmp_path):
    folder, report = exported(made, runs, tmp_path, format="obj", frame="all")
    texts = [(folder / name).read_text() for name in report["files"]]
    assert len(texts) == DRIVER_FRAMES and all(text.startswith(f"# {CREDIT}\n") for text in texts)
    rows = [{kind: [line for line in text.splitlines() if line.startswith(f"{kind} ")] for kind in ("v", "f")} for text in texts]
    assert all(row["f"] == rows[0]["f"] for row in rows) and rows[0]["v"] != rows[1]["v"] and len(rows[0]["v"]) == report["vertices"]


# --- published files --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory) -> Path:
    """The same weights without what the published system does not know: it looks worse, but that is not what is tested."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(runs, folder, dirs_exist_ok=True)
    _change(folder, "supresmodule", "skip", False)
    return folder


def _change(runs: Path, section: str, key: str, value: object) -> None:
    path = runs / "checkpoints" / "tiny" / "gaussianhead_latest"
    state = torch.load(path)
    state["config"][section][key] = value
    torch.save(state, path)


def test_published_files_read_again_are_the_same_head(made, plain, tmp_path):
    runs = plain
    folder, report = exported(made, runs, tmp_path, format="published")
    names = ["gaussianhead_latest", "supres_latest", "delta_poses_latest", "meshhead_latest"]
    assert report["files"] == [f"published/{name}" for name in [*names, "gaussianhead.yaml", "meshhead.yaml"]]
    options = {}
    for name in ("gaussianhead.yaml", "meshhead.yaml"):
        options |= yaml.safe_load((folder / "published" / name).read_text())
    head, supres, delta, mesh = (Path(options[f"load_{name.removesuffix('_latest')}_checkpoint"]) for name in names)
    read = read_gaussian_head(head, "test", GaussianHeadConfig.model_validate(options["gaussianheadmodule"]),
                              UpsamplerConfig.model_validate(options["supresmodule"]), supres, delta,
                              MeshHeadConfig.model_validate(options["meshheadmodule"]))
    trained = ours(runs)
    assert read.config["gaussianheadmodule"] == trained.config["gaussianheadmodule"]
    for module, state in trained.modules.items():
        assert state.keys() == read.modules[module].keys()
        assert [name for name, value in state.items() if name != "own_pose" and not torch.equal(value, read.modules[module][name])] == []
    read, trained = read_mesh_head(mesh, "test", MeshHeadConfig.model_validate(options["meshheadmodule"])), ours(runs, "meshhead")
    assert read.modules["meshhead"].keys() == trained.modules["meshhead"].keys()
    assert all(torch.equal(value, read.modules["meshhead"][name]) for name, value in trained.modules["meshhead"].items())
    kept = {key for key in trained.config["meshheadmodule"] if not key.startswith("grid_")}  # the grid is in the file
    assert {key: read.config["meshheadmodule"][key] for key in kept} == {key: trained.config["meshheadmodule"][key] for key in kept}


def test_the_yaml_beside_published_files_is_laid_over_another(made, plain, tmp_path):
    runs = plain
    folder, _ = exported(made, runs, tmp_path, format="published")
    pictures = []
    for name, overrides in (("a", ()), ("b", ("--config", str(folder / "published" / "gaussianhead.yaml")))):
        values = reenactment_dict(made, runs)
        values["recorder"] = values["recorder"] | {"result_path": str(tmp_path / name)}
        run_script("reenactment", values, tmp_path, *overrides)
        pictures.append([path.read_bytes() for path in sorted((tmp_path / name / "tiny" / "frames").iterdir())])
    assert len(pictures[0]) == DRIVER_FRAMES and pictures[0] == pictures[1]
    values = gaussian_dict(made.subject, tmp_path, steps=1, name="next")
    for section in ("gaussianheadmodule", "supresmodule", "load_meshhead_checkpoint"):
        values.pop(section)
    run_script("train_gaussianhead", values, tmp_path, "--config", str(folder / "published" / "meshhead.yaml"))  # starts from that mesh
    assert (tmp_path / "checkpoints" / "next" / "gaussianhead_latest").exists()


def test_a_part_that_is_not_exported_any_more_is_gone(made, plain, tmp_path):
    folder, _ = exported(made, plain, tmp_path, format="published")
    _, report = exported(made, plain, tmp_path, format="published", load_meshhead_checkpoint=None)
    assert sorted(f"published/{path.name}" for path in (folder / "published").iterdir()) == sorted(report["files"])
    assert not any("meshhead" in name for name in report["files"])


def test_published_files_have_the_published_names_and_shapes(made, plain, tmp_path):
    runs = plain
    folder, _ = exported(made, runs, tmp_path, format="published")
    states = {name: torch.load(folder / "published" / f"{name}_latest") for name in ("gaussianhead", "supres", "delta_poses", "meshhead")}
    assert isinstance(states["delta_poses"], torch.Tensor) and states["delta_poses"].shape == (7, 6)
    mlps = {"gaussianhead": ["exp_color", "pose_color", "exp_deform", "pose_deform", "exp_attributes", "pose_attributes"],
            "meshhead": ["geo", "exp_color", "pose_color", "exp_deform", "pose_deform"]}
    others = {"gaussianhead": {"xyz", "feature", "scales", "rotation", "opacity", "landmarks_3d_neutral"},
              "meshhead": {"landmarks_3d_neutral", "tet_verts", "tets"}}
    for name, networks in mlps.items():
        state = states[name]
        layers = {key for key in state if key not in others[name]}
        assert others[name] <= state.keys()
        assert {key.split(".")[0] for key in layers} == {f"{network}_mlp" for network in networks}
        assert all(state[key].ndim == (3 if key.endswith("weight") else 1) for key in layers)
        assert all(state[key].shape[2] == 1 for key in layers if key.endswith("weight"))
        assert {f"{network}_mlp.conv0.weight" for network in networks} <= layers
    assert states["supres"].keys() == {
        *(f"upsampler.{level}.double_conv.{layer}.weight" for level in ("inc", "up1.conv", "up2.conv") for layer in (0, 3)),
        "upsampler.outc.conv.weight", "upsampler.outc.conv.bias"}


@pytest.mark.parametrize(("section", "key", "value"), [("gaussianheadmodule", "pose_deform_at", "deformed"), ("supresmodule", "skip", True)])
def test_a_head_that_the_published_system_would_draw_otherwise_is_refused(made, plain, tmp_path, section, key, value):
    shutil.copytree(plain / "checkpoints", tmp_path / "checkpoints")
    _change(tmp_path, section, key, value)
    with pytest.raises(InputError, match=f"{key}.*, which the published system does not know"):
        exported(made, tmp_path, tmp_path, format="published")


# --- refusals ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("changes", "part"), [
    ({"format": "ply", "frame": DRIVER_FRAMES}, f"frame: there is no frame {DRIVER_FRAMES}: dataset.param_files 'params/*/params.npz' has"),
    ({"format": "ply", "frame": "last"}, "frame: string should match pattern"),
    ({"format": "usd"}, "format: input should be 'ply', 'bundle', 'obj', 'gltf' or 'published', found 'usd'"),
    ({"format": "gltf", "load_meshhead_checkpoint": None}, "load_meshhead_checkpoint: format gltf exports the mesh of stage 1"),
    ({"format": "bundle", "license_files": ["nowhere.txt"]}, "license_files: nowhere.txt: cannot be read"),
    ({"format": "ply", "load_gaussianhead_checkpoint": None}, "load_gaussianhead_checkpoint: name the avatar"),
    ({}, "format: required key is missing"),
])
def test_what_cannot_be_exported_is_refused(made, runs, tmp_path, changes, part):
    with pytest.raises(InputError) as error:
        run_script("export", values_of(made, runs, tmp_path, **changes), tmp_path)
    assert part in str(error.value), str(error.value)
    assert not list(tmp_path.rglob("*.ply")) and not list(tmp_path.rglob("*.avatar")) and not list(tmp_path.rglob("*.glb"))


@pytest.mark.parametrize("changes", [
    {"format": "ply", "frame": DRIVER_FRAMES}, {"format": "bundle", "metrics_file": "nowhere.json"}, {"format": "bundle", "metrics_file": __file__},
    {"format": "gltf", "load_meshhead_checkpoint": None}, {"format": "published", "load_gaussianhead_checkpoint": "nowhere"},
    {"format": "published"},  # a head that the published system would draw otherwise
])
def test_a_refusal_leaves_the_export_before_it(made, runs, tmp_path, changes):
    report = tmp_path / "tiny" / "export" / f"{changes['format']}.json"
    report.parent.mkdir(parents=True)
    report.write_text("of an export before")
    with pytest.raises(InputError):
        run_script("export", values_of(made, runs, tmp_path, **changes), tmp_path)
    assert report.read_text() == "of an export before"


@pytest.mark.parametrize("script", ["export", "reenactment", "viewer"])
def test_a_device_that_is_not_here_is_named_by_its_key(made, runs, tmp_path, script):
    values = values_of(made, runs, tmp_path, device="cuda:77", **({"format": "ply"} if script == "export" else {}))
    for key in () if script == "export" else ("attribution",):
        values.pop(key)
    with pytest.raises(InputError, match=r"^device: 'cuda:77' is not available here"):
        run_script(script, values, tmp_path)


def test_the_script_says_what_it_wrote(made, runs, tmp_path, capsys):
    exported(made, runs, tmp_path, format="obj")
    assert f"wrote {tmp_path / 'tiny' / 'export'}: neutral.obj, obj.json" in capsys.readouterr().out
    assert "config/demo_export.yaml" in (importlib.import_module("export").__doc__ or "")
