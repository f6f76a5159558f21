"""The mesh head's surface against the fields of the whole grid."""

import pytest
import torch

from lib.avatars.gaussian_head_avatar import mesh_head
from lib.avatars.gaussian_head_avatar.mesh_head import MeshHead, MeshHeadConfig, with_exact_signs
from lib.errors import InputError
from lib.geometry.tetmesh import TetGrid, marching_tetrahedra, subdivide

BOX = ((-1.3, 1.3), (-1.2, 1.3), (-1.3, 1.1))


@pytest.fixture
def head():
    """Double precision, with a surface that is not a sphere."""
    torch.manual_seed(0)
    config = MeshHeadConfig(geo_mlp=(27, 24, 24, 24, 12), model_bbox=BOX, grid_cells=6, color_channels=4).resolved(5)
    head = MeshHead(config, 7).double()
    with torch.no_grad():
        head.landmarks_3d_neutral.copy_(0.6 * torch.randn(7, 3))
        head.geometry.layers[-1].weight.mul_(3.0)
        sdf = head._fields(head.tet_verts)[0].atanh()
        head.geometry.layers[-1].bias[0] -= sdf.median()
    return head


def dense(head, subdivisions):
    """All fields at all vertices."""
    grid = TetGrid(head.tet_verts, head.tets)
    for _ in range(subdivisions):
        grid = subdivide(grid)
    sdf, offset, feature = head.geometry(head.encode(grid.vertices)).tanh().split([1, 3, head.config.feature_width], dim=1)
    return marching_tetrahedra(grid, grid.vertices + offset.tanh() / (128.0 * 2**subdivisions), sdf[:, 0], feature)


@pytest.mark.parametrize("subdivisions", [0, 1])
def test_surface_and_gradients_are_those_of_the_whole_grid(head, subdivisions):
    parameters = list(head.geometry.parameters())
    results = []
    for surface in (dense(head, subdivisions), head.neutral_surface(subdivisions)):
        weight = torch.randn(len(surface.vertices), 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        total = (weight * surface.vertices.square()).sum() + (weight * surface.features).sum()
        results.append((surface, torch.autograd.grad(total, parameters)))
    (expected, right), (found, ours) = results
    assert len(found.faces) > 50
    assert torch.equal(found.faces, expected.faces)
    torch.testing.assert_close(found.vertices, expected.vertices)
    torch.testing.assert_close(found.features, expected.features)
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_computed_at_few_vertices(head, monkeypatch):
    seen = []
    fields = MeshHead._fields
    monkeypatch.setattr(MeshHead, "_fields", lambda self, points: seen.append(len(points)) or fields(self, points))
    head.neutral_surface(subdivisions=2)
    assert sum(seen) < 0.5 * len(subdivide(subdivide(TetGrid(head.tet_verts, head.tets))).vertices)


def test_points_evaluated_in_parts_give_the_same_surface(head, monkeypatch):
    whole = head.neutral_surface()
    monkeypatch.setattr(mesh_head, "SIGN_POINTS", 50)
    assert torch.equal(head.neutral_surface().faces, whole.faces)


@pytest.mark.parametrize("error", [0.0, 0.01, 0.0499])
def test_rough_signs_are_mended_below_the_margin(error):
    torch.manual_seed(0)
    exact = torch.rand(2000) * 2 - 1
    exact[:3] = torch.tensor([0.0, -0.0, 1e-9])
    rough = exact + error * (2 * torch.rand(2000) - 1)
    mended = with_exact_signs(rough, 0.05, lambda rows: exact[rows])
    assert torch.equal(mended > 0, exact > 0)
    assert error == 0 or not torch.equal(rough > 0, exact > 0)


def test_signs_do_not_depend_on_rough_products(head, monkeypatch):
    """A first evaluation that errs by less than the margin changes nothing."""
    expected = head.neutral_surface()
    first, encode = [], MeshHead.encode

    class Rough:
        def __enter__(self):
            first.append(1)

        def __exit__(self, *_):
            first.clear()

    monkeypatch.setattr(mesh_head, "rough_products", Rough)
    monkeypatch.setattr(MeshHead, "encode", lambda self, x: encode(self, x + 2e-3 * torch.randn_like(x) if first else x))
    exact = head._fields(head.tet_verts)[0].detach()
    first.append(1)
    error = (head._fields(head.tet_verts)[0].detach() - exact).abs().max()
    first.clear()
    assert 1e-3 < float(error) < 0.05
    found = head.neutral_surface()
    assert torch.equal(found.faces, expected.faces)
    torch.testing.assert_close(found.vertices, expected.vertices)


def test_the_subdivided_grid_is_kept_until_the_grid_changes(head, monkeypatch):
    calls = []
    monkeypatch.setattr(mesh_head, "subdivide", lambda grid: calls.append(1) or subdivide(grid))
    head.config = head.config.model_copy(update={"subdivide": True})
    first = head.neutral_surface()
    assert torch.equal(head.neutral_surface().vertices, first.vertices)
    assert len(calls) == 1
    head.neutral_surface(subdivisions=2)  # another one, for a handover
    head.neutral_surface()
    assert len(calls) == 3
    with torch.no_grad():
        head.tet_verts.mul_(0.99)  # as load_state_dict would
    torch.testing.assert_close(head.neutral_surface().vertices, dense(head, 1).vertices)
    head.tet_verts, head.tets = head.tet_verts.clone(), head.tets.clone()
    head.neutral_surface()
    assert len(calls) == 5
    assert "_kept" not in head.state_dict()


def test_no_surface_is_said_with_the_range_of_the_field(head):
    with torch.no_grad():
        head.geometry.layers[-1].bias[0] = 50.0
    with pytest.raises(InputError, match=r"positive at all \d+ grid vertices \(from .* to 1\)"):
        head.neutral_surface()
