"""Mesh rasterization against double loops over pixels and faces, written with plain numbers."""

import math

import numpy as np
import pytest
import torch

from lib.geometry.camera import Camera, look_at
from lib.geometry.trimesh import face_normals
from lib.render.mesh import reference
from lib.render.mesh.reference import render_mesh, screen_barycentrics, soft_mask, visible_faces

NEAR, MARGIN, SHARPNESS = 1e-4, 0.02, 7000.0  # rasterizer constants of the specification


def make_camera(width, height, focal, centres=((0.0, 0.0, 3.0), (1.0, 0.7, 2.8)), principal=None):
    centre = torch.tensor(centres, dtype=torch.float64)
    cx, cy = (0.5 * width + 0.7, 0.5 * height - 0.4) if principal is None else principal
    intrinsics = torch.tensor([[focal, 0.0, cx], [0.0, 1.1 * focal, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Camera(look_at(centre, torch.zeros_like(centre)), intrinsics.expand(len(centre), 3, 3).clone(), width, height)


def random_mesh(seed, face_count=10, channels=4, batch=2):
    """Separate random triangles around the origin; the last two reach behind the cameras."""
    generator = torch.Generator().manual_seed(seed)
    centre = 1.2 * torch.rand(batch, face_count, 1, 3, generator=generator, dtype=torch.float64) - 0.6
    corners = centre + 1.0 * torch.rand(batch, face_count, 3, 3, generator=generator, dtype=torch.float64) - 0.5
    corners[:, -1, 0] = torch.tensor([0.5, 0.5, 6.0])
    corners[:, -2] += torch.tensor([0.0, 0.0, 9.0])
    vertices = corners.reshape(batch, -1, 3)
    faces = torch.arange(3 * face_count).reshape(-1, 3)
    return vertices, faces, torch.randn(batch, 3 * face_count, channels, generator=generator, dtype=torch.float64)


def brute_barycentrics(triangle, x, y):
    """Solves [a b c; 1 1 1] w = (x, y, 1)."""
    matrix = np.vstack([np.asarray(triangle).T, np.ones(3)])
    if abs(np.linalg.det(matrix)) < 1e-300:
        return None
    return np.linalg.solve(matrix, np.array([x, y, 1.0]))


def brute_hard(camera, vertices, faces, attributes, batch):
    """(face, attributes, depth, normal) per pixel: nearest interpolated z among front faces wholly in front of the camera."""
    in_camera = (vertices[batch] @ camera.world_to_camera[batch, :, :3].T + camera.world_to_camera[batch, :, 3]).numpy()
    k = camera.intrinsics[batch].numpy()
    pixels = np.stack([k[0, 0] * in_camera[:, 0] / in_camera[:, 2] + k[0, 2], k[1, 1] * in_camera[:, 1] / in_camera[:, 2] + k[1, 2]], axis=1)
    height, width = camera.height, camera.width
    face_map = -np.ones((height, width), dtype=int)
    values, depth, normal = np.zeros((attributes.shape[-1], height, width)), np.zeros((height, width)), np.zeros((3, height, width))
    for i in range(height):
        for j in range(width):
            best = math.inf
            for number, face in enumerate(faces.tolist()):
                corners = in_camera[face]
                n = np.cross(corners[1] - corners[0], corners[2] - corners[0])
                if (corners[:, 2] <= NEAR).any() or -n[2] < 0:
                    continue
                weights = brute_barycentrics(pixels[face], j + 0.5, i + 0.5)
                if weights is None or (weights < 0).any():
                    continue
                z = float(weights @ corners[:, 2])
                if z < best:
                    best, face_map[i, j], depth[i, j] = z, number, z
                    values[:, i, j] = weights @ attributes[batch][face].numpy()
                    normal[:, i, j] = n / np.linalg.norm(n) * [1, -1, -1]
    return face_map, values, depth, normal, pixels, in_camera[:, 2]


def brute_soft(pixels, depth, faces, covered):
    """1 - prod(1 - exp(-7000 d²)) over faces whose enlarged box holds the pixel; d to the nearest of three segments."""
    height, width = covered.shape
    result = np.ones((height, width))
    points = pixels * [2 / width, 2 / height] - 1
    for i in range(height):
        for j in range(width):
            if covered[i, j]:
                continue
            p, outside = np.array([(2 * j + 1) / width - 1, (2 * i + 1) / height - 1]), 1.0
            for face in faces.tolist():
                if (depth[face] <= NEAR).any():
                    continue
                triangle = points[face]
                if (p < triangle.min(axis=0) - MARGIN).any() or (p >= triangle.max(axis=0) + MARGIN).any():
                    continue
                squared = math.inf
                for a, b in ((0, 1), (1, 2), (2, 0)):
                    along = triangle[b] - triangle[a]
                    t = min(1.0, max(0.0, float((p - triangle[a]) @ along / (along @ along))))
                    squared = min(squared, float(((p - triangle[a] - t * along) ** 2).sum()))
                outside *= 1 - math.exp(-SHARPNESS * squared)
            result[i, j] = 1 - outside
    return result


@pytest.mark.parametrize(("width", "height", "focal", "seed"), [(13, 9, 9.0, 0), (8, 15, 12.0, 19), (16, 16, 22.0, 2)])
def test_hard_pass_is_brute_force(width, height, focal, seed):
    camera = make_camera(width, height, focal)
    vertices, faces, attributes = random_mesh(seed)
    image = render_mesh(vertices, faces, attributes, camera)
    assert image.attributes.shape == (2, 4, height, width)
    for b in range(2):
        face_map, values, depth, normal, *_ = brute_hard(camera, vertices, faces, attributes, b)
        assert len(np.unique(face_map)) > 2  # several faces and some background
        assert face_map.max() < len(faces) - 2  # those behind the camera are not drawn
        np.testing.assert_allclose(image.attributes[b], values, atol=1e-10)
        np.testing.assert_allclose(image.depth[b, 0], depth, atol=1e-10)
        np.testing.assert_allclose(image.normals[b], normal, atol=1e-10)
        np.testing.assert_array_equal(image.mask[b, 0].numpy() == 1.0, face_map >= 0)


@pytest.mark.parametrize(("width", "height", "focal", "seed"), [(30, 22, 26.0, 0), (18, 34, 25.0, 3)])
def test_soft_mask_is_brute_force(width, height, focal, seed):
    camera = make_camera(width, height, focal)
    vertices, faces, attributes = random_mesh(seed)
    image = render_mesh(vertices, faces, attributes, camera)
    for b in range(2):
        face_map, *_, pixels, depth = brute_hard(camera, vertices, faces, attributes, b)
        expected = brute_soft(pixels, depth, faces, face_map >= 0)
        np.testing.assert_allclose(image.mask[b, 0], expected, atol=1e-7)
        assert ((expected > 0.05) & (expected < 0.95)).sum() > 10


def test_soft_mask_includes_culled_faces():
    camera = make_camera(40, 30, 30.0, centres=((0.0, 0.0, 3.0),))
    vertices = torch.tensor([[[-0.8, -0.6, 0.0], [0.0, 0.9, 0.0], [0.9, -0.5, 0.0]]], dtype=torch.float64)  # seen from behind
    faces, attributes = torch.tensor([[0, 1, 2]]), torch.ones(1, 3, 1, dtype=torch.float64)
    image = render_mesh(vertices, faces, attributes, camera)
    assert image.attributes.abs().max() == 0
    assert image.mask.max() > 0.5
    assert image.mask.max() < 1.0
    front = render_mesh(vertices, faces.flip(1), attributes, camera)
    assert front.attributes.max() == pytest.approx(1.0)
    outside = front.mask < 1.0
    torch.testing.assert_close(front.mask[outside], image.mask[outside])


def test_visible_faces_with_perspective_is_ray_plane_intersection():
    width, height = 14, 10
    camera = make_camera(width, height, 11.0)
    vertices, faces, _ = random_mesh(5)
    in_camera = camera.to_camera(vertices)
    buffer = visible_faces(camera.to_pixels(in_camera), in_camera[..., 2], faces, height, width, perspective=True)
    flat = visible_faces(camera.to_pixels(in_camera), in_camera[..., 2], faces, height, width)
    assert not torch.allclose(buffer.barycentrics, flat.barycentrics, atol=1e-3)
    for b in range(2):
        corners, inverse = in_camera[b].numpy(), np.linalg.inv(camera.intrinsics[b].numpy())
        drawn = set()
        for i in range(height):
            for j in range(width):
                ray, best, nearest, weights = inverse @ [j + 0.5, i + 0.5, 1.0], math.inf, -1, np.zeros(3)
                for number, face in enumerate(faces.tolist()):
                    if (corners[face, 2] <= NEAR).any():
                        continue
                    w = np.linalg.solve(corners[face].T, ray)  # ray = sum of w_k corner_k: inside when all w_k >= 0
                    if (w >= 0).all() and 1 / w.sum() < best:  # the point is ray / sum(w), its depth 1 / sum(w)
                        best, nearest, weights = 1 / w.sum(), number, w / w.sum()
                assert int(buffer.face[b, i, j]) == nearest
                np.testing.assert_allclose(buffer.barycentrics[b, i, j], weights, atol=1e-10)
                drawn.add(nearest)
        assert len(drawn) > 3


def test_covered_is_where_a_face_is():
    pixels = torch.tensor([[[1.0, 1.0], [7.3, 1.0], [1.0, 7.3]]])
    buffer = visible_faces(pixels, torch.ones(1, 3), torch.tensor([[0, 1, 2]]), 8, 8)
    assert torch.equal(buffer.covered, buffer.face == 0)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    # Pixel centres (j + 0.5, i + 0.5) with x >= 1, y >= 1, x + y <= 8.3.
    assert torch.equal(buffer.covered[0], (rows >= 1) & (columns >= 1) & (rows + columns + 1 <= 8))


def test_keep_hides_faces_per_picture():
    pixels = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]]).repeat(2, 2, 1)  # two equal triangles, the second farther
    depth = torch.tensor([[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]]).repeat(2, 1)
    keep = torch.tensor([[True, True], [False, True]])
    buffer = visible_faces(pixels, depth, torch.tensor([[0, 1, 2], [3, 4, 5]]), 4, 4, keep=keep)
    assert buffer.face[0].unique().tolist() == [0]
    assert buffer.face[1].unique().tolist() == [1]


def test_equal_depths_are_won_by_lower_index():
    pixels = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]])
    faces = torch.tensor([[0, 1, 2], [0, 1, 2], [1, 2, 0]])
    assert visible_faces(pixels, torch.ones(1, 3), faces, 4, 4).face.unique().tolist() == [0]


@pytest.mark.parametrize("perspective", [False, True])
def test_barycentrics_reproduce_pixel(perspective):
    vertices, faces, _ = random_mesh(7)
    camera = make_camera(20, 15, 17.0)
    in_camera = camera.to_camera(vertices)
    pixels = camera.to_pixels(in_camera)
    buffer = visible_faces(pixels, in_camera[..., 2], faces, 15, 20, perspective=perspective)
    b, i, j = buffer.covered.nonzero(as_tuple=True)
    assert len(b) > 20
    corners, weights = faces[buffer.face[b, i, j]], buffer.barycentrics[b, i, j]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(b), dtype=torch.float64))
    if perspective:
        point = torch.einsum("kv,kvc->kc", weights, in_camera[b[:, None], corners])
        found = camera.to_pixels(point[None].expand(2, -1, -1))[0]
    else:
        found = torch.einsum("kv,kvc->kc", weights, pixels[b[:, None], corners])
    torch.testing.assert_close(found, torch.stack([j + 0.5, i + 0.5], dim=1).double())


def test_degenerate_faces_are_not_drawn():
    pixels = torch.tensor([[[1.0, 1.0], [5.0, 5.0], [3.0, 3.0], [2.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    faces = torch.tensor([[0, 1, 2], [3, 3, 3], [0, 0, 1]])
    buffer = visible_faces(pixels.detach(), torch.ones(1, 4, dtype=torch.float64), faces, 8, 8)
    assert not buffer.covered.any()
    weights = screen_barycentrics(pixels[0, faces], torch.full((3, 2), 2.5, dtype=torch.float64))
    assert torch.isfinite(weights).all()
    mask = soft_mask(pixels, torch.ones(1, 4, dtype=torch.float64), faces, buffer.covered)
    gradient, = torch.autograd.grad(mask.sum(), pixels)
    assert torch.isfinite(mask).all()
    assert torch.isfinite(gradient).all()


def test_gradients():
    """Attributes, depth, normals and soft mask; a generic scene keeps every pixel centre off every edge."""
    camera = make_camera(12, 9, 9.0)
    vertices, faces, attributes = random_mesh(30, face_count=6, channels=2)
    vertices.requires_grad_()
    attributes.requires_grad_()

    def render(vertices, attributes):
        image = render_mesh(vertices, faces, attributes, camera)
        return image.attributes, image.depth, image.normals, image.mask

    image = render(vertices, attributes)
    assert ((image[3] > 1e-3) & (image[3] < 1 - 1e-3)).sum() > 3
    assert (image[3] == 1).sum() > 6
    assert torch.autograd.gradcheck(render, (vertices, attributes))


def test_mask_has_no_gradient_on_covered_pixels():
    camera = make_camera(12, 9, 9.0)
    vertices, faces, attributes = random_mesh(0)
    vertices.requires_grad_()
    mask = render_mesh(vertices, faces, attributes, camera).mask
    gradient, = torch.autograd.grad((mask * (mask == 1)).sum(), vertices)
    assert (mask == 1).any()
    assert torch.equal(gradient, torch.zeros_like(vertices))


@pytest.mark.parametrize("limit", [1, 100])
def test_chunking_changes_nothing(monkeypatch, limit):
    camera = make_camera(30, 22, 26.0)
    vertices, faces, attributes = random_mesh(0)
    vertices.requires_grad_()
    results, chunks = [], []
    boxes = reference.box_cells
    monkeypatch.setattr(reference, "box_cells", lambda *arguments: chunks.append(1) or boxes(*arguments))
    for pairs in (reference.CHUNK_PAIRS, limit):
        monkeypatch.setattr(reference, "CHUNK_PAIRS", pairs)
        chunks.clear()
        image = render_mesh(vertices, faces, attributes, camera)
        total = image.attributes.square().sum() + image.depth.sum() + image.mask.square().sum()
        results.append((image.attributes, image.depth, image.normals, image.mask, *torch.autograd.grad(total, vertices), len(chunks)))
    for one, many in zip(results[0][:-1], results[1][:-1], strict=True):
        torch.testing.assert_close(many, one, rtol=1e-12, atol=1e-12)
    assert results[0][-1] == 2  # hard pass and soft mask
    assert results[1][-1] > 6


def test_off_centre_principal_point_is_crop_of_larger_picture():
    # Interpolated values only: the units of the soft mask are those of the picture.
    large = make_camera(40, 30, 30.0)
    vertices, faces, attributes = random_mesh(4)
    whole, part = render_mesh(vertices, faces, attributes, large), render_mesh(vertices, faces, attributes, large.cropped(13, 6, 17, 21))
    window = (..., slice(6, 27), slice(13, 30))
    torch.testing.assert_close(part.attributes, whole.attributes[window])
    torch.testing.assert_close(part.depth, whole.depth[window])
    torch.testing.assert_close(part.normals, whole.normals[window])
    assert torch.equal(part.mask == 1, whole.mask[window] == 1)
    assert (part.mask == 1).any()


def test_moving_principal_point_moves_soft_mask():
    camera = make_camera(30, 24, 26.0)
    vertices, faces, attributes = random_mesh(0)
    still, moved = render_mesh(vertices, faces, attributes, camera), render_mesh(vertices, faces, attributes, camera.cropped(5, -3, 30, 24))
    torch.testing.assert_close(moved.mask[..., 3:, :25], still.mask[..., :21, 5:])
    assert ((still.mask > 0.05) & (still.mask < 0.95)).any()


def test_empty_view_is_black():
    camera = make_camera(9, 7, 9.0)
    vertices, faces, attributes = random_mesh(0)
    image = render_mesh(vertices + torch.tensor([0.0, 0.0, 50.0]), faces, attributes, camera)
    for value in (image.attributes, image.mask, image.depth, image.normals):
        assert torch.equal(value, torch.zeros_like(value))


def test_front_faces_are_those_whose_normal_points_at_the_camera():
    camera = make_camera(16, 16, 16.0)
    vertices, faces, attributes = random_mesh(9)
    image = render_mesh(vertices, faces, attributes, camera)
    covered = image.mask[:, 0] == 1
    assert covered.any()
    assert (image.normals[:, 2][covered] >= 0).all()
    torch.testing.assert_close(image.normals.norm(dim=1)[covered], torch.ones(int(covered.sum()), dtype=torch.float64))
    front = (face_normals(camera.to_camera(vertices), faces)[..., 2] <= 0).sum()
    assert 0 < int(front) < 2 * len(faces)
