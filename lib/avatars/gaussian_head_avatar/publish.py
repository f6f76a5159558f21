"""Writes checkpoints as the published system does: bare state dicts under its names. The inverse of published.py, by the same tables."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHeadConfig
from lib.avatars.gaussian_head_avatar.published import GAUSSIAN_NETWORKS, GAUSSIAN_TENSORS, MESH_NETWORKS, MESH_TENSORS, UPSAMPLER, State
from lib.config import Config, write_config
from lib.errors import InputError
from lib.files import remove, write_whole
from lib.networks.upsampler import UpsamplerConfig
from lib.training.checkpoint import Checkpoint

# What the files do not say and a YAML must: keys of the published system. Widths follow from the files.
MESH_KEYS = {"pos_freq", "model_bbox", "dist_threshold_near", "dist_threshold_far", "deform_scale", "subdivide"}
GAUSSIAN_KEYS = {"num_add_mouth_points", "exp_coeffs_dim", "pos_freq", "dist_threshold_near", "dist_threshold_far", "deform_scale",
                 "attributes_scale"}
OPTIONAL = ("delta_poses_latest", "meshhead_latest", "meshhead.yaml")
SUPRES_KEYS = {"input_dim", "output_dim", "network_capacity"}


class MeshOptions(Config):
    """meshhead.yaml beside the files: to be laid over a YAML file of stage 1 or 2 with a further --config."""

    load_meshhead_checkpoint: Path
    meshheadmodule: dict[str, Any]


class GaussianOptions(Config):
    """gaussianhead.yaml beside the files: to be laid over a YAML file of stage 2 or 3."""

    load_gaussianhead_checkpoint: Path
    load_supres_checkpoint: Path
    load_delta_poses_checkpoint: Path | None = None
    gaussianheadmodule: dict[str, Any]
    supresmodule: dict[str, Any]


def check_publishable(head: Checkpoint) -> GaussianHeadConfig:
    """The options of its Gaussian head. Raises InputError for a head that the published system would draw otherwise."""
    config = head.options("gaussianheadmodule", GaussianHeadConfig)
    if config.pose_deform_at != "undeformed":
        raise InputError(f"{head.path}: was trained with gaussianheadmodule.pose_deform_at {config.pose_deform_at}, which the published system "
                         "does not know: it would draw another head. Export it as a bundle")
    if head.options("supresmodule", UpsamplerConfig).skip:
        raise InputError(f"{head.path}: was trained with supresmodule.skip, which the published system does not know: it would draw other colours. "
                         "Export it as a bundle")
    return config


def write_published(folder: Path, head: Checkpoint, mesh: Checkpoint | None) -> list[Path]:
    """Writes {gaussianhead,supres,delta_poses,meshhead}_latest, the third where the head has pose offsets, the last where there is `mesh`,
    and YAML files with what they do not hold; returns all paths. Those of an earlier export that this one has not are removed.

    Raises InputError for what cannot be written, and as `check_publishable` does.
    """
    config = check_publishable(head)
    state = head.module("gaussianhead")
    files: dict[str, State | Tensor] = {
        "gaussianhead": {name: state[name] for name in GAUSSIAN_TENSORS} | _networks(state, GAUSSIAN_NETWORKS),
        "supres": {theirs: head.module("supres")[ours] for theirs, ours in UPSAMPLER.items()},
    }
    if "delta_poses" in head.modules:
        files["delta_poses"] = head.module("delta_poses")["delta"]
    if mesh is not None:
        state = mesh.module("meshhead")
        files["meshhead"] = {name: state[name] for name in MESH_TENSORS} | _networks(state, MESH_NETWORKS)
    paths = {name: folder / f"{name}_latest" for name in files}
    for name in OPTIONAL:
        remove(folder / name)
    for name, content in files.items():
        file = io.BytesIO()
        torch.save(content, file)
        write_whole(paths[name], file.getvalue())
    options: dict[str, Config] = {"gaussianhead.yaml": GaussianOptions(
        load_gaussianhead_checkpoint=paths["gaussianhead"], load_supres_checkpoint=paths["supres"],
        load_delta_poses_checkpoint=paths.get("delta_poses"), gaussianheadmodule=config.model_dump(mode="json", include=GAUSSIAN_KEYS),
        supresmodule=head.options("supresmodule", UpsamplerConfig).model_dump(mode="json", include=SUPRES_KEYS),
    )}
    if mesh is not None:
        section = mesh.options("meshheadmodule", MeshHeadConfig).model_dump(mode="json", include=MESH_KEYS)
        options["meshhead.yaml"] = MeshOptions(load_meshhead_checkpoint=paths["meshhead"], meshheadmodule=section)
    for name, values in options.items():
        write_config(values, folder / name)
    return [*paths.values(), *(folder / name for name in options)]


def _networks(state: State, names: dict[str, tuple[str, str]]) -> State:
    """Linear layer i of a network as `<its list of widths>.conv<i>`, a 1x1 convolution."""
    key_of = dict(names.values())
    renamed = {}
    for name, value in state.items():
        network, layers, rest = name.partition(".layers.")
        if layers and network in key_of:
            layer, kind = rest.split(".")
            renamed[f"{key_of[network]}.conv{layer}.{kind}"] = value[..., None] if kind == "weight" else value
    return renamed
