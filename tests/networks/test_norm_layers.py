"""Fused layers: kernels against their twins in float64 under Triton's interpreter, twins against torch's layers, the network against itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lib.errors import InputError
from lib.networks import norm_layers
from lib.networks.upsampler import Upsampler, UpsamplerConfig
from tests.render.triton_process import INTERPRETED, installed, interpreted, run_interpreted, starts_interpreter

LAYERS = {
    "norm_relu": (norm_layers.norm_relu, norm_layers.norm_relu_twin),
    "grow": (norm_layers.norm_relu_grow, norm_layers.norm_relu_grow_twin),
    "show": (norm_layers.norm_relu_show, norm_layers.norm_relu_show_twin),
}
layers = pytest.mark.parametrize("name", LAYERS)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(name, channels, outputs=3):
    return (random(outputs, channels, seed=1) / channels**0.5, random(outputs, seed=2)) if name == "show" else ()


def results(layer, x, others):
    """Output, and gradients of a random linear function of it."""
    leaves = [value.clone().requires_grad_() for value in (x, *others)]
    output = layer(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, random(*output.shape, seed=3).to(output.dtype))]


def relative(ours, right):
    return float((ours.double() - right.double()).norm()) / max(float(right.double().norm()), 1e-30)


def assert_is_twin(name, x, limit=1e-5, outputs=3):
    """Of the same float32 numbers, in float64."""
    layer, twin = LAYERS[name]
    x, others = x.float(), [value.float() for value in parameters(name, x.shape[1], outputs)]
    ours = results(layer, x, others)
    exact = results(twin, x.double(), [value.double() for value in others])
    for value, right in zip(ours, exact, strict=True):
        assert value.dtype == torch.float32
        assert value.shape == right.shape
        assert relative(value, right) <= limit
    return ours


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


@interpreted
@layers
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 32, 9, 13), (2, 48, 17, 6), (1, 16, 1, 9), (1, 20, 11, 1), (1, 130, 3, 4), (1, 32, 18, 35)])
def test_kernels_are_their_twins(name, shape):
    assert_is_twin(name, random(*shape))


@interpreted
@layers
def test_kernels_take_many_runs(name, monkeypatch):
    """More runs than the program that merges them takes at once, the last of them short; more rows and columns than one program takes."""
    for constant, value in {"SUM_TILE": 512, "SUM_STEPS": 3, "APPLY_TILE": 512, "GROW_TILE": 256, "GROW_ROWS": 7, "SHOW_TILE": 512,
                            "SHOW_SUM_TILE": 512, "SHOW_SUM_STEPS": 3, "MERGE_ROWS": 4}.items():
        monkeypatch.setattr(norm_layers, constant, value)
    assert_is_twin(name, random(2, 24, 17, 19) + torch.linspace(-3, 3, 17)[:, None])


@interpreted
@layers
def test_kernels_read_any_memory_layout(name):
    x = random(2, 32, 9, 7)
    for view in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x[:, ::2], x.flip(3)[:, :, 1:]):
        assert_is_twin(name, view)


@interpreted
@pytest.mark.parametrize("outputs", [1, 4, 17])
def test_pictures_have_any_number_of_planes(outputs):
    assert_is_twin("show", random(2, 16, 6, 5), outputs=outputs)


@interpreted
@layers
def test_large_means_do_not_cancel(name):
    """float32 holds such values to 1e-3 of their deviation: squares summed around zero would lose everything."""
    x = 2e4 + random(1, 8, 40, 30)
    x[:, :, 0, 0] = 0.0  # not even around a value far from the mean
    assert_is_twin(name, x, limit=1e-3)


@interpreted
def test_a_constant_channel_is_nothing():
    x = torch.full((1, 3, 6, 5), 7.0)
    output, gradient = assert_is_twin("norm_relu", x)
    assert not output.any()
    assert not gradient.any()


@interpreted
@layers
def test_nan_stays_nan_in_its_image(name):
    x = random(2, 16, 6, 5).float()
    x[0, 3, 2, 2] = float("nan")
    output = LAYERS[name][0](x, *(value.float() for value in parameters(name, 16)))
    assert output[0].isnan().any(dim=0).all()
    assert output[1].isfinite().all()


@interpreted
@layers
def test_expanded_gradients_are_read(name):
    layer, twin = LAYERS[name]
    x, others = random(1, 16, 6, 5).float(), [value.float() for value in parameters(name, 16)]
    gradients = []
    for one in (layer, twin):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(one(leaf, *others).sum(), leaf)
        gradients.append(gradient)
    # Standardised values sum to zero, so does much of the gradient: what is left is compared with the gradient itself.
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-4 * x.numel() ** 0.5


@interpreted
def test_the_network_of_kernels_is_the_eager_one():
    network = Upsampler(UpsamplerConfig(input_dim=5, network_capacity=4))
    features, weights = random(2, 5, 6, 5).float(), list(network.parameters())
    upstream = random(2, 3, 24, 20, seed=1).float()
    pictures = network._fused(features, torch.float32), network(features)
    ours, eager = ([picture, *torch.autograd.grad(picture, weights, upstream)] for picture in pictures)
    for value, right in zip(ours, eager, strict=True):
        assert relative(value.detach(), right.detach()) <= 1e-4


@pytest.mark.parametrize("shape", [(1, 1, 40_000, 40_000), (0, 3, 4, 4), (1, 3, 0, 4)])
def test_impossible_images_are_refused(shape):
    with pytest.raises(InputError, match=" x ".join(map(str, shape))):
        norm_layers._Layout(torch.empty(shape, device="meta"))


def eager_layers(name, channels):
    """The same of torch's layers, in float64."""
    norm, sigmoid = nn.InstanceNorm2d(channels), nn.Sigmoid()
    grow = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return {
        "norm_relu": lambda x: norm(x).relu(),
        "grow": lambda x: grow(norm(x).relu()),
        "show": lambda x, weight, bias: sigmoid(functional.conv2d(norm(x).relu(), weight[:, :, None, None], bias)),
    }[name]


@layers
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 8, 1, 6), (3, 4, 2, 2)])
def test_twins_are_layers_of_torch(name, shape):
    others = parameters(name, shape[1])
    ours, eager = (results(layer, random(*shape), others) for layer in (LAYERS[name][1], eager_layers(name, shape[1])))
    for value, right in zip(ours, eager, strict=True):
        torch.testing.assert_close(value, right)


@layers
def test_twins_have_the_gradients_of_differences(name):
    leaves = [value.requires_grad_() for value in (random(2, 3, 4, 3), *parameters(name, 3))]
    assert torch.autograd.gradcheck(LAYERS[name][1], leaves)


@layers
def test_twins_keep_the_type(name):
    output = LAYERS[name][1](random(1, 4, 5, 6).bfloat16(), *(value.float() for value in parameters(name, 4)))
    assert output.dtype == (torch.float32 if name == "show" else torch.bfloat16)


def test_the_network_of_twins_is_the_eager_one():
    network = Upsampler(UpsamplerConfig(input_dim=5, network_capacity=4)).double()
    features, upstream = random(2, 5, 6, 9), random(2, 3, 24, 36, seed=1)
    leaves = [features.requires_grad_(), *network.parameters()]
    pictures = network._fused(features, torch.float64), network(features)
    ours, eager = ([picture, *torch.autograd.grad(picture, leaves, upstream)] for picture in pictures)
    for value, right in zip(ours, eager, strict=True):
        torch.testing.assert_close(value, right)


@pytest.mark.skipif(INTERPRETED, reason="bfloat16 cannot be interpreted")
def test_high_precision_is_no_worse_than_autocast():
    """Gradients in bfloat16 are some 20 % off: rounding decides at which values near zero the ReLU opens."""
    torch.manual_seed(0)
    network = Upsampler(UpsamplerConfig(input_dim=8, network_capacity=8))
    features, upstream = torch.rand(1, 8, 24, 24), torch.randn(1, 3, 96, 96)
    leaves = [features.requires_grad_(), *network.parameters()]

    def drawn(precision, autocast=False):
        network.precision = precision
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            picture = network(features).float()
        return [picture.detach(), *torch.autograd.grad(picture, leaves, upstream)]

    exact, ours, usual = drawn("highest"), drawn("high"), drawn("highest", autocast=True)
    assert relative(ours[0], exact[0]) <= 5e-3
    for value, peer, right in zip(ours, usual, exact, strict=True):
        assert value.dtype == torch.float32
        assert value.shape == right.shape
        assert relative(value, right) <= 1.1 * relative(peer, right) + 1e-3


def test_precision_is_no_part_of_a_checkpoint():
    torch.manual_seed(0)
    config = UpsamplerConfig(network_capacity=4)
    usual, fast = Upsampler(config), Upsampler(config, "high")
    assert usual.precision == "highest"
    names = [f"{level}.{layer}.weight" for level in ("entry", "up1", "up2") for layer in (0, 3)]
    assert list(fast.state_dict()) == [*names, "exit.weight", "exit.bias"]
    fast.load_state_dict(usual.state_dict())
    features = torch.rand(1, 32, 5, 4)
    assert relative(fast(features).detach(), usual(features).detach()) <= 1e-2
