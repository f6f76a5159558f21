"""Takes avatars away: Gaussians for viewers, a bundle for others, meshes, the published files."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from lib.avatars.gaussian_head_avatar.avatar import avatar_from, check_resolution
from lib.avatars.gaussian_head_avatar.color_fit import draw
from lib.avatars.gaussian_head_avatar.config import check_same
from lib.avatars.gaussian_head_avatar.handover import mesh_head_from
from lib.avatars.gaussian_head_avatar.mesh_export import write_meshes
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.publish import check_publishable, write_published
from lib.avatars.gaussian_head_avatar.published import read_mesh_head
from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig, read_avatar
from lib.avatars.gaussian_head_avatar.splat_export import write_splats
from lib.datasets.driving import DrivingFrame, DrivingSequence, front_camera
from lib.datasets.images import to_uint8
from lib.errors import InputError
from lib.files import RunLock, make_folder, write_whole
from lib.geometry.head_pose import HeadPose
from lib.render.gaussian.projection import LOW_PASS
from lib.training.bundle import Leaflet, portable_metrics, write_bundle
from lib.training.checkpoint import Checkpoint
from lib.training.recorder import shrink
from lib.training.runtime import choose_device

THUMBNAIL_SIZE = 256  # pixels
BUNDLED = ("gaussianheadmodule", "supresmodule", "meshheadmodule")
NO_LICENSE = """No licence was given with this avatar. It shows a person: without the permission of that person, and of whoever captured
the pictures and owns the face model it was trained with, do not use it.
"""
NEUTRAL_AXES = "those of the head, right-handed: x to its left, y up, face towards +z"
POSED_AXES = "those of the capture's world, right-handed (y is up in the demo's and in NeRSemble's)"


class ExportConfig(ReenactmentConfig):
    """The YAML file of export.py: what reenactment.py reads, and these keys."""

    format: Literal["ply", "bundle", "obj", "gltf", "published"] = Field(
        description="ply: Gaussians with one colour each; bundle: the avatar in one file; obj, gltf: the mesh of stage 1; published: state dicts")
    frame: str = Field("neutral", pattern=r"^(neutral|all|[0-9]+)$", description=(
        "ply, obj, gltf: neutral (expression 0, head not posed), one of the driver's frames (the number, from 0), or all of them"))
    low_pass: float = Field(
        LOW_PASS, ge=0, description="ply: px² of the coarse picture, added to every variance, as the rasterizer does; 0: as trained, with holes")
    attribution: str | None = Field(None, description="one line for every file but published ones: whom to name, under which licence")
    license_files: tuple[Path, ...] = Field((), description="bundle: text files that say who may use it for what")
    metrics_file: Path | None = Field(None, description="bundle: the metrics.json of this avatar's evaluation, to go with it")
    meshheadmodule: MeshHeadConfig | None = Field(None, description="optional: must equal the configuration the stage-1 checkpoint holds")


Write = Callable[[], dict[str, Any]]  # writes the files of a format; what is to be said of them


@dataclass(frozen=True)
class Poses:
    """Moments to export, and what is said of each in its file."""

    frames: Sequence[DrivingFrame]
    sources: tuple[str, ...]
    stems: tuple[str, ...]  # names of files without suffix
    axes: str

    def notes(self, name: str) -> list[list[str]]:
        """What every file says of itself."""
        return [[f"avatar {name}, {source}", "units: those of the capture's world, metres where that is in metres", f"axes: {self.axes}"]
                for source in self.sources]

    def paths(self, folder: Path, suffix: str) -> list[Path]:
        """One file per moment. Those of an earlier, perhaps longer sequence are removed."""
        paths = [folder / f"{stem}{suffix}" for stem in self.stems]
        if paths[0].parent != folder:
            for old in paths[0].parent.glob("[0-9]*"):
                if old.name.removesuffix(".partial").endswith(suffix):
                    old.unlink()
        return paths


def export(config: ExportConfig) -> Path:
    """Writes to <result_path>/<name>/export; returns <format>.json there, which is written last and says what is in the files.

    Raises InputError where something it needs is missing or not what the configuration says.
    """
    folder = make_folder(config.recorder.result_folder / "export")
    report_path = folder / f"{config.format}.json"
    exporters = {"ply": _splats, "bundle": _bundle, "obj": _meshes, "gltf": _meshes, "published": _published}
    with RunLock(folder / f"{config.format}.lock"):
        write = exporters[config.format](config, folder)  # what can be refused is, with an earlier export as it was
        report_path.unlink(missing_ok=True)
        write_whole(report_path, json.dumps({"format": config.format} | write(), indent=1))
    return report_path


def _splats(config: ExportConfig, folder: Path) -> Write:
    check_resolution(config.dataset.resolution)
    checkpoint = read_avatar(config)
    avatar = avatar_from(checkpoint).to(choose_device(config.device, config.gpu_id, "device")).eval()
    poses = _poses(config, checkpoint, avatar.head.own_pose.cpu(), avatar.head.config.exp_coeffs_dim)
    colors = "colours: one per Gaussian, fitted to super-resolved pictures on white"
    comments = [[*_credit(config), *notes, colors] for notes in poses.notes(config.recorder.name)]

    def write() -> dict[str, Any]:
        paths = poses.paths(folder, ".ply")
        score = write_splats(avatar, poses.frames, paths, comments, config.dataset.resolution, config.low_pass, folder / "ply.png")
        print(f"export: {len(paths)} x {len(avatar.head.xyz):,} Gaussians; drawn again from the files, {score}")
        said = {"gaussians": len(avatar.head.xyz), "axes": poses.axes, "sources": poses.sources}
        return _listed(paths, folder) | said | {"psnr": dataclasses.asdict(score)}

    return write


def _meshes(config: ExportConfig, folder: Path) -> Write:
    checkpoint = _mesh_checkpoint(config)
    if checkpoint is None:
        raise InputError(f"load_meshhead_checkpoint: format {config.format} exports the mesh of stage 1; name its checkpoint, e.g. "
                         "checkpoints/<name>/meshhead_latest")
    head = mesh_head_from(checkpoint).to(choose_device(config.device, config.gpu_id, "device")).eval()
    poses = _poses(config, checkpoint, torch.zeros(6), head.config.expression_count)

    def write() -> dict[str, Any]:
        paths = poses.paths(folder, {"obj": ".obj", "gltf": ".glb"}[config.format])
        vertices, faces = write_meshes(head, poses.frames, paths, poses.notes(config.recorder.name), config.attribution)
        print(f"export: {len(paths)} x {vertices:,} vertices, {faces:,} faces")
        return _listed(paths, folder) | {"vertices": vertices, "faces": faces, "axes": poses.axes, "sources": poses.sources}

    return write


def _bundle(config: ExportConfig, folder: Path) -> Write:
    check_resolution(config.dataset.resolution)
    checkpoint = read_avatar(config)
    device = choose_device(config.device, config.gpu_id, "device")
    avatar = avatar_from(checkpoint).to(device).eval()
    frame = _neutral(config, checkpoint, avatar.head.own_pose.cpu(), avatar.head.config.exp_coeffs_dim)
    with torch.no_grad():
        picture = draw(avatar, frame.to(device), (0.0, 0.0), config.dataset.resolution).image.cpu()
    if not bool(torch.isfinite(picture).all()):
        raise InputError(f"{checkpoint.path}: the avatar renders NaN; is the checkpoint damaged?")
    license_text = "\n\n".join([*_credit(config), *(_text(path, "license_files") for path in config.license_files)]).strip() or NO_LICENSE
    metrics = None if config.metrics_file is None else portable_metrics(_text(config.metrics_file, "metrics_file"), config.metrics_file)
    leaflet = Leaflet(license_text, to_uint8(shrink(picture, THUMBNAIL_SIZE)[0]), metrics)
    path = folder / f"{config.recorder.name}.avatar"

    def write() -> dict[str, Any]:
        write_bundle(path, _portable(checkpoint), BUNDLED, leaflet)
        if license_text == NO_LICENSE:
            print("export: the bundle says that no licence was given; name license_files or write an attribution")
        return _listed([path], folder)

    return write


def _portable(checkpoint: Checkpoint) -> Checkpoint:
    """Without where the training found its tetrahedra, which the weights hold."""
    sections = {name: {key: None if key == "grid_file" else value for key, value in section.items()} if isinstance(section, dict) else section
                for name, section in checkpoint.config.items()}
    return dataclasses.replace(checkpoint, config=sections)


def _published(config: ExportConfig, folder: Path) -> Write:
    mesh, head = _mesh_checkpoint(config), read_avatar(config)
    if mesh is None:
        print("export: no load_meshhead_checkpoint, so no published mesh head is written")
    check_publishable(head)
    return lambda: _listed(write_published(folder / "published", head, mesh), folder)


def _mesh_checkpoint(config: ExportConfig) -> Checkpoint | None:
    if config.load_meshhead_checkpoint is None:
        return None
    checkpoint = read_mesh_head(config.load_meshhead_checkpoint, "load_meshhead_checkpoint", config.meshheadmodule)
    check_same(config.meshheadmodule, checkpoint.section("meshheadmodule"), "meshheadmodule", checkpoint.path)
    return checkpoint


def _poses(config: ExportConfig, checkpoint: Checkpoint, own_pose: Float[Tensor, "6"], expression_count: int) -> Poses:
    """What is exported: the neutral head, one frame of the driver or all."""
    if config.frame == "neutral":
        frame = _neutral(config, checkpoint, own_pose, expression_count)
        return Poses([frame], ("neutral: expression 0, head pose not applied",), ("neutral",), NEUTRAL_AXES)
    trained = None if checkpoint.data is None else checkpoint.data.trained_face()
    driver = DrivingSequence(config.dataset, own_pose, expression_count, trained)
    for note in driver.notes:
        print(f"driver: {note}")
    places = f"head pose applied ({driver.head_pose_mode}), pose code {config.dataset.pose_code_mode}"
    sources = tuple(f"frame {index} of {len(driver)}, {_below(config.dataset.dataroot, str(name))}; {places}"
                    for index, name in enumerate(driver.files))
    if config.frame == "all":
        frames = [driver[index] for index in range(len(driver))]
        return Poses(frames, sources, tuple(f"sequence/{index:05d}" for index in range(len(driver))), POSED_AXES)
    number = int(config.frame)
    if number >= len(driver):
        raise InputError(f"frame: there is no frame {number}: dataset.param_files '{config.dataset.param_files}' has {len(driver)}, counted from 0")
    return Poses([driver[number]], (sources[number],), (f"frame_{number:05d}",), POSED_AXES)


def _below(root: Path, text: str) -> str:
    """Paths in a text, from that folder on: folders of this machine are private."""
    for folder in sorted({str(root), str(root.absolute()), str(root.resolve())}, key=len, reverse=True):
        text = text.replace(folder.rstrip("/\\") + os.sep, "")
    return text


def _neutral(config: ExportConfig, checkpoint: Checkpoint, own_pose: Float[Tensor, "6"], expression_count: int) -> DrivingFrame:
    """Without expression, at the origin; the networks see a usual pose."""
    head = HeadPose(torch.zeros(1, 6), _scale(config, checkpoint))
    return DrivingFrame(torch.zeros(1, expression_count), own_pose[None], head, front_camera(THUMBNAIL_SIZE))


def _scale(config: ExportConfig, checkpoint: Checkpoint) -> Float[Tensor, "1 1"]:
    """World units per canonical unit: of the training, or of a driver where the checkpoint (older, or published) does not know it."""
    trained = None if checkpoint.data is None else checkpoint.data.trained_face()
    if trained is not None:
        return trained.scale[None]
    if config.dataset.param_files is None:
        raise InputError(f"dataset.param_files: {checkpoint.path} (older, or published) does not know how large the head is; name params.npz files "
                         "that do")
    return DrivingSequence(config.dataset, torch.zeros(6)).scales[:1]


def _credit(config: ExportConfig) -> list[str]:
    return [] if config.attribution is None else [config.attribution]


def _text(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {path}: cannot be read ({error}); expected a text file in UTF-8") from error


def _listed(paths: list[Path], folder: Path) -> dict[str, Any]:
    return {"files": [str(path.relative_to(folder)) for path in paths]}
