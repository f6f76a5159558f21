"""Losses against closed forms and independent forwards."""

import pytest
import torch
from torch import nn

from lib.errors import InputError
from lib.losses.mesh import laplacian_smoothness
from lib.losses.perceptual import BACKBONE_FILE, BLOCKS, HEADS_FILE, SCALE, SHIFT, load_lpips
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Seeded random weights under the published key names."""
    torch.manual_seed(0)
    backbone, index, width = {}, 0, 3
    for number, block in enumerate(BLOCKS):
        index += number > 0
        for out in block:
            backbone[f"features.{index}.weight"] = torch.randn(out, width, 3, 3) * (2.0 / (9 * width)) ** 0.5
            backbone[f"features.{index}.bias"] = 0.1 * torch.randn(out)
            width, index = out, index + 2
    backbone["classifier.0.weight"] = torch.zeros(2, 2)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, block[-1], 1, 1) for k, block in enumerate(BLOCKS)}
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(backbone, folder / BACKBONE_FILE)
    torch.save(heads, folder / HEADS_FILE)
    return folder, backbone, heads


def independent_lpips(image, target, backbone, heads):
    total = 0.0
    streams = [(2 * x - 1 - torch.tensor(SHIFT)[None, :, None, None]) / torch.tensor(SCALE)[None, :, None, None] for x in (image, target)]
    after = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}  # index of the last ReLU of each VGG16 block
    for index in range(30):
        if index in (4, 9, 16, 23):
            streams = [nn.functional.max_pool2d(x, 2) for x in streams]
        elif f"features.{index}.weight" in backbone:
            streams = [nn.functional.conv2d(x, backbone[f"features.{index}.weight"], backbone[f"features.{index}.bias"], padding=1) for x in streams]
        else:
            streams = [x.relu() for x in streams]
        if index in after:
            a, b = (x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10) for x in streams)
            total = total + ((a - b) ** 2 * heads[f"lin{after[index]}.model.1.weight"]).sum(dim=1).mean(dim=(1, 2))
    return total


def test_lpips_is_the_published_formula(weights):
    folder, backbone, heads = weights
    model = load_lpips(folder, "loss.lpips")
    image, target = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert torch.allclose(model(image, target), independent_lpips(image, target, backbone, heads), rtol=1e-4)
    assert torch.equal(model(image, image), torch.zeros(2))


def test_lpips_gradient_reaches_the_picture_not_the_weights(weights):
    model = load_lpips(weights[0], "loss.lpips")
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    model(image, torch.rand(1, 3, 32, 32)).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_missing_or_wrong_lpips_weights_are_named(weights, tmp_path):
    with pytest.raises(InputError, match=r"loss\.lpips is larger than 0, but .*vgg16\.pth is missing"):
        load_lpips(tmp_path, "loss.lpips")
    torch.save(weights[1], tmp_path / BACKBONE_FILE)
    torch.save({}, tmp_path / HEADS_FILE)
    with pytest.raises(InputError, match=r"'heads\.0' needs shape"):
        load_lpips(tmp_path, "loss.lpips")
    (tmp_path / HEADS_FILE).write_bytes(b"not a weight file")
    with pytest.raises(InputError, match=r"lpips_vgg\.pth: not a readable"):
        load_lpips(tmp_path, "loss.lpips")
