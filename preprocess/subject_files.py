"""The three YAML files of a subject, from what was measured and from the settings of shipped files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.avatars.gaussian_head_avatar.config import AvatarConfig
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.reenactment import ReenactmentConfig
from lib.config import read_config
from lib.config.reader import Arguments
from lib.datasets.driving import DrivingConfig
from lib.datasets.head_capture import HeadCapture, HeadCaptureConfig
from lib.networks.upsampler import SCALE
from preprocess.subject_measures import METRES, Measures
from preprocess.subject_yaml import Remarks, document

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "config"
PRESETS = {"published": "{stage}_N031.yaml", "demo": "demo_{stage}.yaml"}
STAGES: dict[str, type[AvatarConfig]] = {
    "train_meshhead": MeshHeadTrainConfig, "train_gaussianhead": GaussianHeadTrainConfig, "reenactment": ReenactmentConfig}
# Keys that a stage does not read, or that only published checkpoints need.
PUBLISHED_PARTS = {"load_supres_checkpoint", "load_delta_poses_checkpoint"}
CAPTURE_ONLY = {f"dataset.{key}" for key in HeadCaptureConfig.model_fields if key not in DrivingConfig.model_fields}
DRIVING_ONLY = {f"dataset.{key}" for key in DrivingConfig.model_fields if key not in HeadCaptureConfig.model_fields}
UNUSED = {
    "train_meshhead": PUBLISHED_PARTS | DRIVING_ONLY | {"load_gaussianhead_checkpoint", "lr_pose", "optimize_pose"},
    "train_gaussianhead": PUBLISHED_PARTS | DRIVING_ONLY | {"lr_lmk", "dataset.num_sample_view", "meshheadmodule"},
    "reenactment": PUBLISHED_PARTS | CAPTURE_ONLY | {
        "load_meshhead_checkpoint", "lr_net", "lr_lmk", "lr_pose", "batch_size", "optimize_pose", "gaussianheadmodule", "supresmodule",
        "recorder.logdir", "recorder.checkpoint_path", "recorder.save_freq", "recorder.show_freq", "recorder.keep_last"},
}
WIDTH_KEYS = tuple(key for key in MeshHeadConfig.model_fields if key.endswith("_mlp"))


@dataclass(frozen=True)
class Plan:
    """All that the three files are made from."""

    name: str
    preset: str
    capture: HeadCapture
    measures: Measures
    driver: Path

    @property
    def drives_itself(self) -> bool:
        """Whether the driver is this subject, in the same world."""
        return self.driver.resolve().is_relative_to(self.capture.folder.root.resolve())

    @property
    def seen_from(self) -> str:
        """The camera of the reenactment."""
        return self.measures.held_out_camera.name or self.capture.camera_ids[0]


def mesh_head_file(plan: Plan) -> str:
    """Stage 1."""
    base, values = _base(plan.preset, "train_meshhead")
    module, count = base.meshheadmodule, plan.capture.expression_count
    derived = MeshHeadConfig(**{key: getattr(module, key) for key in ("geo_mlp", "pos_freq", "color_channels")}).resolved(module.expression_count)
    widths = _own_widths(values["meshheadmodule"], derived, module.expression_count, count)
    if module.geo_mlp == MeshHeadConfig().geo_mlp:
        widths.pop("geo_mlp")
    config = MeshHeadTrainConfig.model_validate(values | {
        "dataset": values["dataset"] | _pictures(plan, base.dataset.resolution),
        "meshheadmodule": widths | {"model_bbox": plan.measures.model_bbox},
        "recorder": values["recorder"] | _run(plan, "meshhead"),
    })
    resolved = config.meshheadmodule.resolved(count)
    why = _why(plan) | {"meshheadmodule.model_bbox": _why_box(plan.measures)}
    return document(config, Remarks(
        f"Stage 1 (train_meshhead.py), the mesh head of {plan.capture.folder.root}. Preset: {plan.preset}.",
        why, {f"meshheadmodule.{key}": getattr(resolved, key) for key in WIDTH_KEYS}, frozenset(UNUSED["train_meshhead"]),
        {"dataset": HeadCaptureConfig}))


def gaussian_head_file(plan: Plan) -> str:
    """Stage 2. The widths of the networks that stage 1 hands over come with its checkpoint."""
    base, values = _base(plan.preset, "train_gaussianhead")
    trained, _ = _base(plan.preset, "train_meshhead")
    count, base_count = plan.capture.expression_count, trained.meshheadmodule.expression_count
    module = base.gaussianheadmodule
    derived = type(module)(pos_freq=module.pos_freq).resolved(trained.meshheadmodule.resolved(base_count), base_count)
    given = {key: value for key, value in values["gaussianheadmodule"].items() if key != "exp_coeffs_dim"}
    config = GaussianHeadTrainConfig.model_validate(values | {
        "load_meshhead_checkpoint": Path("checkpoints") / f"meshhead_{plan.name}" / "meshhead_latest",
        "dataset": values["dataset"] | _pictures(plan, base.dataset.resolution),
        "gaussianheadmodule": _own_widths(given, derived, base_count, count),
        "recorder": values["recorder"] | _run(plan, "gaussianhead"),
    })
    mesh = read_mesh_widths(plan, trained)
    resolved = config.gaussianheadmodule.resolved(mesh, count)
    keys = [key for key in type(module).model_fields if key.endswith("_mlp") or key == "exp_coeffs_dim"]
    return document(config, Remarks(
        f"Stage 2 (train_gaussianhead.py), the Gaussian head of {plan.capture.folder.root}. Preset: {plan.preset}.",
        _why(plan), {f"gaussianheadmodule.{key}": getattr(resolved, key) for key in keys}, frozenset(UNUSED["train_gaussianhead"]),
        {"dataset": HeadCaptureConfig}))


def reenactment_file(plan: Plan) -> str:
    """Stage 3: the subject as the held-out camera sees it, moved by the driver."""
    base, values = _base(plan.preset, "reenactment")
    folder, first, size = plan.capture.folder, plan.capture.frames[0], plan.capture.config.original_resolution
    dataset: dict[str, Any] = {
        "dataroot": plan.driver, "param_files": "params/*/params.npz", "camera_path": folder.camera_path(first, plan.seen_from),
        "original_resolution": size, "resolution": _resolution(base.dataset.resolution, size), "smoothing": base.dataset.smoothing, "freeview": False,
    }
    which = "held-out" if plan.measures.held_out_camera.name else "first"
    why = {"dataset.camera_path": f"as the {which} camera sees the head",
           "dataset.freeview": _world(plan.measures)}
    name = folder.files(first).image_name(plan.seen_from)
    if plan.driver == folder.root and name is not None:
        dataset["image_files"] = f"images/*/{name}"
        why["dataset.dataroot"] = "the subject itself: all its frames, those of the training too; --driver names another performance"
    if not plan.drives_itself:
        dataset |= {"head_pose": "own", "pose_code": "own"}
        why["dataset.head_pose"] = "another capture has another world: its expressions are taken, not its place"
    config = ReenactmentConfig.model_validate({key: value for key, value in values.items() if key not in ("gaussianheadmodule", "supresmodule")} | {
        "load_gaussianhead_checkpoint": Path("checkpoints") / f"gaussianhead_{plan.name}" / "gaussianhead_latest",
        "dataset": dataset, "recorder": {"name": f"reenactment_{plan.name}", "result_path": Path("results")},
    })
    return document(config, Remarks(
        f"Stage 3 (reenactment.py): the avatar of {folder.root} moved by {plan.driver}. Preset: {plan.preset}.",
        why, {}, frozenset(UNUSED["reenactment"]), {"dataset": DrivingConfig}))


def read_mesh_widths(plan: Plan, base: MeshHeadTrainConfig) -> MeshHeadConfig:
    """Stage 1's networks for this subject, as mesh_head_file writes them."""
    module, count = base.meshheadmodule, base.meshheadmodule.expression_count
    widths = {key: _adapted(key, getattr(module, key), count, plan.capture.expression_count) for key in WIDTH_KEYS}
    return module.model_copy(update=widths).resolved(plan.capture.expression_count)


def _base(preset: str, stage: str) -> tuple[Any, dict[str, Any]]:
    """A shipped file, and its keys that a stage reads, as plain values."""
    file = PRESETS[preset].format(stage=stage if preset == "published" else stage.removeprefix("train_"))
    config = read_config(Arguments(CONFIG_FOLDER / file, ()), STAGES[stage])
    values = config.model_dump(exclude_unset=True)
    for key in UNUSED[stage] | {"load_meshhead_checkpoint", "load_gaussianhead_checkpoint"}:
        section, _, name = key.rpartition(".")
        (values.get(section, {}) if section else values).pop(name, None)
    return config, values


def _own_widths(given: dict[str, Any], derived: Any, base_count: int, count: int) -> dict[str, Any]:
    """A section in which lists that are derived anyway are left out and the others fit the data's number of expression coefficients."""
    return {key: _adapted(key, value, base_count, count) if key.endswith("_mlp") else value
            for key, value in given.items() if not key.endswith("_mlp") or value != getattr(derived, key) or key == "geo_mlp"}


def _adapted(key: str, widths: tuple[int, ...], base_count: int, count: int) -> tuple[int, ...]:
    return (widths[0] + count - base_count, *widths[1:]) if key.startswith("exp_") and widths else widths


def _pictures(plan: Plan, resolution: int) -> dict[str, Any]:
    size, measures = plan.capture.config.original_resolution, plan.measures
    chosen = {"held_out_cameras": measures.held_out_camera.name, "held_out_sequences": measures.held_out_sequence.name}
    return {
        "dataroot": plan.capture.folder.root, "camera_ids": tuple(plan.capture.camera_ids), "original_resolution": size,
        "resolution": _resolution(resolution, size), **{key: (name,) if name else () for key, name in chosen.items()},
    }


def _resolution(wanted: int, original: int) -> int:
    """Not above what was captured, and divisible as super-resolution needs."""
    return min(wanted, original) // SCALE * SCALE


def _run(plan: Plan, stage: str) -> dict[str, Any]:
    return {"name": f"{stage}_{plan.name}", "logdir": Path("log") / f"{stage}_{plan.name}", "checkpoint_path": Path("checkpoints"),
            "result_path": Path("results")}


def _why(plan: Plan) -> dict[str, str]:
    return {"dataset.held_out_cameras": plan.measures.held_out_camera.reason, "dataset.held_out_sequences": plan.measures.held_out_sequence.reason}


def _why_box(measures: Measures) -> str:
    face = ", ".join(f"{axis} {low:g} to {high:g}" for axis, (low, high) in zip("xyz", measures.face, strict=True))
    return (f"measured: landmarks and 3DMM vertices of all frames span {face}; around the face is room for hair, neck and the back of the head. "
            f"One canonical unit is {measures.scale:.3g} world units. Long hair or shoulders may need more: look at results/check")


def _world(measures: Measures) -> str:
    about = (f"the free view (True) assumes a world in metres, {METRES[0]:g} to {METRES[1]:g} world units per canonical unit; "
             f"here it is {measures.scale:.3g}")
    return about if measures.is_metric else about + ": it would not see the head as meant"
