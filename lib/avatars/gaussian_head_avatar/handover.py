"""From a trained mesh head to the first Gaussian head."""

import torch
from jaxtyping import Float
from torch import Tensor

from lib.avatars.gaussian_head_avatar.gaussian_head import SHARED_NETWORKS, GaussianHead, GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHead, MeshHeadConfig
from lib.datasets.layout import MOUTH_ROWS
from lib.gaussians.init import isotropic_log_scales
from lib.tensors import keyed_generator
from lib.training.checkpoint import Checkpoint, load_module

# atanh of a saturated feature is infinite, and interpolation can even exceed 1: users meet NaN after long training.
FEATURE_LIMIT = 1.0 - 1e-5
START_OPACITY = 0.3
MOUTH_BOX = 0.8  # half-size of the mouth box, of the largest offset of a mouth landmark from its centre


def mesh_head_from(checkpoint: Checkpoint) -> MeshHead:
    """The mesh head of a stage-1 checkpoint."""
    config = checkpoint.options("meshheadmodule", MeshHeadConfig)
    state = checkpoint.module("meshhead")
    # The grid is stored, so none needs to be generated: the smallest one stands in until the state is loaded.
    head = MeshHead(config.model_copy(update={"grid_cells": 2, "grid_file": None}), len(state.get("landmarks_3d_neutral", ())))
    head.tet_verts, head.tets = torch.empty_like(state["tet_verts"]), torch.empty_like(state["tets"])
    load_module(head, state, f"{checkpoint.path}: module 'meshhead'")
    head.config = config
    return head


def hand_over(mesh_head: MeshHead, config: GaussianHeadConfig, seed: int) -> GaussianHead:
    """A Gaussian at every vertex of the once more subdivided neutral surface, and `num_add_mouth_points` in the mouth.

    `config` must be resolved. Raises InputError when the mesh head has no surface.
    """
    with torch.no_grad():
        surface = mesh_head.neutral_surface(subdivisions=int(mesh_head.config.subdivide) + 1)
        landmarks = mesh_head.landmarks_3d_neutral
        mouth = mouth_points(landmarks, config.num_add_mouth_points, seed)
        xyz = torch.cat([surface.vertices, mouth])
        feature = torch.cat([surface.features, surface.features.new_zeros(len(mouth), surface.features.shape[1])])

        head = GaussianHead(config, len(xyz), len(landmarks)).to(xyz.device)
        head.landmarks_3d_neutral.copy_(landmarks)
        head.xyz.copy_(xyz)
        head.feature.copy_(feature.clamp(-FEATURE_LIMIT, FEATURE_LIMIT).atanh())
        head.scales.copy_(isotropic_log_scales(xyz))
        head.rotation.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        head.opacity.fill_(torch.tensor(START_OPACITY).logit())
        for network in SHARED_NETWORKS:
            getattr(head, network).load_state_dict(getattr(mesh_head, network).state_dict())
    return head


def mouth_points(landmarks: Float[Tensor, "L 3"], count: int, seed: int) -> Float[Tensor, "M 3"]:
    """Uniform points in a box around the mouth landmarks, centred at their rearmost depth."""
    mouth = landmarks[MOUTH_ROWS]
    centre = mouth.mean(dim=0)
    centre[2] = mouth[:, 2].min()
    half = MOUTH_BOX * (mouth - centre).abs().amax(dim=0)
    uniform = torch.rand(count, 3, generator=keyed_generator(seed, 2)).to(landmarks)
    return centre + (2.0 * uniform - 1.0) * half
