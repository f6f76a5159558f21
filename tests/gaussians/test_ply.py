"""PLY files of Gaussians: read by a parser of its own, to the bit; what is no such file is refused."""

import dataclasses
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.gaussians.ply import Splats, read_ply, write_ply
from lib.geometry.camera import Camera
from lib.render.gaussian.interface import rasterize

STANDARD = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2",
            "rot_0", "rot_1", "rot_2", "rot_3"]
COUNT = 40


def a_cloud(seed: int = 0) -> GaussianCloud:
    torch.manual_seed(seed)
    return GaussianCloud(
        means=0.3 * torch.randn(1, COUNT, 3), quats_wxyz=torch.nn.functional.normalize(torch.randn(1, COUNT, 4), dim=-1),
        scales=torch.rand(1, COUNT, 3) * 0.1 + 1e-4, opacities=torch.rand(1, COUNT), features=torch.rand(1, COUNT, 3),
    )


def parse(data: bytes) -> tuple[list[str], list[dict[str, float]]]:
    """Comments and vertices of a PLY file of floats."""
    header, body = data.split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(next(line for line in lines if line.startswith("element vertex ")).split()[2])
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    assert len(lines) == 2 + sum(line.startswith("comment ") for line in lines) + 1 + len(names)
    assert names == STANDARD and len(body) == count * 4 * len(names)
    vertices = [dict(zip(names, struct.unpack_from(f"<{len(names)}f", body, row * 4 * len(names)), strict=True)) for row in range(count)]
    return [line.removeprefix("comment ") for line in lines if line.startswith("comment ")], vertices


def table(vertices: list[dict[str, float]], *names: str) -> np.ndarray:
    return np.array([[vertex[name] for name in names] for vertex in vertices])


def camera(size: int = 32) -> Camera:
    return Camera(torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2.0]]]), torch.tensor([[[40.0, 0, size / 2], [0, 40, size / 2], [0, 0, 1]]]),
                  size, size)


def test_another_parser_finds_what_viewers_expect(tmp_path):
    cloud = a_cloud()
    write_ply(tmp_path / "a.ply", Splats.of(cloud), ["first", "second\nline"])
    comments, vertices = parse((tmp_path / "a.ply").read_bytes())
    assert comments == ["first", "second line"] and len(vertices) == COUNT
    assert np.array_equal(table(vertices, "x", "y", "z").astype(np.float32), cloud.means[0].numpy())
    assert not table(vertices, "nx", "ny", "nz").any()
    colors = 0.5 + 0.28209479177387814 * table(vertices, "f_dc_0", "f_dc_1", "f_dc_2")
    np.testing.assert_allclose(colors, cloud.features[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(1.0 / (1.0 + np.exp(-table(vertices, "opacity")[:, 0])), cloud.opacities[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(np.exp(table(vertices, "scale_0", "scale_1", "scale_2")), cloud.scales[0].numpy(), rtol=1e-6)
    quats = table(vertices, "rot_0", "rot_1", "rot_2", "rot_3")
    np.testing.assert_allclose(quats, cloud.quats_wxyz[0].numpy(), atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1.0, atol=1e-6)


def test_comments_become_ascii_as_headers_must_be(tmp_path):
    write_ply(tmp_path / "a.ply", Splats.of(a_cloud()), ["© 2026 Jörg Müller, CC BY 4.0", "fits ☺"])
    comments, _ = parse((tmp_path / "a.ply").read_bytes())  # decodes as ASCII, as other readers do
    assert comments == ["(c) 2026 Jorg Muller, CC BY 4.0", "fits \\u263a"]


def test_what_is_read_is_what_was_written_to_the_bit(tmp_path):
    splats = Splats.of(a_cloud())
    write_ply(tmp_path / "a.ply", splats)
    read = read_ply(tmp_path / "a.ply")
    for field in dataclasses.fields(Splats):
        assert torch.equal(getattr(read, field.name), getattr(splats, field.name)), field.name
    write_ply(tmp_path / "b.ply", read)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_read_again_it_looks_the_same(tmp_path):
    cloud = a_cloud()
    write_ply(tmp_path / "a.ply", Splats.of(cloud))
    expected, found = (rasterize(each, camera(), torch.ones(3)).features for each in (cloud, read_ply(tmp_path / "a.ply").cloud()))
    assert float((expected - 1.0).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-5)


def test_opaque_transparent_and_flat_gaussians_stay_finite(tmp_path):
    cloud = dataclasses.replace(a_cloud(), opacities=torch.tensor([[0.0, 1.0] * (COUNT // 2)]), scales=torch.zeros(1, COUNT, 3))
    write_ply(tmp_path / "a.ply", Splats.of(cloud))
    torch.testing.assert_close(read_ply(tmp_path / "a.ply").cloud().opacities, cloud.opacities, rtol=0.0, atol=1e-6)


def test_other_orders_types_and_further_properties_are_read(tmp_path):
    splats = Splats.of(a_cloud())
    write_ply(tmp_path / "a.ply", splats)
    _, vertices = parse((tmp_path / "a.ply").read_bytes())
    names = [name for name in reversed(STANDARD) if not name.startswith("n")]
    header = ["ply", "format binary_little_endian 1.0", "comment made elsewhere", "obj_info x", f"element vertex {COUNT}", "property uchar flag"]
    header += [f"property double {name}" for name in names] + ["property float f_rest_0", "element camera 1", "property int view", "end_header\n"]
    body = b"".join(struct.pack(f"<B{len(names)}df", 7, *(vertex[name] for name in names), 0.5) for vertex in vertices)
    (tmp_path / "b.ply").write_bytes("\n".join(header).encode() + body + struct.pack("<i", 3))
    read = read_ply(tmp_path / "b.ply")
    assert all(torch.equal(getattr(read, field.name), getattr(splats, field.name)) for field in dataclasses.fields(Splats))


def with_value(data: bytes, name: str, value: float) -> bytes:
    """The file with another value in its second vertex."""
    start = data.index(b"end_header\n") + len(b"end_header\n")
    place = start + 4 * (len(STANDARD) + STANDARD.index(name))
    return data[:place] + struct.pack("<f", value) + data[place + 4:]


@pytest.mark.parametrize(("change", "part"), [
    (lambda data: data[:-1], "2720 bytes, but 2719 follow"),
    (lambda data: data + b"\0", "2720 bytes, but 2721 follow"),
    (lambda data: data.replace(b"vertex 40", b"vertex 99999999999999999999"), "promises 99999999999999999999 Gaussians"),
    (lambda data: data.replace(b"vertex 40", b"vertex -4"), "element vertex <count>"),
    (lambda data: data.replace(b"element vertex 40", b"element chunk 1\nelement vertex 40"), "found 'element chunk 1'"),
    (lambda data: data[:60], "the header is cut off"),
    (lambda data: b"", "not a PLY file"),
    (lambda data: b"\x89PNG" + data, "not a PLY file"),
    (lambda data: data.replace(b"binary_little_endian", b"ascii"), "found ascii 1.0"),
    (lambda data: data.replace(b"binary_little_endian", b"binary_big_endian"), "found binary_big_endian 1.0"),
    (lambda data: data.replace(b"float f_dc_1", b"float red"), "no 'f_dc_1'"),
    (lambda data: data.replace(b"float nx", b"float x"), "a property twice"),
    (lambda data: data.replace(b"property float nx", b"property list uchar int nx"), "a vertex has 'property list uchar int nx'"),
    (lambda data: with_value(data, "opacity", math.nan), "1 of 40 Gaussians have a NaN or infinite value in opacity_logits, first number 1"),
    (lambda data: with_value(data, "z", math.inf), "in means"),
    (lambda data: with_value(with_value(with_value(with_value(data, "rot_0", 0), "rot_1", 0), "rot_2", 0), "rot_3", 0), "Gaussian 1 has a rotation"),
])
def test_what_is_no_cloud_is_refused(tmp_path, change, part):
    path = tmp_path / "a.ply"
    write_ply(path, Splats.of(a_cloud()))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError) as error:
        read_ply(path)
    assert str(error.value).startswith(f"{path}: ") and part in str(error.value), str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="a.ply: cannot be read"):
        read_ply(Path(tmp_path / "a.ply"))


def test_nan_is_never_written(tmp_path):
    path, cloud = tmp_path / "a.ply", a_cloud()
    write_ply(path, Splats.of(cloud))
    before = path.read_bytes()
    cloud.means[0, 3, 1] = math.nan
    with pytest.raises(InputError, match="1 of 40 Gaussians have a NaN or infinite value in means, first number 3"):
        write_ply(path, Splats.of(cloud))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
