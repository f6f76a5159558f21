"""Cameras: resizing, cropping, looking."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.geometry.camera import Camera, look_at


def cameras(seed=0, width=40, height=30):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    centre = 4.0 * torch.nn.functional.normalize(centre, dim=1)
    intrinsics = torch.tensor([
        [[50.0, 0.0, 18.0], [0.0, 55.0, 16.5], [0.0, 0.0, 1.0]], [[30.0, 0.0, 25.0], [0.0, 28.0, 10.0], [0.0, 0.0, 1.0]],
    ], dtype=torch.float64)
    points = torch.rand(2, 50, 3, generator=generator, dtype=torch.float64) - 0.5
    return Camera(look_at(centre, torch.zeros_like(centre)), intrinsics, width, height), points


def test_projection_is_pinhole():
    camera, points = cameras()
    pixels = camera.project(points)
    for b in range(2):
        extrinsic, k = camera.world_to_camera[b], camera.intrinsics[b]
        for n in range(5):
            p = torch.cat([points[b, n], torch.ones(1, dtype=torch.float64)])
            x, y, z = (float(extrinsic[row] @ p) for row in range(3))
            assert float(pixels[b, n, 0]) == pytest.approx(float(k[0, 0]) * x / z + float(k[0, 2]))
            assert float(pixels[b, n, 1]) == pytest.approx(float(k[1, 1]) * y / z + float(k[1, 2]))


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_resizing_scales_pixels(width, height):
    camera, points = cameras()
    resized = camera.resized(width, height)
    factor = torch.tensor([width / 40, height / 30], dtype=torch.float64)
    torch.testing.assert_close(resized.project(points), camera.project(points) * factor)
    assert (resized.width, resized.height) == (width, height)


@settings(max_examples=25, deadline=None)
@given(left=st.integers(-50, 50), top=st.integers(-50, 50), width=st.integers(1, 90), height=st.integers(1, 90))
def test_cropping_shifts_pixels(left, top, width, height):
    camera, points = cameras()
    cropped = camera.cropped(left, top, width, height)
    torch.testing.assert_close(cropped.project(points), camera.project(points) - torch.tensor([left, top], dtype=torch.float64))
    assert (cropped.width, cropped.height) == (width, height)


def test_resize_and_crop_commute():
    camera, points = cameras()
    one = camera.cropped(4, 6, 20, 10).resized(60, 30)
    other = camera.resized(120, 90).cropped(12, 18, 60, 30)
    torch.testing.assert_close(one.intrinsics, other.intrinsics)
    torch.testing.assert_close(one.project(points), other.project(points))


def test_decimated_picture_has_resized_camera():
    # Averaging 2x2 blocks of the picture of pixel coordinates gives the coordinates that the resized camera expects.
    camera, _ = cameras()
    columns = torch.arange(40, dtype=torch.float64) + 0.5  # column centres
    halved = columns.reshape(20, 2).mean(dim=1)
    small = camera.resized(20, 15)
    ray = (halved - camera.intrinsics[0, 0, 2]) / camera.intrinsics[0, 0, 0]
    torch.testing.assert_close(ray * small.intrinsics[0, 0, 0] + small.intrinsics[0, 0, 2], torch.arange(20, dtype=torch.float64) + 0.5)


def test_original_camera_is_untouched():
    camera, _ = cameras()
    before = camera.intrinsics.clone()
    camera.resized(7, 9)
    camera.cropped(1, 2, 3, 4)
    assert torch.equal(camera.intrinsics, before)


@settings(max_examples=30, deadline=None)
@given(azimuth=st.floats(-math.pi, math.pi), elevation=st.floats(-1.4, 1.4), distance=st.floats(0.5, 10.0), offset=st.floats(-2.0, 2.0))
def test_look_at_is_upright_rotation_towards_target(azimuth, elevation, distance, offset):
    target = torch.tensor([[offset, 0.3 * offset, -offset]], dtype=torch.float64)
    direction = [math.cos(elevation) * math.sin(azimuth), math.sin(elevation), math.cos(elevation) * math.cos(azimuth)]
    centre = target + distance * torch.tensor([direction], dtype=torch.float64)
    extrinsic = look_at(centre, target)
    rotation = extrinsic[0, :, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.det(rotation)) == pytest.approx(1.0)
    intrinsics = torch.tensor([[[40.0, 0.0, 11.0], [0.0, 40.0, 7.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    camera = Camera(extrinsic, intrinsics, 20, 20)
    torch.testing.assert_close(camera.to_camera(centre[:, None]), torch.zeros(1, 1, 3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(camera.to_camera(target[:, None])[0, 0], torch.tensor([0.0, 0.0, distance], dtype=torch.float64), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(camera.project(target[:, None])[0, 0], torch.tensor([11.0, 7.0], dtype=torch.float64))
    above = camera.project(target[:, None] + torch.tensor([0.0, 0.1, 0.0]))[0, 0]
    assert float(above[1]) < 7.0  # y of the picture points down
    assert float(above[0]) == pytest.approx(11.0)


def test_only_points_in_front_have_positive_depth():
    centre, target = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    camera = Camera(look_at(centre, target), torch.eye(3)[None], 4, 4)
    depth = camera.to_camera(torch.tensor([[[0.2, -0.1, 2.9], [1.0, 1.0, -5.0], [0.3, 0.1, 3.5]]]))[0, :, 2]
    torch.testing.assert_close(depth, torch.tensor([0.1, 8.0, -0.5]))


def test_camera_right_is_world_right_seen_from_the_front():
    # From +z looking at the origin, x of the world is x of the picture: a face looking at +z has its left ear on the right.
    camera = Camera(look_at(torch.tensor([[0.0, 0.0, 2.0]]), torch.zeros(1, 3)), torch.eye(3)[None], 4, 4)
    torch.testing.assert_close(camera.to_camera(torch.tensor([[[1.0, 2.0, 0.0]]]))[0, 0], torch.tensor([1.0, -2.0, 2.0]))


def test_stacked_cameras_keep_single_size():
    one, _ = cameras()
    single = Camera(one.world_to_camera[0], one.intrinsics[0], one.width, one.height)
    stacked = Camera.stack([single, single.resized(40, 30)])
    assert stacked.intrinsics.shape == (2, 3, 3)
    with pytest.raises(ValueError, match="width"):
        Camera.stack([single, single.resized(41, 30)])
