"""The kernels of meshes against the reference, on the CPU under Triton's interpreter."""

import pytest
import torch

from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.tetmesh import body_centred_grid, marching_tetrahedra
from lib.render.mesh import boxed, interface
from lib.render.mesh.interface import render_mesh
from tests.render.test_mesh_reference import make_camera, random_mesh
from tests.render.triton_process import installed, interpreted, run_interpreted, starts_interpreter

OUTPUTS = ("attributes", "mask", "depth", "normals")


def single(camera):
    return Camera(camera.world_to_camera.float(), camera.intrinsics.float(), camera.width, camera.height)


def double(camera):
    return Camera(camera.world_to_camera.double(), camera.intrinsics.double(), camera.width, camera.height)


def drawn(backend, vertices, faces, attributes, camera, parts=OUTPUTS):
    """All pictures, and gradients of a random linear function of some."""
    vertices, attributes = vertices.clone().requires_grad_(), attributes.clone().requires_grad_()
    image = render_mesh(vertices, faces, attributes, camera, backend=backend)
    random = torch.Generator().manual_seed(3)
    weights = {part: torch.randn(getattr(image, part).shape, generator=random, dtype=torch.float64) for part in OUTPUTS}
    total = sum((getattr(image, part) * weights[part].to(image.mask.dtype)).sum() for part in parts)
    gradients = torch.autograd.grad(total, (vertices, attributes), allow_unused=True, materialize_grads=True)
    return [getattr(image, part).detach() for part in OUTPUTS], gradients


def assert_is_reference(vertices, faces, attributes, camera, parts=OUTPUTS, limit=1e-4):
    """Coverage to the pixel from the same float32; values and gradients from float64."""
    vertices, attributes, camera = vertices.float(), attributes.float(), single(camera)
    ours, ours_gradients = drawn("triton", vertices, faces, attributes, camera, parts)
    rounded, _ = drawn("reference", vertices, faces, attributes, camera, parts)
    assert torch.equal(ours[1] == 1, rounded[1] == 1)
    for name, value, other in zip(OUTPUTS, ours, rounded, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    exact, exact_gradients = drawn("reference", vertices.double(), faces, attributes.double(), double(camera), parts)
    assert torch.equal(ours[2] > 0, exact[2] > 0)  # the scene has no pixel centre so near an edge that rounding decides
    for name, value, right in zip(("vertices", "attributes"), ours_gradients, exact_gradients, strict=True):
        assert torch.isfinite(value).all(), name
        assert float((value.double() - right).norm()) <= limit * float(right.norm()) + 1e-9, name
    return ours, ours_gradients


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize(("width", "height", "focal", "seed"), [(13, 9, 9.0, 0), (33, 17, 22.0, 19), (16, 16, 22.0, 2)])
def test_random_triangles_some_behind_the_camera(width, height, focal, seed):
    vertices, faces, attributes = random_mesh(seed)
    (image, mask, *_), _ = assert_is_reference(vertices, faces, attributes, make_camera(width, height, focal))
    assert image.abs().max() > 0
    assert ((mask > 0.01) & (mask < 0.99)).any()


@interpreted
@pytest.mark.parametrize("part", OUTPUTS)
def test_gradient_of_each_picture_alone(part):
    vertices, faces, attributes = random_mesh(7, channels=3)
    _, gradients = assert_is_reference(vertices, faces, attributes, make_camera(20, 14, 17.0), parts=(part,))
    assert gradients[0].any()


@interpreted
def test_a_surface_of_small_triangles():
    grid = body_centred_grid([[-1.3, 1.3]] * 3, 5)
    surface = marching_tetrahedra(grid, grid.vertices, grid.vertices.norm(dim=1) - 1.0, grid.vertices)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0]
    vertices = (surface.vertices @ turn).expand(2, -1, -1)
    assert_is_reference(0.7 * vertices, surface.faces, vertices, make_camera(40, 31, 33.0), limit=1e-3)


@interpreted
def test_degenerate_faces():
    """A line, a point, one that uses a vertex twice, and a sliver: in the hard pass nothing, in the soft mask their distances."""
    vertices = torch.tensor([[[0.0, 0.0, 0.0], [0.5, 0.25, 0.0], [0.25, 0.125, 0.0], [-0.5, 0.3, 0.0], [0.50002, 0.25, 0.0]]])
    camera = make_camera(24, 20, 20.0, centres=((0.0, 0.0, 3.0),))
    faces = torch.tensor([[0, 1, 2], [3, 3, 3], [0, 0, 3], [0, 4, 1]])
    (_, mask, *_), gradients = drawn("triton", vertices, faces, torch.ones(1, 5, 2), single(camera))
    (_, expected, *_), right = drawn("reference", vertices, faces, torch.ones(1, 5, 2), single(camera))
    torch.testing.assert_close(mask, expected, rtol=1e-4, atol=1e-5)
    assert mask.max() > 0.5
    for value, other in zip(gradients, right, strict=True):
        assert torch.isfinite(value).all()
        assert float((value - other).norm()) <= 1e-3 * float(other.norm())


@interpreted
def test_equal_depths_are_won_by_the_lower_face():
    vertices = torch.tensor([[[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 1.0, 0.0]]]).repeat(1, 3, 1)
    attributes = torch.arange(3.0).repeat_interleave(3)[None, :, None]
    faces = torch.arange(9).reshape(3, 3)[[1, 0, 2]]
    image = render_mesh(vertices, faces, attributes, single(make_camera(9, 9, 12.0, centres=((0.0, 0.0, 3.0),))), backend="triton")
    assert (image.depth > 0).any()
    assert torch.equal(image.attributes > 0, image.depth > 0)
    torch.testing.assert_close(image.attributes, (image.depth > 0).float())


@interpreted
def test_no_face_and_an_empty_view_are_black():
    vertices, faces, attributes = random_mesh(0)
    for moved, some in ((vertices, faces[:0]), (vertices + torch.tensor([0.0, 0.0, 50.0]), faces)):
        pictures, gradients = drawn("triton", moved.float(), some, attributes.float(), single(make_camera(9, 7, 9.0)))
        for value in (*pictures, *gradients):
            assert not value.any()


@interpreted
def test_positions_that_are_not_finite_are_not_drawn():
    vertices, faces, attributes = random_mesh(3)
    vertices = vertices.float()
    vertices[0, 0, 0], vertices[1, 4, 1] = torch.nan, torch.inf
    camera = single(make_camera(16, 12, 14.0))
    ours, theirs = (render_mesh(vertices, faces, attributes.float(), camera, backend=name) for name in ("triton", "reference"))
    assert torch.isfinite(ours.attributes).all()
    torch.testing.assert_close(ours.attributes, theirs.attributes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.mask, theirs.mask, rtol=1e-4, atol=1e-5)


def test_unknown_backend_is_refused():
    vertices, faces, attributes = random_mesh(0)
    with pytest.raises(InputError, match="'opengl' is not known; expected auto or one of"):
        render_mesh(vertices, faces, attributes, make_camera(9, 7, 9.0), backend="opengl")


@starts_interpreter
def test_kernels_say_what_they_cannot_draw():
    vertices, faces, attributes = random_mesh(0)
    with pytest.raises(InputError, match="computes in float32, not float64"):
        render_mesh(vertices, faces, attributes, make_camera(9, 7, 9.0), backend="triton")
    with pytest.raises(InputError, match="needs CUDA tensors, not cpu"):
        render_mesh(vertices.float(), faces, attributes.float(), single(make_camera(9, 7, 9.0)), backend="triton")


def test_on_a_cpu_the_reference_draws(monkeypatch, capsys):
    vertices, faces, attributes = random_mesh(0)
    monkeypatch.setattr(boxed, "render_mesh", None)
    monkeypatch.setitem(interface.BACKENDS, "triton", None)
    assert render_mesh(vertices.float(), faces, attributes.float(), single(make_camera(9, 7, 9.0))).attributes.any()
    assert capsys.readouterr().out == ""
