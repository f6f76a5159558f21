"""Tetrahedral grids and marching tetrahedra against volumes, closed forms and polygon clipping."""

import math
from itertools import combinations

import pytest
import torch

from lib.errors import InputError
from lib.geometry.tetmesh import TetGrid, body_centred_grid, find_crossings, marching_tetrahedra, oriented, subdivide, zero_level

BOXES = {
    "cube, one cell": ([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], 1),
    "cube": ([[-1.5, 1.5], [-1.5, 1.5], [-1.5, 1.5]], 4),
    "published": ([[-1.6, 1.6], [-1.7, 1.8], [-2.5, 1.0]], 7),
    "flat": ([[0.0, 5.0], [-1.0, -0.9], [2.0, 4.0]], 9),
}
FACES_OF_TET = ((1, 2, 3), (0, 3, 2), (0, 1, 3), (0, 2, 1))  # outward on a positive tetrahedron; face k lacks vertex k


def tet_volumes(grid):
    a, b, c, d = grid.vertices.double()[grid.tets].unbind(dim=1)
    return torch.det(torch.stack([b - a, c - a, d - a], dim=1)) / 6.0


def box_volume(bbox):
    return math.prod(high - low for low, high in bbox)


def assert_conforming(grid, bbox):
    """Every triangle belongs to two tetrahedra, or to one and then lies on a side of the box."""
    triangles = torch.cat([grid.tets[:, list(face)] for face in FACES_OF_TET]).sort(dim=1).values
    unique, counts = torch.unique(triangles, dim=0, return_counts=True)
    assert int(counts.max()) <= 2
    corners = grid.vertices[unique[counts == 1]].double()  # (K, 3, 3)
    low, high = torch.tensor(bbox, dtype=torch.float64).unbind(dim=1)
    on_side = ((corners - low).abs() < 1e-5).all(dim=1) | ((corners - high).abs() < 1e-5).all(dim=1)
    assert on_side.any(dim=1).all()


def double_grid(bbox, cells):
    grid = body_centred_grid(bbox, cells)
    return TetGrid(grid.vertices.double(), grid.tets)


def sphere(cells, radius=1.0):
    grid = double_grid([[-1.5, 1.5], [-1.4, 1.5], [-1.5, 1.3]], cells)
    sdf = grid.vertices.norm(dim=1) - radius
    return marching_tetrahedra(grid, grid.vertices, sdf, grid.vertices)


def triangle_vectors(vertices, faces):
    """Area vectors: half the cross product of two sides."""
    a, b, c = vertices[faces].unbind(dim=1)
    return 0.5 * torch.linalg.cross(b - a, c - a)


@pytest.mark.parametrize("name", BOXES)
def test_grid_fills_box(name):
    bbox, cells = BOXES[name]
    grid = body_centred_grid(bbox, cells)
    volumes = tet_volumes(grid)
    assert (volumes > 0).all()
    assert float(volumes.sum()) == pytest.approx(box_volume(bbox), rel=1e-6)
    low, high = torch.tensor(bbox).unbind(dim=1)
    torch.testing.assert_close(grid.vertices.amin(dim=0), low)
    torch.testing.assert_close(grid.vertices.amax(dim=0), high)
    assert_conforming(grid, bbox)


def test_grid_has_cells_along_longest_side():
    nx, ny, nz = 4, 2, 1  # sides 4 : 2 : 1
    grid = body_centred_grid([[0.0, 4.0], [0.0, 2.0], [0.0, 1.0]], 4)
    assert len(grid.vertices) == (nx + 1) * (ny + 1) * (nz + 1) + nx * ny * nz
    inner = (nx - 1) * ny * nz + nx * (ny - 1) * nz + nx * ny * (nz - 1)
    outer = 2 * (ny * nz + nx * nz + nx * ny)
    assert len(grid.tets) == 4 * inner + 2 * outer
    assert len(torch.unique(grid.tets)) == len(grid.vertices)


@pytest.mark.parametrize(("side", "cells"), [([0.0, 1.0], 0), ([1.0, 1.0], 3), ([2.0, 1.0], 3)])
def test_impossible_grid_is_input_error(side, cells):
    with pytest.raises(InputError, match="model_bbox"):
        body_centred_grid([[0.0, 1.0], side, [0.0, 1.0]], cells)


def test_oriented_repairs_only_negative_tets():
    grid = body_centred_grid([[0.0, 1.0]] * 3, 2)
    flipped = grid.tets.clone()
    flipped[::3] = flipped[::3][:, [1, 0, 2, 3]]
    repaired = oriented(TetGrid(grid.vertices, flipped))
    assert (tet_volumes(repaired) > 0).all()
    untouched = torch.arange(len(flipped)) % 3 != 0
    assert torch.equal(repaired.tets[untouched], grid.tets[untouched])


@pytest.mark.parametrize("name", BOXES)
def test_subdivide_refines_in_place(name):
    bbox, cells = BOXES[name]
    grid = body_centred_grid(bbox, min(cells, 4))
    fine = subdivide(grid)
    assert len(fine.tets) == 8 * len(grid.tets)
    assert torch.equal(fine.vertices[:len(grid.vertices)], grid.vertices)
    assert (tet_volumes(fine) > 0).all()
    # Children follow their parent, and each set of eight has its volume.
    torch.testing.assert_close(tet_volumes(fine).reshape(-1, 8).sum(dim=1), tet_volumes(grid), rtol=1e-4, atol=1e-9)
    edges = torch.cat([grid.tets[:, list(pair)] for pair in combinations(range(4), 2)]).sort(dim=1).values
    assert len(fine.vertices) == len(grid.vertices) + len(torch.unique(edges, dim=0))
    assert_conforming(fine, bbox)


def test_subdivided_midpoints_are_means():
    grid = body_centred_grid([[0.0, 1.0]] * 3, 1)
    fine = subdivide(grid)
    edges = torch.unique(torch.cat([grid.tets[:, list(pair)] for pair in combinations(range(4), 2)]).sort(dim=1).values, dim=0)
    expected = {tuple(row) for row in grid.vertices[edges].mean(dim=1).tolist()}
    assert {tuple(row) for row in fine.vertices[len(grid.vertices):].tolist()} == expected


def test_sphere_is_closed():
    surface = sphere(9)
    edges = torch.cat([surface.faces[:, [0, 1]], surface.faces[:, [1, 2]], surface.faces[:, [2, 0]]])
    directed = {tuple(edge) for edge in edges.tolist()}
    assert len(directed) == len(edges)  # no directed edge twice
    assert {(b, a) for a, b in directed} == directed  # each one has its opposite: two faces, consistently oriented
    assert len(torch.unique(surface.faces)) == len(surface.vertices)  # no vertex unused
    assert len(surface.vertices) - len(edges) // 2 + len(surface.faces) == 2


def test_sphere_converges_quadratically():
    # Linear interpolation along an edge of length h errs by at most h²/8 in radius: 2/8 h² in area, 3/8 h² in volume, relative.
    errors = []
    for cells in (8, 16, 32):
        surface = sphere(cells)
        area = triangle_vectors(surface.vertices, surface.faces).norm(dim=1).sum()
        a, b, c = surface.vertices[surface.faces].unbind(dim=1)
        volume = torch.det(torch.stack([a, b, c], dim=1)).sum() / 6.0
        errors.append((abs(float(area) / (4 * math.pi) - 1), abs(float(volume) / (4 * math.pi / 3) - 1)))
        step = 3.0 / cells
        assert errors[-1][0] < 0.25 * step**2
        assert errors[-1][1] < 0.375 * step**2
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert fine[0] < coarse[0] / 3
        assert fine[1] < coarse[1] / 3


def test_sphere_normals_point_outward():
    surface = sphere(10)
    vectors = triangle_vectors(surface.vertices, surface.faces)
    large = vectors.norm(dim=1) > 1e-12
    assert large.float().mean() > 0.99
    radial = torch.nn.functional.normalize(surface.vertices[surface.faces].mean(dim=1), dim=1)
    cosine = (torch.nn.functional.normalize(vectors, dim=1) * radial).sum(dim=1)
    assert (cosine[large] > 0.7).all()


def test_plane_through_grid_vertices_is_flat_and_finite():
    grid = double_grid([[-1.0, 1.0]] * 3, 4)
    sdf = grid.vertices[:, 0].clone()  # exactly 0 on a layer of vertices
    assert (sdf == 0).any()
    surface = marching_tetrahedra(grid, grid.vertices, sdf, grid.vertices)
    assert torch.isfinite(surface.vertices).all()
    torch.testing.assert_close(surface.vertices[:, 0], torch.zeros(len(surface.vertices), dtype=torch.float64))
    total = triangle_vectors(surface.vertices, surface.faces).sum(dim=0)
    torch.testing.assert_close(total, torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_sign_change_is_input_error(sign):
    grid = body_centred_grid([[-1.0, 1.0]] * 3, 2)
    sdf = sign * (1.0 + grid.vertices.norm(dim=1))
    with pytest.raises(InputError, match="no surface") as error:
        marching_tetrahedra(grid, grid.vertices, sdf, grid.vertices)
    assert ("positive" if sign > 0 else "negative") in str(error.value)


def test_linear_field_as_feature_is_its_value_at_vertices():
    torch.manual_seed(0)
    grid = double_grid([[-1.5, 1.5]] * 3, 6)
    positions = grid.vertices + 0.05 * torch.randn_like(grid.vertices)
    matrix, offset = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    surface = marching_tetrahedra(grid, positions, grid.vertices.norm(dim=1) - 1.0, positions @ matrix + offset)
    torch.testing.assert_close(surface.features, surface.vertices @ matrix + offset)


def test_linear_field_has_zero_at_vertices():
    grid = double_grid([[-1.0, 1.0]] * 3, 5)
    normal = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)
    surface = marching_tetrahedra(grid, grid.vertices, grid.vertices @ normal - 0.2, grid.vertices)
    torch.testing.assert_close(surface.vertices @ normal, torch.full((len(surface.vertices),), 0.2, dtype=torch.float64))


def test_gradients():
    torch.manual_seed(1)
    grid = double_grid([[-1.0, 1.0]] * 3, 1)
    sdf = torch.tensor([0.3, -0.4, 0.5, -0.6, 0.7, -0.35, 0.45, 0.55, -0.5], dtype=torch.float64, requires_grad=True)
    positions = (grid.vertices + 0.1 * torch.randn_like(grid.vertices)).requires_grad_()
    features = torch.randn(len(positions), 2, dtype=torch.float64, requires_grad=True)

    def extract(sdf, positions, features):
        surface = marching_tetrahedra(grid, positions, sdf, features)
        return surface.vertices, surface.features

    assert torch.autograd.gradcheck(extract, (sdf, positions, features))


def clipped_area_vector(corners, values):
    """Area vector of the part of a triangle where the linear field of `values` is negative (Sutherland-Hodgman)."""
    polygon = []
    for k in range(3):
        (p, f), (q, g) = (corners[k], values[k]), (corners[(k + 1) % 3], values[(k + 1) % 3])
        if f <= 0:
            polygon.append(p)
        if (f <= 0) != (g <= 0):
            polygon.append(p + (q - p) * (f / (f - g)))
    total = torch.zeros(3, dtype=torch.float64)
    for k in range(1, len(polygon) - 1):
        total += 0.5 * torch.linalg.cross(polygon[k] - polygon[0], polygon[k + 1] - polygon[0])
    return total


@pytest.mark.parametrize("pattern", range(16))
def test_every_sign_pattern(pattern):
    """The section closes the negative part of the tetrahedron: the area vectors of a closed surface add up to zero."""
    torch.manual_seed(pattern)
    corners = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64) + 0.2 * torch.rand(4, 3, dtype=torch.float64)
    grid = TetGrid(corners, torch.arange(4)[None])
    assert (tet_volumes(grid) > 0).all()
    values = (0.1 + torch.rand(4, dtype=torch.float64)) * torch.tensor([1.0 if pattern >> k & 1 else -1.0 for k in range(4)])
    if pattern in (0, 15):
        with pytest.raises(InputError, match="no surface"):
            marching_tetrahedra(grid, corners, values, corners)
        return
    surface = marching_tetrahedra(grid, corners, values, corners)
    outside = sum(pattern >> k & 1 for k in range(4))
    assert surface.faces.shape == ((2 if outside == 2 else 1), 3)
    vectors = triangle_vectors(surface.vertices, surface.faces)
    gradient = torch.linalg.solve(corners[1:] - corners[0], values[1:] - values[0])
    assert (vectors @ gradient > 0).all()
    lids = sum(clipped_area_vector(corners[list(face)], values[list(face)]) for face in FACES_OF_TET)
    torch.testing.assert_close(vectors.sum(dim=0), -lids)


def wavy(grid):
    x, y, z = grid.vertices.unbind(dim=1)
    return grid.vertices.norm(dim=1) - 0.8 + 0.2 * torch.sin(5 * x) * torch.cos(4 * y + z)


def test_crossings_are_where_signs_change():
    grid = double_grid([[-1.5, 1.5]] * 3, 5)
    outside = wavy(grid) > 0
    crossings = find_crossings(grid.tets, outside)
    edges = {tuple(sorted(pair)) for tet in grid.tets.tolist() for pair in combinations(tet, 2) if outside[pair[0]] != outside[pair[1]]}
    assert [tuple(edge) for edge in crossings.ends[crossings.edges].tolist()] == sorted(edges)
    assert crossings.ends.tolist() == sorted({row for edge in edges for row in edge})
    assert torch.equal(crossings.outside, outside[crossings.ends])
    assert torch.equal(find_crossings(grid.tets, outside).faces, crossings.faces)
    assert len(find_crossings(grid.tets, torch.ones_like(outside)).faces) == 0


def test_the_surface_needs_the_field_at_the_ends_of_crossed_edges_only():
    """What is elsewhere may be anything of the same sign."""
    grid = double_grid([[-1.5, 1.5]] * 3, 6)
    sdf = wavy(grid)
    crossings = find_crossings(grid.tets, sdf > 0)
    assert len(crossings.ends) < 0.6 * len(sdf)
    elsewhere = torch.ones_like(sdf, dtype=torch.bool).index_fill(0, crossings.ends, False)
    other = torch.where(elsewhere, 100.0 * sdf, sdf)
    expected = marching_tetrahedra(grid, grid.vertices, sdf, grid.vertices)
    found = marching_tetrahedra(grid, torch.where(elsewhere[:, None], torch.nan, grid.vertices), other, grid.vertices)
    for a, b in ((found.vertices, expected.vertices), (found.features, expected.features), (found.faces, expected.faces)):
        assert torch.equal(a, b)
    rows = crossings.ends
    own = zero_level(crossings, grid.vertices[rows], sdf[rows], grid.vertices[rows])
    assert torch.equal(own.vertices, expected.vertices)


def test_a_value_of_the_other_sign_counts_as_zero():
    """Signs of one rounding, values of another: the surface passes through that vertex, and all gradients are finite."""
    grid = double_grid([[-1.5, 1.5]] * 3, 4)
    sdf = wavy(grid)
    crossings = find_crossings(grid.tets, sdf > 0)
    rows = crossings.ends
    values = sdf[rows].clone()
    wrong = torch.arange(len(rows)) % 7 == 0
    values[wrong] = -1e-9 * values[wrong].sign()
    values[1::7] = 0.0
    values.requires_grad_()
    surface = zero_level(crossings, grid.vertices[rows], values, grid.vertices[rows])
    start, end = grid.vertices[rows][crossings.edges].unbind(dim=1)
    share = ((surface.vertices - start) * (end - start)).sum(dim=1) / (end - start).square().sum(dim=1)
    assert bool(((share >= -1e-9) & (share <= 1 + 1e-9)).all())
    one_wrong = wrong[crossings.edges[:, 0]] & (values[crossings.edges[:, 1]].abs() > 1e-3)
    assert one_wrong.any()
    assert bool((share[one_wrong].abs() < 1e-3).all())
    gradient, = torch.autograd.grad(surface.vertices.square().sum(), values)
    assert torch.isfinite(gradient).all()
