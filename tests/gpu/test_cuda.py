"""The same numbers on CUDA as on the CPU, and both stages train there. Run with `python -m pytest -m gpu`."""

import pytest
import roma
import torch

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at
from lib.geometry.tetmesh import body_centred_grid, marching_tetrahedra, subdivide
from lib.render.gaussian.interface import rasterize
from lib.render.mesh.reference import render_mesh
from tests.test_stages import config_of, made, run_script, runs, trained  # noqa: F401 (fixtures)

pytestmark = pytest.mark.gpu


def camera() -> Camera:
    centre = torch.tensor([[0.0, 0.0, 1.1], [0.4, 0.1, 1.0]])
    intrinsics = torch.tensor([[130.0, 0.0, 20.0], [0.0, 130.0, 15.0], [0.0, 0.0, 1.0]]).repeat(2, 1, 1)
    return Camera(look_at(centre, torch.zeros(2, 3)), intrinsics, 44, 33)


def test_gaussians_agree_with_the_cpu():
    random = torch.Generator().manual_seed(0)
    n = 400
    leaves = [
        0.1 * torch.randn(2, n, 3, generator=random), torch.nn.functional.normalize(torch.randn(2, n, 4, generator=random), dim=-1),
        torch.full((2, n, 3), 0.01), torch.rand(2, n, generator=random), torch.rand(2, n, 32, generator=random),
    ]
    weight = torch.rand(2, 32, 33, 44, generator=random)
    results = []
    for device in ("cpu", "cuda"):
        own = [leaf.to(device, torch.float64).requires_grad_() for leaf in leaves]
        where = camera()
        where = Camera(where.world_to_camera.to(device, torch.float64), where.intrinsics.to(device, torch.float64), where.width, where.height)
        image = rasterize(GaussianCloud(*own), where, torch.ones(32, device=device, dtype=torch.float64))
        (image.features * weight.to(device)).sum().backward()
        results.append([image.features, image.alpha, *(leaf.grad for leaf in own)])
    for on_cpu, on_cuda in zip(*results, strict=True):
        assert torch.allclose(on_cpu, on_cuda.cpu(), rtol=1e-8, atol=1e-9)


def test_grids_and_surfaces_agree_with_the_cpu():
    results = []
    for device in ("cpu", "cuda"):
        grid = subdivide(body_centred_grid([[-1.3, 1.3]] * 3, 8).to(device))
        surface = marching_tetrahedra(grid, grid.vertices, grid.vertices.norm(dim=1) - 1.0, grid.vertices)
        results.append([surface.vertices, surface.features, surface.faces])
    for on_cpu, on_cuda in zip(*results, strict=True):
        assert torch.allclose(on_cpu, on_cuda.cpu(), atol=1e-6)


def test_meshes_agree_with_the_cpu():
    grid = body_centred_grid([[-1.3, 1.3]] * 3, 12)
    surface = marching_tetrahedra(grid, grid.vertices, grid.vertices.norm(dim=1) - 1.0, grid.vertices)
    # Turned, so that no pixel centre lies exactly on an edge, where rounding decides.
    turn = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64))
    posed = (0.1 * surface.vertices.double() @ turn.T).expand(2, -1, -1)
    results = []
    for device in ("cpu", "cuda"):
        vertices = posed.to(device).clone().requires_grad_()
        where = camera()
        where = Camera(where.world_to_camera.to(device, torch.float64), where.intrinsics.to(device, torch.float64), where.width, where.height)
        image = render_mesh(vertices, surface.faces.to(device), posed.to(device), where)
        (image.attributes.sum() + image.mask.sum()).backward()
        results.append([image.attributes, image.mask, vertices.grad])
    for on_cpu, on_cuda in zip(*results, strict=True):
        assert torch.allclose(on_cpu, on_cuda.cpu(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("stage", ["meshhead", "gaussianhead"])
def test_stages_train(made, runs, stage, capsys):  # noqa: F811
    script, values = config_of(stage, made, runs, steps=3, name=f"cuda_{stage}")
    run_script(script, values, runs, "trainer.device=cuda")
    assert "finished 3 steps" in capsys.readouterr().out
