"""The zoom on CUDA: kernels and their twin give the same bits, at the size of training."""

import pytest
import torch

from lib.avatars.gaussian_head_avatar.augmentation import random_zoom, zoom_twin

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_kernels_give_the_bits_of_their_twin():
    random = torch.Generator("cuda").manual_seed(0)
    zoom = random_zoom(512, [torch.Generator().manual_seed(seed) for seed in range(4)])
    windows = torch.stack([zoom.top, zoom.left, zoom.size], dim=1)
    features = torch.randn(4, 32, 512, 512, generator=random, device="cuda", requires_grad=True)
    pixels = torch.randint(256, (4, 5, 2048, 2048), generator=random, device="cuda", dtype=torch.uint8)
    assert torch.equal(zoom.apply(pixels, 4), zoom_twin(pixels, 4 * windows))
    ours, right = zoom.apply(features, 1), zoom_twin(features, windows)
    assert torch.equal(ours, right)
    upstream = torch.randn(ours.shape, generator=random, device="cuda")
    assert torch.equal(*(torch.autograd.grad(output, features, upstream)[0] for output in (ours, right)))
