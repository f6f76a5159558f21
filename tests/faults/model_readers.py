"""Checkpoints of both stages, bundles, published files and face models, small and random, with the readers of each."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lib.avatars.gaussian_head_avatar.avatar import avatar_from
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHead, GaussianHeadConfig
from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.handover import mesh_head_from
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHead, MeshHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.avatars.gaussian_head_avatar.publish import write_published
from lib.avatars.gaussian_head_avatar.published import read_gaussian_head, read_mesh_head
from lib.datasets.head_capture import CaptureRecord
from lib.face_models.bfm import read_bfm
from lib.face_models.faceverse import read_faceverse
from lib.face_models.flame import read_flame
from lib.networks.upsampler import Upsampler
from lib.training.bundle import Leaflet, read_bundle, write_bundle
from lib.training.checkpoint import read_checkpoint, save_checkpoint
from lib.training.stage import AbstractStage
from tests.face_models import lookalikes
from tests.faults import declared
from tests.faults import mutations as m
from tests.faults.target import CAMERAS, FRAMES, Target, bytes_and, written
from tests.tiny import EXPRESSIONS, MESH_WIDTHS, gaussian_dict, mesh_dict

LANDMARKS = 66 + 3  # with every 100th of 210 vertices


@dataclass(frozen=True)
class Avatar:
    """Two stages as training would save them, with random weights."""

    mesh: Path
    head: Path


class Saved(AbstractStage):
    """Has a state, and never trains."""

    def __init__(self, name: str, config: Any, modules: dict[str, torch.nn.Module], optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.name, self.config, self.modules, self.optimizers = name, config, torch.nn.ModuleDict(modules), optimizers

    def step(self, batch: Any, step: int) -> Any:
        raise NotImplementedError

    compare = step


def write_avatar(root: Path) -> Avatar:
    torch.manual_seed(0)
    mesh = MeshHeadTrainConfig.model_validate(mesh_dict(root, root))
    mesh = mesh.model_copy(update={"meshheadmodule": mesh.meshheadmodule.model_copy(update={"grid_cells": 4}).resolved(EXPRESSIONS)})
    head = GaussianHeadTrainConfig.model_validate(gaussian_dict(root, root))
    head = head.model_copy(update={"gaussianheadmodule": head.gaussianheadmodule.resolved(mesh.meshheadmodule, EXPRESSIONS)})
    modules = {"meshhead": MeshHead(mesh.meshheadmodule, LANDMARKS)}, {
        "gaussianhead": GaussianHead(head.gaussianheadmodule, 12, LANDMARKS), "supres": Upsampler(head.supresmodule)}
    record = CaptureRecord(FRAMES, ("ab", "cd", "ef"), FRAMES, CAMERAS, *((0.5,) * EXPRESSIONS,) * 3, (0.1,))
    paths = []
    for name, config, held in zip(("meshhead", "gaussianhead"), (mesh, head), modules, strict=True):
        for module in held.values():
            torch.nn.init.normal_(next(module.parameters()))
        adam = torch.optim.Adam([parameter for module in held.values() for parameter in module.parameters()])
        sum(parameter.sum() for module in held.values() for parameter in module.parameters()).backward()
        adam.step()
        paths.append(root / f"{name}_latest")
        save_checkpoint(paths[-1], Saved(name, config, held, {"all": adam}), 7, 21.5, 60.0, record, [])
    return Avatar(*paths)


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def checkpoints(root: Path) -> Iterator[Target]:
    avatar = write_avatar(root)
    key = "load_meshhead_checkpoint"
    yield Target("mesh-head checkpoint", "checkpoint", avatar.mesh, lambda: mesh_head_from(read_mesh_head(avatar.mesh, key, None)),
                 declared.of_torch(loaded(avatar.mesh)), checked=True)
    yield Target("gaussian-head checkpoint", "checkpoint", avatar.head, lambda: avatar_from(read_gaussian_head(
        avatar.head, "load_gaussianhead_checkpoint", None, None, None)), declared.of_torch(loaded(avatar.head)), checked=True)

    def resumed() -> Any:
        checkpoint = read_checkpoint(avatar.mesh, "meshhead", "resume")
        head = MeshHead(MeshHeadConfig.model_validate(checkpoint.section("meshheadmodule")).model_copy(update={"grid_cells": 4}), LANDMARKS)
        adam = torch.optim.Adam(head.parameters())
        checkpoint.restore(Saved("meshhead", None, {"meshhead": head}, {"all": adam}))
        return head, adam.state_dict(), checkpoint.step, checkpoint.data
    yield Target("checkpoint to resume", "checkpoint", avatar.mesh, resumed, declared.of_torch(loaded(avatar.mesh)), checked=True)

    bundle = root / "me.avatar"
    checkpoint = read_checkpoint(avatar.head, "gaussianhead", "test")
    write_bundle(bundle, checkpoint, ("gaussianheadmodule", "supresmodule", "meshheadmodule"),
                 Leaflet("CC0", torch.zeros(3, 8, 8, dtype=torch.uint8), None))
    others = (m.Damage("wrong content", "other arrays", lambda data, rng: other_bundle(root, checkpoint, rng)),) * 4
    yield Target("bundle", "bundle", bundle, lambda: avatar_from(read_bundle(bundle, "gaussianhead", "test")), bytes_and(declared.ZIP, others), True)


def other_bundle(root: Path, checkpoint: Any, rng: np.random.Generator) -> bytes:
    """Written whole, with right checksums, from a checkpoint that is wrong."""
    wrong = SimpleNamespace(**vars(checkpoint) | {"modules": m.bent(checkpoint.modules, rng), "data": None})
    path = root / "wrong.avatar"
    try:
        write_bundle(path, wrong, ("gaussianheadmodule", "supresmodule"), Leaflet("CC0", torch.zeros(3, 8, 8, dtype=torch.uint8), None))
    except Exception:  # noqa: BLE001 (what cannot be written cannot be read)
        return b""
    return path.read_bytes()


def published(root: Path) -> Iterator[Target]:
    avatar = write_avatar(root)
    head, mesh = read_checkpoint(avatar.head, "gaussianhead", "test"), read_checkpoint(avatar.mesh, "meshhead", "test")
    write_published(root / "bare", head, mesh)
    torch.save(torch.randn(3, 6), root / "bare" / "delta_poses_latest")
    parts = {name: root / "bare" / f"{name}_latest" for name in ("gaussianhead", "supres", "delta_poses", "meshhead")}
    section = head.config["gaussianheadmodule"]
    options = GaussianHeadConfig.model_validate({key: section[key] for key in ("dist_threshold_near", "dist_threshold_far")})

    def whole() -> Any:
        checkpoint = read_gaussian_head(parts["gaussianhead"], "load_gaussianhead_checkpoint", options, None, parts["supres"], parts["delta_poses"])
        return avatar_from(checkpoint), checkpoint.modules["delta_poses"]
    given = MeshHeadConfig.model_validate({"geo_mlp": MESH_WIDTHS["geo_mlp"]})
    for name, path in parts.items():
        read = whole if name != "meshhead" else lambda: mesh_head_from(read_mesh_head(parts["meshhead"], "load_meshhead_checkpoint", given))
        yield Target(f"published {name}", "published state dict", path, read, declared.of_torch(loaded(path)), checked=True)


def face_models(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    arrays, embedding = lookalikes.write_flame(root, monkeypatch)
    pkl, lmk = root / "generic_model.pkl", root / "landmark_embedding.npy"
    yield Target("FLAME", "pkl", pkl, lambda: read_flame(pkl), declared.of_pickle(arrays, declared.pickled))
    yield Target("FLAME's landmarks", "pkl", lmk, lambda: read_flame(pkl), declared.of_pickle(embedding, m.dump_npy))
    path = root / "faceverse.npy"
    yield Target("FaceVerse", "pkl", path, lambda: read_faceverse(path), declared.of_pickle(lookalikes.write_faceverse(path), m.dump_npy))
    for compress in (True, False):
        mat = root / f"bfm{compress}.mat"
        content = {key: value for key, value in lookalikes.write_bfm(mat, compress=compress).items() if key != "parts"}
        yield Target(f"BFM {'packed' if compress else 'plain'}", "mat", mat, lambda mat=mat: read_bfm(mat),
                     bytes_and(m.bending(content, lambda value, root=root: dump_mat(root, value)), declared.MAT), checked=compress)
    numeric = {key: value for key, value in content.items() if key not in ("note", "parts")}
    npz = written(root / "bfm.npz", m.dump_npz(numeric))
    yield Target("BFM npz", "npz", npz, lambda: read_bfm(npz), declared.of_npz(numeric), checked=True)


def dump_mat(root: Path, value: dict[str, Any]) -> bytes:
    import scipy.io
    file = io.BytesIO()
    try:
        scipy.io.savemat(file, {key: item for key, item in value.items() if item is not None})
    except Exception:  # noqa: BLE001 (what cannot be written cannot be read)
        return b""
    return file.getvalue()
