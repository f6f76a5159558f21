"""OBJ and glTF files, read by parsers of their own."""

import dataclasses
import json
import math
import struct

import numpy as np
import pytest
import torch

from lib.errors import InputError
from lib.geometry.mesh_files import ColoredMesh, write_glb, write_obj

COMPONENTS, BYTES = {"SCALAR": 1, "VEC3": 3}, {5125: ("<u4", 4), 5126: ("<f4", 4)}


def a_mesh() -> ColoredMesh:
    """A tetrahedron, and a face without area at a vertex of its own."""
    torch.manual_seed(0)
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 3, 3]]) + 0.1 * torch.rand(5, 3)
    return ColoredMesh(vertices, torch.rand(5, 3), torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3], [4, 4, 4]]))


def parse_glb(data: bytes) -> tuple[dict, list[np.ndarray]]:
    """The document and the content of every accessor, after the checks that the specification of glTF 2.0 asks for."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data)) and length % 4 == 0
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(data[20:20 + size].decode("utf-8"))
    binary_size, binary_kind = struct.unpack_from("<I4s", data, 20 + size)
    binary = data[28 + size:]
    assert binary_kind == b"BIN\0" and binary_size == len(binary) and binary_size % 4 == 0
    [buffer] = document["buffers"]
    assert buffer == {"byteLength": len(binary)}
    contents = []
    for accessor in document["accessors"]:
        view = document["bufferViews"][accessor["bufferView"]]
        kind, item = BYTES[accessor["componentType"]]
        count = accessor["count"] * COMPONENTS[accessor["type"]]
        assert view["byteOffset"] % item == 0 and view["byteLength"] == count * item
        assert view["byteOffset"] + view["byteLength"] <= buffer["byteLength"]
        values = np.frombuffer(binary, kind, count, view["byteOffset"])
        contents.append(values if accessor["type"] == "SCALAR" else values.reshape(-1, 3))
        if "min" in accessor:
            assert accessor["min"] == contents[-1].min(axis=0).tolist() and accessor["max"] == contents[-1].max(axis=0).tolist()
    return document, contents


def test_a_glb_holds_the_mesh(tmp_path):
    mesh = a_mesh()
    write_glb(tmp_path / "a.glb", mesh, "head", "Somebody, CC BY", "metres")
    document, contents = parse_glb((tmp_path / "a.glb").read_bytes())
    assert document["asset"]["version"] == "2.0" and document["asset"]["copyright"] == "Somebody, CC BY"
    assert document["asset"]["extras"] == {"note": "metres"} and document["extensionsUsed"] == ["KHR_materials_unlit"]
    [node], [scene], [shape] = document["nodes"], document["scenes"], document["meshes"]
    assert (node, scene, document["scene"]) == ({"mesh": 0, "name": "head"}, {"nodes": [0]}, 0)
    [primitive] = shape["primitives"]
    assert primitive["mode"] == 4 and document["materials"][primitive["material"]]["extensions"] == {"KHR_materials_unlit": {}}
    indices, (positions, normals, colors) = contents[primitive["indices"]], (
        contents[primitive["attributes"][name]] for name in ("POSITION", "NORMAL", "COLOR_0"))
    assert {"min", "max"} <= document["accessors"][primitive["attributes"]["POSITION"]].keys()  # the specification asks for them there
    assert np.array_equal(indices.reshape(-1, 3), mesh.faces.numpy()) and indices.max() < len(positions) == len(normals) == len(colors)
    assert np.array_equal(positions, mesh.vertices.numpy())
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-6)
    assert ((normals[:4] * (positions[:4] - positions[:4].mean(axis=0))).sum(axis=1) > 0).all()  # outward


def test_colors_of_a_glb_are_linear_light(tmp_path):
    shown = torch.tensor([[0.0, 0.02, 0.5], [1.0, 0.25, 1.5], [-0.5, 0.75, 0.04045]])
    write_glb(tmp_path / "a.glb", ColoredMesh(torch.rand(3, 3), shown, torch.tensor([[0, 1, 2]])), "head", None, "")
    document, contents = parse_glb((tmp_path / "a.glb").read_bytes())
    assert "copyright" not in document["asset"]
    linear = [[0.0, 0.02 / 12.92, 0.21404114], [1.0, 0.05087609, 1.0], [0.0, 0.52252155, 0.00313080]]  # IEC 61966-2-1
    np.testing.assert_allclose(contents[3], linear, atol=1e-7)


def test_an_obj_holds_the_mesh_to_the_bit(tmp_path):
    mesh = a_mesh()
    write_obj(tmp_path / "a.obj", mesh, ["Somebody,\nCC BY"])
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert lines[0] == "# Somebody, CC BY"
    rows = {kind: [line.split()[1:] for line in lines if line.split()[0] == kind] for kind in ("v", "vn", "f")}
    assert sum(len(values) for values in rows.values()) == len(lines) - 1
    vertices = np.array(rows["v"], dtype=np.float32)
    assert np.array_equal(vertices[:, :3], mesh.vertices.numpy()) and np.array_equal(vertices[:, 3:], mesh.colors.numpy())
    assert np.array_equal(np.array(rows["vn"], dtype=np.float32), mesh.normals().numpy())
    corners = [[corner.split("//") for corner in face] for face in rows["f"]]
    assert [[int(place) - 1 for place, _ in face] for face in corners] == mesh.faces.tolist()
    assert all(place == normal for face in corners for place, normal in face)


@pytest.mark.parametrize("write", [
    lambda path, mesh: write_obj(path, mesh), lambda path, mesh: write_glb(path, mesh, "head", None, ""),
])
def test_nan_is_never_written(tmp_path, write):
    mesh = a_mesh()
    colors = mesh.colors.clone()
    colors[2, 1] = math.nan
    with pytest.raises(InputError, match="a.obj: 1 of 5 colors are NaN or infinite"):
        write(tmp_path / "a.obj", dataclasses.replace(mesh, colors=colors))
    assert list(tmp_path.iterdir()) == []
