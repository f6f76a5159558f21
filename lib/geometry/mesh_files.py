"""Coloured triangle meshes as files: Wavefront OBJ and binary glTF 2.0 (.glb)."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lib.errors import InputError
from lib.files import write_whole
from lib.geometry.trimesh import vertex_normals
from lib.tensors import TensorBundle

# Numbers of the glTF 2.0 specification.
UINT32, FLOAT32, ARRAY, ELEMENT_ARRAY, TRIANGLES = 5125, 5126, 34962, 34963, 4
MAGIC, VERSION, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942


@dataclass(frozen=True)
class ColoredMesh(TensorBundle):
    """Vertices in world units, RGB as it is shown (sRGB) in [0,1]; faces are counter-clockwise seen from outside."""

    vertices: Float[Tensor, "N 3"]
    colors: Float[Tensor, "N 3"]
    faces: Int[Tensor, "F 3"]

    def normals(self) -> Float[Tensor, "N 3"]:
        """Unit vertex normals; +z where faces have no area."""
        normals = vertex_normals(self.vertices, self.faces)
        flat = normals.norm(dim=-1, keepdim=True) < 0.5
        return torch.where(flat, torch.tensor([0.0, 0.0, 1.0], device=normals.device), normals)


def write_obj(path: Path, mesh: ColoredMesh, comments: Sequence[str] = ()) -> None:
    """Vertices with colours behind their places (`v x y z r g b`, as MeshLab and Blender read them), normals, faces. Numbers are exact.

    Raises InputError for NaN and where the file cannot be written.
    """
    _check(path, mesh)
    vertices = torch.cat([mesh.vertices, mesh.colors.clamp(0.0, 1.0)], dim=1).tolist()
    lines = [f"# {' '.join(comment.split())}" for comment in comments]
    lines += ["v " + " ".join(f"{value:.9g}" for value in row) for row in vertices]
    lines += ["vn " + " ".join(f"{value:.9g}" for value in row) for row in mesh.normals().tolist()]
    lines += ["f " + " ".join(f"{corner}//{corner}" for corner in row) for row in (mesh.faces + 1).tolist()]
    write_whole(path, "\n".join(lines) + "\n")


def write_glb(path: Path, mesh: ColoredMesh, name: str, copyright_notice: str | None, note: str) -> None:
    """One node with one mesh in one file. Colours are shown as they are, without lights (KHR_materials_unlit): the light is in them.

    Raises InputError for NaN and where the file cannot be written.
    """
    _check(path, mesh)
    vertices = mesh.vertices.detach().cpu().numpy()
    bounds = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
    blocks = [
        (_accessor(0, UINT32, "SCALAR", mesh.faces.numel()), mesh.faces.cpu().numpy().astype("<u4").reshape(-1), ELEMENT_ARRAY),
        (_accessor(1, FLOAT32, "VEC3", len(vertices)) | bounds, vertices, ARRAY),
        (_accessor(2, FLOAT32, "VEC3", len(vertices)), mesh.normals().detach().cpu().numpy(), ARRAY),
        (_accessor(3, FLOAT32, "VEC3", len(vertices)), _linear(mesh.colors.detach().cpu().numpy()), ARRAY),
    ]
    data, views = b"", []
    for _, values, target in blocks:  # four bytes per number, so that every block is aligned
        block = values.astype(values.dtype.newbyteorder("<")).tobytes()
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(block), "target": target})
        data += block
    asset = {"version": "2.0", "generator": "gaussian-head-avatars", "extras": {"note": note}}
    document = {
        "asset": asset if copyright_notice is None else asset | {"copyright": copyright_notice},
        "extensionsUsed": ["KHR_materials_unlit"], "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": [{
            "attributes": {"POSITION": 1, "NORMAL": 2, "COLOR_0": 3}, "indices": 0, "material": 0, "mode": TRIANGLES}]}],
        "materials": [{"name": "vertex colours", "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                       "extensions": {"KHR_materials_unlit": {}}}],
        "accessors": [accessor for accessor, _, _ in blocks], "bufferViews": views, "buffers": [{"byteLength": len(data)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), JSON_CHUNK) + text + struct.pack("<II", len(data), BINARY_CHUNK) + data
    write_whole(path, struct.pack("<III", MAGIC, VERSION, 12 + len(chunks)) + chunks)


def _accessor(view: int, kind: int, shape: str, count: int) -> dict[str, Any]:
    return {"bufferView": view, "componentType": kind, "type": shape, "count": count}


def _linear(colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """sRGB to what glTF wants vertex colours in: linear light."""
    shown = colors.clip(0.0, 1.0).astype(np.float64)
    return np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _check(path: Path, mesh: ColoredMesh) -> None:
    for name in ("vertices", "colors"):
        wrong = ~torch.isfinite(getattr(mesh, name)).all(dim=1)
        if bool(wrong.any()):
            raise InputError(f"{path}: {int(wrong.sum())} of {len(wrong)} {name} are NaN or infinite; is the checkpoint damaged?")
