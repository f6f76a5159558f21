"""Triangle mesh measures against closed forms and a double loop."""

import math

import pytest
import torch

from lib.geometry.trimesh import enclosed_volume, face_normals, surface_area, uniform_laplacian, vertex_normals

QUADS = ((0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5))


def cube(side):
    """Vertex 4x + 2y + z of the cube [0, side]³; faces counter-clockwise seen from outside."""
    vertices = torch.tensor([[k >> 2 & 1, k >> 1 & 1, k & 1] for k in range(8)], dtype=torch.float64) * side
    faces = []
    for a, b, c, d in QUADS:
        for triangle in ((a, b, c), (a, c, d)):
            p, q, r = vertices[list(triangle)]
            outward = torch.dot(torch.linalg.cross(q - p, r - p), (p + q + r) / 3 - side / 2) > 0
            faces.append(triangle if outward else triangle[::-1])
    return vertices, torch.tensor(faces)


def globe(rows, columns):
    """A closed latitude-longitude sphere of radius 2 around (1, 2, 3)."""
    points, faces = [(0.0, 0.0, 1.0)], []
    for i in range(1, rows):
        for j in range(columns):
            polar, around = math.pi * i / rows, 2 * math.pi * j / columns
            points.append((math.sin(polar) * math.cos(around), math.sin(polar) * math.sin(around), math.cos(polar)))
    points.append((0.0, 0.0, -1.0))

    def index(i, j):
        return 0 if i == 0 else len(points) - 1 if i == rows else 1 + (i - 1) * columns + j % columns

    for i in range(rows):
        for j in range(columns):
            if i > 0:
                faces.append((index(i, j), index(i + 1, j), index(i, j + 1)))
            if i < rows - 1:
                faces.append((index(i + 1, j), index(i + 1, j + 1), index(i, j + 1)))
    unit = torch.tensor(points, dtype=torch.float64)
    return unit, 2.0 * unit + torch.tensor([1.0, 2.0, 3.0]), torch.tensor(faces)


@pytest.mark.parametrize("side", [0.5, 2.0])
def test_cube_area_and_volume(side):
    vertices, faces = cube(side)
    assert float(surface_area(vertices, faces)) == pytest.approx(6 * side**2)
    assert float(enclosed_volume(vertices, faces)) == pytest.approx(side**3)
    assert float(enclosed_volume(vertices, faces.flip(1))) == pytest.approx(-(side**3))


def test_cube_face_normals_are_twice_area():
    vertices, faces = cube(3.0)
    normals = face_normals(vertices, faces)
    assert sorted(map(tuple, normals.tolist())) == sorted(
        tuple(sign * 9.0 * float(k == axis) for k in range(3)) for axis in range(3) for sign in (1, -1) for _ in range(2)
    )


def test_volume_ignores_translation_and_batches():
    vertices, faces = cube(1.0)
    batch = torch.stack([vertices, 2.0 * vertices + 5.0])
    torch.testing.assert_close(enclosed_volume(batch, faces), torch.tensor([1.0, 8.0], dtype=torch.float64))
    torch.testing.assert_close(surface_area(batch, faces), torch.tensor([6.0, 24.0], dtype=torch.float64))


def test_sphere_vertex_normals_are_radial():
    unit, vertices, faces = globe(40, 80)
    normals = vertex_normals(vertices, faces)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(len(unit), dtype=torch.float64))
    assert ((normals * unit).sum(dim=1) > 0.999).all()
    assert float(enclosed_volume(vertices, faces)) == pytest.approx(4 / 3 * math.pi * 8, rel=0.01)


def test_vertex_normals_are_area_weighted():
    vertices = torch.tensor([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 1]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 3, 1]])  # areas 2 (z) and 1 (y), meeting at vertices 0 and 1
    expected = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64) / math.sqrt(5)
    torch.testing.assert_close(vertex_normals(vertices, faces)[0], expected)
    torch.testing.assert_close(vertex_normals(vertices, faces)[3], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def brute_laplacian(vertices, faces):
    """Each face adds both of its edges at a corner, so an edge of two faces counts twice."""
    result = vertices.clone()
    for v in range(len(vertices)):
        ring = []
        for face in faces.tolist():
            for a, b in ((face[0], face[1]), (face[1], face[2]), (face[2], face[0])):
                if a == v:
                    ring.append(vertices[b])
                if b == v:
                    ring.append(vertices[a])
        if ring:
            result[v] = vertices[v] - torch.stack(ring).mean(dim=0)
    return result


def test_laplacian_is_brute_force_ring():
    torch.manual_seed(0)
    # Open fan with a border (edges used once) and inner edges (used twice), plus a shared random strip.
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 4], [4, 3, 5], [5, 3, 6], [2, 1, 7]])
    vertices = torch.randn(2, 8, 3, dtype=torch.float64)
    expected = torch.stack([brute_laplacian(v, faces) for v in vertices])
    torch.testing.assert_close(uniform_laplacian(vertices, faces), expected)


def test_laplacian_counts_shared_edge_twice():
    vertices = torch.tensor([[0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 8]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])  # edge 0-2 belongs to both
    torch.testing.assert_close(uniform_laplacian(vertices, faces)[0], -torch.tensor([3.0, 8.0, 8.0], dtype=torch.float64) / 4)


def test_laplacian_gradients():
    torch.manual_seed(1)
    _, faces = cube(1.0)
    vertices = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: uniform_laplacian(v, faces), (vertices,))
