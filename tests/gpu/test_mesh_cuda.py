"""Stage 1 on CUDA: kernels of meshes, signs from rough products, training steps. Run with `python -m pytest -m gpu tests/gpu/test_mesh_cuda.py`."""

import copy
import dataclasses
import math

import pytest
import roma
import torch

from lib.avatars.gaussian_head_avatar.mesh_head import OFFSET_DIVISOR, SIGN_MARGIN, MeshHead, MeshHeadConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadStage, MeshHeadTrainConfig
from lib.datasets.head_capture import HeadCapture
from lib.datasets.sampler import TrainingBatches
from lib.geometry.camera import Camera, look_at
from lib.geometry.neighbors import nearest_squared
from lib.geometry.tetmesh import TetGrid, body_centred_grid, marching_tetrahedra
from lib.networks.precision import rough_products
from lib.render.mesh import boxed, interface
from lib.render.mesh.interface import render_mesh
from tests.render.test_mesh_reference import random_mesh
from tests.tiny import mesh_dict

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda")


def cameras(views: int, width: int, height: int) -> Camera:
    angle = torch.arange(views) * 2.0 * math.pi / views
    centre = torch.stack([1.1 * angle.sin(), 0.2 + 0.0 * angle, 1.1 * angle.cos()], dim=1)
    intrinsics = torch.tensor([[2.4 * width, 0.0, 0.52 * width], [0.0, 2.4 * width, 0.49 * height], [0.0, 0.0, 1.0]]).expand(views, 3, 3)
    return Camera(look_at(centre, torch.zeros(views, 3)), intrinsics.clone(), width, height).to(DEVICE)


def doubled(camera: Camera) -> Camera:
    return dataclasses.replace(camera, world_to_camera=camera.world_to_camera.double(), intrinsics=camera.intrinsics.double())


def head_like_surface(cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A wavy sphere of about the size of a head in metres; turned, so that no symmetry puts pixel centres on edges."""
    grid = body_centred_grid([[-1.5, 1.5]] * 3, cells).to(DEVICE)
    x, y, z = grid.vertices.unbind(dim=1)
    sdf = grid.vertices.norm(dim=1) - 1.0 + 0.07 * torch.sin(6 * x + 1) * torch.cos(5 * y + z)
    surface = marching_tetrahedra(grid, grid.vertices, sdf, grid.vertices)
    turn = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.7, 0.2], device=DEVICE))
    return 0.1 * surface.vertices @ turn.T, surface.faces


def drawn(backend, vertices, faces, attributes, camera):
    vertices, attributes = vertices.clone().requires_grad_(), attributes.clone().requires_grad_()
    image = render_mesh(vertices, faces, attributes, camera, backend=backend)
    random = torch.Generator(DEVICE).manual_seed(3)
    values = (image.attributes, image.mask, image.depth, image.normals)
    total = sum((value * torch.randn(value.shape, generator=random, device=DEVICE).to(value)).sum() for value in values)
    return [value.detach() for value in values], torch.autograd.grad(total, (vertices, attributes))


@pytest.mark.parametrize(("cells", "views", "width", "height", "channels"), [(48, 4, 256, 256, 3), (20, 3, 131, 77, 32), (6, 1, 64, 64, 1)])
def test_kernels_draw_what_the_reference_draws(cells, views, width, height, channels):
    vertices, faces = head_like_surface(cells)
    posed = vertices.expand(views, -1, -1).contiguous()
    attributes = torch.rand(views, len(vertices), channels, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE)
    camera = cameras(views, width, height)
    ours, gradients = drawn("triton", posed, faces, attributes, camera)
    rounded, right = drawn("reference", posed, faces, attributes, camera)
    exact, _ = drawn("reference", posed.double(), faces, attributes.double(), doubled(camera))
    covered = ours[1] == 1
    assert 0.1 < float(covered.float().mean()) < 0.9
    # The same float32 positions: the same pixels, but for those whose face another rounding exchanges for its neighbour.
    assert int((covered != (rounded[1] == 1)).sum()) <= 2
    same = (covered == (exact[1] == 1)) & ((ours[2] - exact[2]).abs() < 1e-4)
    rounding = (rounded[1] == exact[1]) & ((rounded[2] - exact[2]).abs() < 1e-4)  # the same, of the reference in float32
    assert float(same.float().mean()) > float(rounding.float().mean()) - 5e-4
    for value, other in zip((ours[0], ours[1], ours[2]), (exact[0], exact[1], exact[2]), strict=True):
        assert float(((value - other).abs() * same).max()) < 2e-3
        assert float(((value - other) * same).norm() / other.norm()) < 1e-4
    for value, other in zip(gradients, right, strict=True):
        assert torch.isfinite(value).all()
        assert float((value - other).norm() / other.norm()) < 2e-2


def test_large_faces_and_faces_behind_the_camera():
    vertices, faces, attributes = random_mesh(7)
    camera = cameras(2, 300, 211)
    vertices, faces, attributes = 0.1 * vertices.float().to(DEVICE), faces.to(DEVICE), attributes.float().to(DEVICE)
    ours, gradients = drawn("triton", vertices, faces, attributes, camera)
    theirs, right = drawn("reference", vertices, faces, attributes, camera)
    for value, other in zip((*ours, *gradients), (*theirs, *right), strict=True):
        assert float((value - other).norm()) <= 1e-3 * float(other.norm())


def test_auto_takes_the_kernels_and_says_so(capsys):
    vertices, faces, attributes = (tensor.to(DEVICE) for tensor in random_mesh(0))
    interface._say.cache_clear()
    render_mesh(vertices.float(), faces, attributes.float(), cameras(2, 20, 20))
    said = capsys.readouterr().out
    assert said == ("mesh rasterizer: triton\n" if boxed.obstacle(vertices.float(), attributes.float()) is None else said)
    interface._say.cache_clear()
    render_mesh(vertices, faces, attributes, doubled(cameras(2, 20, 20)))
    assert "reference (not triton: it computes in float32, not float64)" in capsys.readouterr().out


def test_drawing_does_not_wait_for_the_device():
    vertices, faces = head_like_surface(10)
    attributes, camera = torch.rand(2, len(vertices), 3, device=DEVICE), cameras(2, 64, 64)
    vertices = vertices.expand(2, -1, -1).clone().requires_grad_()
    render_mesh(vertices, faces, attributes, camera).mask.sum().backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        image = render_mesh(vertices, faces, attributes, camera, backend="triton")
        (image.mask.sum() + image.attributes.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def head() -> MeshHead:
    """The published networks and grid, the sphere that training starts from."""
    torch.manual_seed(0)
    head = MeshHead(MeshHeadConfig(dist_threshold_far=0.25).resolved(64), 66).to(DEVICE)
    head.start_as_sphere(seed=0)
    return head


@pytest.mark.parametrize("grown", [1.0, 1.5])  # weights, as after long training
def test_rough_products_err_by_much_less_than_the_margin(head, grown, capsys):
    grown_head = copy.deepcopy(head)
    with torch.no_grad():
        for layer in grown_head.geometry.layers:
            layer.weight.mul_(grown)
        encoded = head.encode(head.tet_verts)
        exact = grown_head.geometry(encoded, columns=1).tanh()
        with rough_products():
            rough = grown_head.geometry(encoded, columns=1).tanh()
        signs = grown_head._signs(head.tet_verts)
    error = float((rough - exact).abs().max())
    with capsys.disabled():
        print(f"\nweights x {grown}: rough products err by {error:.2e} at most, margin {SIGN_MARGIN}; "
              f"{int((exact.abs() < SIGN_MARGIN).sum())} of {len(exact)} vertices are below it")
    assert 0 < error < SIGN_MARGIN / 5
    decided = exact.abs()[:, 0] > 1e-6  # what rounding of float32 does not decide
    assert torch.equal(signs[decided] > 0, exact[decided, 0] > 0)


def test_surface_is_that_of_all_fields(head):
    sdf, offset, feature = head._fields(head.tet_verts)
    grid = TetGrid(head.tet_verts, head.tets)
    expected = marching_tetrahedra(grid, grid.vertices + offset.tanh() / OFFSET_DIVISOR, sdf, feature)
    found = head.neutral_surface()
    assert len(found.vertices) > 10000
    assert torch.equal(found.faces, expected.faces)
    assert torch.allclose(found.vertices, expected.vertices, atol=1e-5)
    assert torch.allclose(found.features, expected.features, atol=1e-4)


@pytest.mark.parametrize("subdivide", [False, True])
def test_steps_lower_the_loss(made, tmp_path, subdivide):
    values = mesh_dict(made.subject, tmp_path)
    values["trainer"]["device"] = "cuda"
    values["meshheadmodule"]["subdivide"] = subdivide
    config = MeshHeadTrainConfig.model_validate(values)
    capture = HeadCapture(config.dataset)
    stage = MeshHeadStage(config, capture, DEVICE)
    batch = TrainingBatches(capture, 1, 2, 0)[0].to(DEVICE)
    losses = [float(stage.step(batch, step).total) for step in range(30)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.8 * losses[0]
    assert stage.broken_weights() == ""
    adam = stage.optimizers["adam"]
    assert all(group["fused"] is True for group in adam.param_groups)
    state = adam.state_dict()
    state["param_groups"] = [group | {"fused": None} for group in state["param_groups"]]  # as a CPU wrote it
    adam.load_state_dict(state)
    assert all(group["fused"] is True for group in adam.param_groups)
    stage.step(batch, 30)


def test_nearest_points_are_those_of_the_cpu():
    points, targets = (torch.randn(count, 3, generator=torch.Generator().manual_seed(count)) for count in (5000, 161))
    torch.testing.assert_close(nearest_squared(points.to(DEVICE), targets.to(DEVICE)).cpu(), nearest_squared(points, targets))
