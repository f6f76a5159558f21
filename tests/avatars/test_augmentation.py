"""The zoom between rasterization and super-resolution."""

import pytest
import torch

from lib.avatars.gaussian_head_avatar.augmentation import Zoom, random_zoom


def seeded(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def slow_zoom(image, size, left, top, window):
    """Nearest resampling by torch, then a loop that crops or pads with 1."""
    resized = torch.nn.functional.interpolate(image[None], size=(size, size), mode="nearest")[0]
    out = torch.ones(image.shape[0], window, window)
    for row in range(window):
        for column in range(window):
            if 0 <= row + top < size and 0 <= column + left < size:
                out[:, row, column] = resized[:, row + top, column + left]
    return out


@pytest.mark.parametrize("scale", [1, 4])
def test_zoom_is_nearest_resampling_then_crop_or_pad(scale):
    zoom = Zoom(torch.tensor([13, 16, 20]), torch.tensor([-2, 0, 3]), torch.tensor([-1, 0, 1]), 16)
    image = torch.rand(3, 2, 16 * scale, 16 * scale)
    expected = [
        slow_zoom(image[k], int(zoom.size[k]) * scale, int(zoom.left[k]) * scale, int(zoom.top[k]) * scale, 16 * scale) for k in range(3)
    ]
    assert torch.equal(zoom.apply(image, scale), torch.stack(expected))


def test_fine_and_coarse_stay_aligned():
    """A picture made of 4x4 blocks zooms to the zoomed blocks, within a block at the borders of resampling."""
    zoom = random_zoom(32, seeded(4))
    coarse = torch.rand(4, 1, 32, 32)
    fine = coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    centre = zoom.apply(fine, 4)[:, :, ::4, ::4]
    assert torch.equal(centre, zoom.apply(coarse, 1))


def test_sizes_stay_in_the_published_range():
    zoom = random_zoom(64, seeded(2000))
    assert int(zoom.size.min()) >= int(64 * 0.8) and int(zoom.size.max()) <= int(64 * 1.25)
    inside = (zoom.size >= 64)
    assert (zoom.left[inside] >= 0).all() and (zoom.left[inside] + 64 <= zoom.size[inside]).all()
    assert (zoom.left[~inside] <= 0).all() and (zoom.left[~inside] + 64 >= zoom.size[~inside]).all()


def test_gradient_flows_through_the_zoom():
    image = torch.rand(1, 1, 8, 8, requires_grad=True)
    random_zoom(8, seeded(1)).apply(image, 1).sum().backward()
    assert image.grad is not None and image.grad.sum() > 0
