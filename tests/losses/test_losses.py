"""Losses against closed forms."""

import pytest
import torch

from lib.gaussians.cloud import GaussianCloud
from lib.losses.gaussians import oversize, transparency
from lib.losses.mesh import laplacian_smoothness
from lib.losses.photometric import visible_l1
from lib.losses.silhouette import one_minus_iou


def test_invisible_pixels_do_not_count():
    image, target = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    visible = torch.zeros(1, 1, 4, 4)
    visible[..., :2] = 1.0
    assert visible_l1(image, target, visible) == pytest.approx(0.5)


def test_iou_of_overlapping_squares():
    a, b = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    a[..., 0:4, 0:4] = 1.0
    b[..., 0:4, 2:6] = 1.0  # 8 pixels shared, 24 covered
    assert one_minus_iou(a, b) == pytest.approx(1 - 8 / 24)
    assert one_minus_iou(a, a) == pytest.approx(0.0, abs=1e-6)


def test_laplacian_is_summed_over_the_batch_and_quadratic_in_size():
    vertices, faces = torch.randn(1, 5, 3), torch.tensor([[0, 1, 2], [2, 3, 4]])
    one = laplacian_smoothness(vertices, faces)
    assert laplacian_smoothness(vertices.repeat(3, 1, 1), faces) == pytest.approx(3 * float(one), rel=1e-5)
    assert laplacian_smoothness(2 * vertices, faces) == pytest.approx(4 * float(one), rel=1e-5)


def cloud(scales: list[list[float]], opacities: list[float]) -> GaussianCloud:
    count = len(opacities)
    return GaussianCloud(torch.zeros(1, count, 3), torch.tensor([[[1.0, 0, 0, 0]] * count]), torch.tensor([scales]),
                         torch.tensor([opacities]), torch.zeros(1, count, 3))


def test_transparency_is_the_mean_missing_opacity():
    assert transparency(cloud([[1.0] * 3] * 2, [1.0, 0.4])) == pytest.approx(0.3)


def test_oversize_counts_the_longest_axis_beyond_the_limit_in_canonical_units():
    needles = cloud([[0.001, 0.002, 0.006], [0.002, 0.003, 0.001]], [0.5, 0.5])
    assert oversize(needles, torch.tensor([[0.1]]), limit=0.03) == pytest.approx(((0.06 / 0.03 - 1) ** 2 + 0.0) / 2, rel=1e-5)
    assert oversize(needles, torch.tensor([[0.1]]), limit=0.06) == 0.0  # nothing is longer
