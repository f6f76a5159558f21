"""The same numbers on CUDA as on the CPU, and both stages train there. Run with `python -m pytest -m gpu`."""

import dataclasses
import importlib.util

import pytest
import roma
import torch

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at
from lib.geometry.tetmesh import body_centred_grid, marching_tetrahedra, subdivide
from lib.render.gaussian import interface
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


FIELDS = ("means", "quats_wxyz", "scales", "opacities", "features")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def some_cloud(batch: int, count: int, channels: int, scale: float = 0.01) -> GaussianCloud:
    random = torch.Generator().manual_seed(batch + channels)
    return GaussianCloud(
        0.1 * torch.randn(batch, count, 3, generator=random), torch.nn.functional.normalize(torch.randn(batch, count, 4, generator=random), dim=-1),
        scale * (0.5 * torch.randn(batch, count, 3, generator=random)).exp(), torch.rand(batch, count, generator=random),
        torch.rand(batch, count, channels, generator=random),
    )


def assert_triton_is_reference(cloud: GaussianCloud, where: Camera) -> None:
    """Picture, alpha and all gradients of the same float32 numbers; relative L2 against float64."""
    channels, results = cloud.features.shape[-1], []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [getattr(cloud, name).to("cuda", dtype).requires_grad_() for name in FIELDS]
        pose = where.world_to_camera.to("cuda", dtype).requires_grad_()
        seen_by = Camera(pose, where.intrinsics.to("cuda", dtype), where.width, where.height)
        image = rasterize(GaussianCloud(*leaves), seen_by, torch.linspace(-0.5, 1.5, channels, device="cuda", dtype=dtype), backend=backend)
        weight = torch.randn(image.features.shape, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
        total = (image.features * weight).sum() + (image.alpha * weight[:, :1]).sum()
        results.append([image.features, image.alpha, *torch.autograd.grad(total, [*leaves, pose])])
    for name, ours, exact in zip(("image", "alpha", *FIELDS, "world_to_camera"), *results, strict=True):
        assert torch.isfinite(ours).all(), name
        assert float((ours.double() - exact).detach().norm()) <= 1e-4 * float(exact.detach().norm()) + 1e-9, name


@needs_triton
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels", [3, 32, 80])
def test_triton_agrees_with_reference(batch, channels):
    where = camera()
    assert_triton_is_reference(
        some_cloud(batch, 400, channels), Camera(where.world_to_camera[:batch], where.intrinsics[:batch], where.width, where.height),
    )


@needs_triton
@pytest.mark.parametrize(("width", "height"), [(1, 1), (9, 17), (256, 100)])
def test_triton_draws_any_size(width, height):
    where = camera()
    assert_triton_is_reference(some_cloud(2, 200, 3), Camera(where.world_to_camera, where.intrinsics, width, height))


@needs_triton
@pytest.mark.parametrize("case", ["one over all", "thousands in a tile", "equal depths", "strided"])
def test_triton_draws_degenerate_clouds(case):
    where = camera()
    cloud = some_cloud(2, 60, 3)
    cloud = {
        "one over all": lambda: some_cloud(2, 1, 3, scale=2.0),
        "thousands in a tile": lambda: dataclasses.replace(
            some_cloud(2, 5000, 3, scale=0.002), means=0.001 * some_cloud(2, 5000, 3).means, opacities=torch.full((2, 5000), 0.005),
        ),
        "equal depths": lambda: dataclasses.replace(cloud, means=cloud.means[:, :1].expand(-1, 60, -1)),
        "strided": lambda: GaussianCloud(**{name: getattr(cloud, name).transpose(0, 1).contiguous().transpose(0, 1) for name in FIELDS}),
    }[case]()
    assert_triton_is_reference(cloud, where)


@needs_triton
@pytest.mark.parametrize("count", [0, 60])
def test_triton_shows_background_where_nothing_is_in_front(count):
    where, cloud = camera(), some_cloud(2, count, 3)
    cloud = dataclasses.replace(cloud, means=cloud.means - 50.0 * where.world_to_camera[:, None, 2, :3])
    leaves = [getattr(cloud, name).cuda().requires_grad_() for name in FIELDS]
    background = torch.tensor([0.2, -1.0, 3.0], device="cuda")
    image = rasterize(GaussianCloud(*leaves), where.to("cuda"), background, backend="triton")
    assert torch.equal(image.features, background[:, None, None].expand_as(image.features))
    assert all(not gradient.any() for gradient in torch.autograd.grad(image.features.sum() + image.alpha.sum(), leaves))


@needs_triton
def test_triton_gives_the_same_bits_every_time():
    where, cloud = camera().to("cuda"), some_cloud(2, 400, 32).to("cuda")
    results = []
    for _ in range(2):
        leaves = [getattr(cloud, name).clone().requires_grad_() for name in FIELDS]
        image = rasterize(GaussianCloud(*leaves), where, torch.ones(32, device="cuda"), backend="triton")
        results.append([image.features, *torch.autograd.grad(image.features.square().sum(), leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@needs_triton
def test_float32_on_cuda_is_drawn_by_triton(capsys):
    interface._say.cache_clear()
    rasterize(some_cloud(2, 10, 3).to("cuda"), camera().to("cuda"), torch.ones(3, device="cuda"))
    assert capsys.readouterr().out == "rasterizer: triton\n"


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
