"""PSNR, SSIM and flicker against scikit-image and closed forms."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lib.metrics.flicker import flicker, jitter
from lib.metrics.psnr import psnr
from lib.metrics.ssim import MARGIN, ssim, ssim_map


def pictures(height, width, channels=3, noise=0.1, seed=0):
    """Smooth pictures and noisy copies, in [0,1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, channels, 4, 4, generator=generator, dtype=torch.float64)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return image, (image + noise * torch.randn(image.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)


def channels_last(image):
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_psnr_is_that_of_skimage(noise):
    image, target = pictures(17, 23, noise=noise)
    expected = [peak_signal_noise_ratio(channels_last(b), channels_last(a), data_range=1.0) for a, b in zip(image, target, strict=True)]
    torch.testing.assert_close(psnr(image, target), torch.tensor(expected, dtype=torch.float64))


def test_psnr_of_constant_error_is_its_logarithm():
    image = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(psnr(image, image + 0.1), torch.full((2,), 20.0, dtype=torch.float64))
    torch.testing.assert_close(psnr(image, image), torch.full((2,), 100.0, dtype=torch.float64))


def test_weighted_psnr_has_closed_form():
    # Error 0.1 on 6 pixels of weight 1, 0.2 on 4 pixels of weight 0.5, 0.9 elsewhere with weight 0.
    image, error = torch.zeros(1, 3, 4, 5, dtype=torch.float64), torch.full((1, 3, 4, 5), 0.9, dtype=torch.float64)
    weight = torch.zeros(1, 1, 4, 5, dtype=torch.float64)
    error[..., :2, :3], weight[..., :2, :3] = 0.1, 1.0
    error[..., 2:, 3:], weight[..., 2:, 3:] = 0.2, 0.5
    expected = -10 * math.log10((6 * 0.01 + 2 * 0.04) / (6 + 2))
    assert psnr(image, error, weight).item() == pytest.approx(expected)


def test_weighted_psnr_is_psnr_of_part():
    image, target = pictures(12, 10)
    weight = torch.zeros(2, 1, 12, 10, dtype=torch.float64)
    weight[..., 3:9, 2:7] = 1.0
    torch.testing.assert_close(psnr(image, target, weight), psnr(image[..., 3:9, 2:7], target[..., 3:9, 2:7]))
    torch.testing.assert_close(psnr(image, target, 0.25 * torch.ones_like(weight)), psnr(image, target))


def test_psnr_without_weight_anywhere_is_nan_for_that_picture():
    image, target = pictures(6, 6)
    weight = torch.ones(2, 1, 6, 6, dtype=torch.float64)
    weight[1] = 0.0
    result = psnr(image, target, weight)
    assert torch.isfinite(result[0])
    assert torch.isnan(result[1])


@pytest.mark.parametrize(("height", "width", "channels", "noise"), [(32, 24, 3, 0.1), (19, 40, 1, 0.02), (11, 11, 3, 0.3)])
def test_ssim_is_that_of_skimage(height, width, channels, noise):
    image, target = pictures(height, width, channels, noise)
    expected = [structural_similarity(
        channels_last(a), channels_last(b), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=-1,
    ) for a, b in zip(image, target, strict=True)]  # skimage averages over the part where the 11x11 window fits
    assert max(expected) < 0.999
    torch.testing.assert_close(ssim(image, target), torch.tensor(expected, dtype=torch.float64))


def test_ssim_is_one_only_for_equal_pictures_and_symmetric():
    image, target = pictures(20, 20)
    torch.testing.assert_close(ssim(image, image), torch.ones(2, dtype=torch.float64))
    assert (ssim(image, target) < 0.99).all()
    torch.testing.assert_close(ssim(image, target), ssim(target, image))


def test_ssim_refuses_pictures_smaller_than_its_window():
    image = torch.rand(1, 3, 10, 20)
    with pytest.raises(ValueError, match="11x11"):
        ssim(image, image)


def test_the_map_of_ssim_has_its_mean_and_is_that_of_skimage():
    image, target = pictures(24, 31)
    parts = ssim_map(image, target)
    assert parts.shape == (2, 24 - 2 * MARGIN, 31 - 2 * MARGIN)
    torch.testing.assert_close(parts.mean(dim=(1, 2)), ssim(image, target))
    _, full = structural_similarity(channels_last(image[1]), channels_last(target[1]), gaussian_weights=True, sigma=1.5,
                                    use_sample_covariance=False, data_range=1.0, channel_axis=-1, full=True)
    torch.testing.assert_close(parts[1], torch.from_numpy(full.mean(axis=-1)[MARGIN:-MARGIN, MARGIN:-MARGIN]))


def test_flicker_is_blind_to_a_constant_error_and_sees_a_trembling_one():
    before, now = pictures(8, 9)[0].split(1)
    assert float(flicker(now + 0.3, before + 0.3, now, before).abs().max()) < 1e-12
    torch.testing.assert_close(flicker(now + 0.1, before - 0.1, now, before), torch.full((1, 8, 9), 0.2, dtype=torch.float64))


def test_jitter_is_blind_to_even_change_and_that_of_a_frame_that_stands_out():
    first = pictures(8, 9)[0]
    assert float(jitter(first + 0.4, first + 0.2, first).abs().max()) < 1e-12
    torch.testing.assert_close(jitter(first, first + 0.1, first), torch.full((2,), 0.1, dtype=torch.float64))
