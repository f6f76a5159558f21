"""Reads checkpoints: ours as they are, those of the published system (bare state dicts) through a map of names.

A published file holds tensors only. What shapes do not say (thresholds, scales, encoding frequencies) comes from the
configuration that names it, so that must be the one it was trained with.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.errors import InputError
from lib.geometry.tetmesh import TetGrid, oriented
from lib.networks.positional_encoding import encoded_width
from lib.networks.upsampler import UpsamplerConfig
from lib.training.bundle import is_bundle, read_bundle
from lib.training.checkpoint import Checkpoint, is_checkpoint, is_plain, parse_checkpoint, read_file

# Layer <i> of a published MLP, as a 1x1 convolution of shape (out, in, 1).
_LAYER = re.compile(r"^(?P<network>\w+?)(_mlp)?\.conv(?P<layer>\d+)\.(?P<kind>weight|bias)$")
# The tables of names, for both directions (publish.py writes what this file reads).
# Published network names without "_mlp" -> ours and the configuration list of its widths.
MESH_NETWORKS = {name: (name, f"{name}_mlp") for name in ("exp_color", "pose_color", "exp_deform", "pose_deform")}
GAUSSIAN_NETWORKS = MESH_NETWORKS | {name: (name, f"{name}_mlp") for name in ("exp_attributes", "pose_attributes")}
MESH_NETWORKS |= {"geo": ("geometry", "geo_mlp")}
# Tensors of the same name in both.
MESH_TENSORS = ("landmarks_3d_neutral", "tet_verts", "tets")
GAUSSIAN_TENSORS = ("xyz", "feature", "scales", "rotation", "opacity", "landmarks_3d_neutral")
UPSAMPLER = {
    f"upsampler.{theirs}.double_conv.{layer}.weight": f"{ours}.{layer}.weight"
    for theirs, ours in (("inc", "entry"), ("up1.conv", "up1"), ("up2.conv", "up2")) for layer in (0, 3)
} | {f"upsampler.outc.conv.{kind}": f"exit.{kind}" for kind in ("weight", "bias")}

State = dict[str, Tensor]


def read_mesh_head(path: Path, key: str, config: MeshHeadConfig | None) -> Checkpoint:
    """A stage-1 checkpoint, ours or published (then with the options of `config`); `key` is the configuration key that named it.

    Raises InputError for a file that is neither, or whose tensors do not fit together.
    """
    state = read_file(path, key)
    if is_checkpoint(state):
        return parse_checkpoint(state, path, "meshhead", key)
    tensors = _tensors(state, path, key, *MESH_TENSORS)
    networks, widths, rest = _networks(tensors, MESH_NETWORKS, f"{key}: {path}")
    resolved = _with_widths(config or MeshHeadConfig(), widths, "meshheadmodule", path)
    vertices, tets = rest.pop("tet_verts").float(), rest.pop("tets").long()
    if vertices.shape[1:] != (3,) or tets.shape[1:] != (4,) or int(tets.min()) < 0 or int(tets.max()) >= len(vertices):
        raise InputError(f"{key}: {path}: expected tet_verts (N,3) and tets (T,4) below N, found {tuple(vertices.shape)} and {tuple(tets.shape)}")
    grid = oriented(TetGrid(vertices, tets))
    module = networks | {"landmarks_3d_neutral": rest.pop("landmarks_3d_neutral").float(), "tet_verts": grid.vertices, "tets": grid.tets}
    _report(key, path, f"mesh head, {len(grid.vertices):,} grid vertices, {len(module['landmarks_3d_neutral'])} landmarks", widths, rest)
    return _checkpoint(path, "meshhead", {"meshheadmodule": resolved.model_dump(mode="json")}, {"meshhead": module})


def read_gaussian_head(
    path: Path, key: str, head: GaussianHeadConfig | None, upsampler: UpsamplerConfig | None, supres_path: Path | None,
    poses_path: Path | None = None, mesh_head: MeshHeadConfig | None = None,
) -> Checkpoint:
    """A stage-2 checkpoint, or the bundle of one. Ours hold everything; a published one is completed by the files of
    load_supres_checkpoint (required) and load_delta_poses_checkpoint (optional).

    Raises InputError for a file that is none of these, or whose tensors do not fit together.
    """
    bundled = is_bundle(path)
    state = None if bundled else read_file(path, key)
    if bundled or is_checkpoint(state):
        for other_key, other in (("load_supres_checkpoint", supres_path), ("load_delta_poses_checkpoint", poses_path)):
            if other is not None and other.exists():
                print(f"{other_key}: {other} is not used: {path} is a checkpoint of this project and holds its own")
        return read_bundle(path, "gaussianhead", key) if bundled else parse_checkpoint(state, path, "gaussianhead", key)
    tensors = _tensors(state, path, key, *GAUSSIAN_TENSORS)
    networks, widths, rest = _networks(tensors, GAUSSIAN_NETWORKS, f"{key}: {path}")
    config = head or GaussianHeadConfig()
    resolved = _with_widths(config, widths, "gaussianheadmodule", path)
    expressions = widths["exp_deform_mlp"][0] - encoded_width(3, config.pos_freq)
    if config.exp_coeffs_dim not in (None, expressions):
        raise InputError(f"gaussianheadmodule.exp_coeffs_dim is {config.exp_coeffs_dim}, but {path} has {expressions} "
                         f"(= exp_deform_mlp[0] {widths['exp_deform_mlp'][0]} - {encoded_width(3, config.pos_freq)} encoded position)")
    resolved = resolved.model_copy(update={"exp_coeffs_dim": expressions})
    module = networks | {name: rest.pop(name).float() for name in GAUSSIAN_TENSORS} | {"own_pose": torch.zeros(6)}
    _report(key, path, f"Gaussian head, {len(module['xyz']):,} Gaussians, {len(module['landmarks_3d_neutral'])} landmarks; "
                       "it does not know its own pose: head_pose own is the origin", widths, rest)
    if supres_path is None:
        raise InputError(f"load_supres_checkpoint: {path} ({key}) is a published checkpoint without its super-resolution network; name supres_latest "
                         "here (of an avatar in `beside` it must lie beside the file)")
    supres, capacity = _read_upsampler(supres_path, upsampler)
    modules = {"gaussianhead": module, "supres": supres}
    if poses_path is not None:
        modules["delta_poses"] = {"delta": _read_poses(poses_path)}
    options = {"gaussianheadmodule": resolved, "supresmodule": capacity, "meshheadmodule": mesh_head or MeshHeadConfig()}
    return _checkpoint(path, "gaussianhead", {section: values.model_dump(mode="json") for section, values in options.items()}, modules)


def refuse_published(path: Path) -> None:
    """Raises InputError when a run's own latest checkpoint is a published file, which training would overwrite."""
    if path.exists() and _looks_published(read_file(path, "resume")):
        raise InputError(f"{path}: is a published checkpoint in this run's own folder, where training would replace it. Move it elsewhere and "
                         "name it in its load_* key to start from it, or choose another recorder.name")


def _looks_published(state: Any) -> bool:
    return isinstance(state, Mapping) and ("xyz" in state or "tet_verts" in state)


def _read_upsampler(path: Path, given: UpsamplerConfig | None) -> tuple[State, UpsamplerConfig]:
    key = "load_supres_checkpoint"
    tensors = _tensors(read_file(path, key), path, key, *UPSAMPLER)
    rest = dict(tensors)
    state = {ours: rest.pop(theirs).float() for theirs, ours in UPSAMPLER.items()}
    entry, last = state["entry.0.weight"], state["exit.weight"]
    found = UpsamplerConfig(input_dim=entry.shape[1], output_dim=last.shape[0], network_capacity=last.shape[1])
    if given is not None:
        for name in given.model_fields_set & {"input_dim", "output_dim", "network_capacity"}:
            if getattr(given, name) != getattr(found, name):
                raise InputError(f"supresmodule.{name} is {getattr(given, name)}, but {path} has {getattr(found, name)}; correct it or leave it out")
    _report(key, path, f"super-resolution, {found.input_dim} channels to {found.output_dim}, capacity {found.network_capacity}", {}, rest)
    return state, found


def _read_poses(path: Path) -> Tensor:
    key = "load_delta_poses_checkpoint"
    delta = read_file(path, key)
    if not is_plain(delta) or delta.ndim != 2 or delta.shape[1] != 6 or not bool(torch.isfinite(delta).all()):
        raise InputError(f"{key}: {path}: expected a published tensor of shape (frames, 6), finite, found {_describe(delta)}")
    print(f"{key}: {path}: published pose offsets of {len(delta)} frames, taken in sorted order of the frame names")
    return delta.detach().float()


def _tensors(state: Any, path: Path, key: str, *needed: str) -> State:
    """The state dict, if it is one with the needed names and finite values."""
    if not isinstance(state, Mapping) or not all(is_plain(value) for value in state.values()):
        raise InputError(f"{key}: {path}: expected a checkpoint of this project or a published state dict, found {_describe(state)}")
    missing = [name for name in needed if name not in state]
    if missing:
        raise InputError(f"{key}: {path}: neither a checkpoint of this project nor the published file for this key: '{missing[0]}' is missing; "
                         f"it holds {_describe(state)}")
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise InputError(f"{key}: {path}: '{broken[0]}' holds NaN or infinity; published long trainings can end so: take an earlier epoch")
    flat = [name for name, value in state.items() if value.ndim < 2 and not name.endswith("bias")]
    if flat:
        raise InputError(f"{key}: {path}: '{flat[0]}' has shape {tuple(state[flat[0]].shape)}, expected at least two dimensions")
    return {name: value.detach() for name, value in state.items()}


def _networks(state: State, names: dict[str, tuple[str, str]], what: str) -> tuple[State, dict[str, tuple[int, ...]], State]:
    """Renamed MLP tensors, the widths of every MLP, and the tensors that belong to none."""
    layers: dict[str, dict[int, State]] = {name: {} for name in names}
    rest = {}
    for name, value in state.items():
        match = _LAYER.match(name)
        if match is None or match["network"] not in names:
            rest[name] = value
        else:
            layers[match["network"]].setdefault(int(match["layer"]), {})[match["kind"]] = value
    renamed: State = {}
    widths: dict[str, tuple[int, ...]] = {}
    for name, (ours, key) in names.items():
        numbers = sorted(layers[name])
        gap = numbers != list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        if gap or any(layers[name][number].keys() != {"weight", "bias"} for number in numbers):
            raise InputError(f"{what}: the published network '{key}' is missing or incomplete (layers found: {numbers})")
        weights = [layers[name][number]["weight"].float().flatten(1) for number in numbers]
        widths[key] = (weights[0].shape[1], *(weight.shape[0] for weight in weights))
        for position, (number, weight) in enumerate(zip(numbers, weights, strict=True)):
            expected = widths[key][position] + (widths[key][0] if position == len(widths[key]) // 2 else 0)
            if weight.shape[1] != expected:
                raise InputError(f"{what}: '{key}.conv{number}' takes {weight.shape[1]} inputs, expected {expected} for widths {list(widths[key])}")
            renamed[f"{ours}.layers.{position}.weight"] = weight
            renamed[f"{ours}.layers.{position}.bias"] = layers[name][number]["bias"].float()
    return renamed, widths, rest


def _with_widths(config: Any, widths: dict[str, tuple[int, ...]], section: str, path: Path) -> Any:
    """The configuration with the widths of the file; a list that was written must be equal."""
    for key, found in widths.items():
        if key in config.model_fields_set and getattr(config, key) not in ((), found):
            raise InputError(f"{section}.{key} is {list(getattr(config, key))}, but {path} has {list(found)}; correct it or leave it out")
    return config.model_copy(update=widths)


def _checkpoint(path: Path, stage: str, config: dict[str, Any], modules: dict[str, State]) -> Checkpoint:
    return Checkpoint(stage=stage, step=0, best_psnr=float("-inf"), seconds=0.0, config=config, data=None, modules=modules, optimizers={}, path=path)


def _report(key: str, path: Path, what: str, widths: dict[str, tuple[int, ...]], left: State) -> None:
    print(f"{key}: {path}: published {what}")
    for name, values in widths.items():
        print(f"  {name} {list(values)}")
    if left:
        print(f"  not used: {', '.join(f'{name} {tuple(value.shape)}' for name, value in left.items())}")


def _describe(state: Any) -> str:
    if isinstance(state, Tensor):
        return f"one tensor of shape {tuple(state.shape)}"
    if isinstance(state, Mapping):
        names = sorted(map(str, state))
        return f"{len(names)} entries ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
    return type(state).__name__
