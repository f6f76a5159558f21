"""The zoom between rasterization and super-resolution."""

import pytest
import torch

from lib.avatars.gaussian_head_avatar import augmentation
from lib.avatars.gaussian_head_avatar.augmentation import Zoom, random_zoom
from tests.render.triton_process import compiles, installed, interpreted, run_interpreted, starts_interpreter

ZOOMS = {
    "random": random_zoom(21, [torch.Generator().manual_seed(seed) for seed in range(6)]),
    "extremes": Zoom(torch.tensor([42, 1, 21, 30]), torch.tensor([5, -20, 0, 9]), torch.tensor([21, -3, 0, -9]), 21),
    "beyond twice": Zoom(torch.tensor([43, 70]), torch.tensor([11, 30]), torch.tensor([1, 40]), 21),
}


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


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (3, 3, 32, 32)])
def test_other_pictures_are_refused(shape):
    with pytest.raises(ValueError, match="3 of 16 x 16"):
        random_zoom(16, seeded(3)).apply(torch.zeros(shape), 1)


def test_gradient_flows_through_the_zoom():
    image = torch.rand(1, 1, 8, 8, requires_grad=True)
    random_zoom(8, seeded(1)).apply(image, 1).sum().backward()
    assert image.grad is not None and image.grad.sum() > 0


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("name", ZOOMS)
@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_kernels_give_the_bits_of_their_twin(name, scale, dtype, monkeypatch):
    zoom, random = ZOOMS[name], torch.Generator().manual_seed(0)
    shape = (len(zoom.size), 3, 21 * scale, 21 * scale)
    image = torch.randn(shape, generator=random) if dtype is torch.float32 else torch.randint(256, shape, generator=random, dtype=dtype)
    image.requires_grad_(dtype is torch.float32)
    calls, twin = [], augmentation.zoom_twin
    monkeypatch.setattr(augmentation, "zoom_twin", lambda *arguments: calls.append(1) or twin(*arguments))
    ours = zoom.apply(image, scale)
    assert bool(calls) == (name == "beyond twice")
    right = twin(image, scale * torch.stack([zoom.top, zoom.left, zoom.size], dim=1))
    assert ours.dtype == dtype and torch.equal(ours, right)
    if dtype is torch.float32:
        upstream = torch.randn(shape, generator=random)
        assert torch.equal(*(torch.autograd.grad(output, image, upstream)[0] for output in (ours, right)))


@installed
@compiles
@pytest.mark.parametrize(("name", "stored"), [("zoom", "fp32"), ("zoom", "u8"), ("zoom_gradients", "fp32")])
def test_kernels_compile_without_a_gpu(name, stored, tmp_path, monkeypatch):
    from triton.compiler import ASTSource

    from lib.avatars.gaussian_head_avatar import zoom_kernels
    from tests.render.compiled import assembled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(zoom_kernels, name)
    constants = {"CHANNELS": 32 if stored == "fp32" else 5, "BLOCK": augmentation.BLOCK}
    if name == "zoom":
        constants["PADDING"] = 1.0 if stored == "fp32" else 255
    types = {"windows": "*i32", "count": "i32"} | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, f"*{stored}") for argument in kernel.arg_names}
    attributes = {(index,): [["tt.divisibility", 16]] for index in range(4)}
    needs = assembled(ASTSource(kernel, signature, constants, attributes), 90, augmentation.WARPS, {})
    assert needs.registers <= 128 and needs.stack == 0
