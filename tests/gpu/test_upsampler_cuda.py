"""The super-resolution network on CUDA: kernels against their twins in float64, the network against eager float32, graphs, memory."""

import pytest
import torch

from lib.networks import norm_layers
from lib.networks.upsampler import Upsampler, UpsamplerConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

LAYERS = {
    "norm_relu": (norm_layers.norm_relu, norm_layers.norm_relu_twin),
    "grow": (norm_layers.norm_relu_grow, norm_layers.norm_relu_grow_twin),
    "show": (norm_layers.norm_relu_show, norm_layers.norm_relu_show_twin),
}
layers = pytest.mark.parametrize("name", LAYERS)
types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Relative L2. Rounding to bfloat16 is at most 2^-9 off, and happens twice in the gradient of what grows; sums over planes are products of
# TF32, at most 2^-11 off. ReLUs open at the same values, as both sides read the same stored ones.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
SUMS = 1e-3


def relative(ours, right):
    return float((ours.double() - right.double()).norm() / right.double().norm())


def some_image(dtype, *shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3.0 + 5.0
    return x.to("cuda", dtype).contiguous(memory_format=torch.channels_last)


def parameters(name, channels):
    random = torch.Generator().manual_seed(1)
    values = (torch.randn(3, channels, generator=random) / channels**0.5, torch.randn(3, generator=random)) if name == "show" else ()
    return [value.cuda() for value in values]


def results(layer, x, others, upstream=None):
    leaves = [value.clone().requires_grad_() for value in (x, *others)]
    output = layer(*leaves)
    if upstream is None:
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output.dtype))], upstream


@layers
@types
@pytest.mark.parametrize("shape", [
    (2, 3, 5, 7), (1, 32, 130, 257), (3, 48, 33, 20), (1, 64, 301, 299), (1, 128, 64, 64), (1, 16, 1, 1), (1, 130, 9, 3),
])
def test_kernels_are_their_twins(name, dtype, shape):
    layer, twin = LAYERS[name]
    x, others = some_image(dtype, *shape), parameters(name, shape[1])
    ours, upstream = results(layer, x, others)
    exact, _ = results(twin, x.double(), [value.double() for value in others], upstream)
    for part, (value, right) in enumerate(zip(ours, exact, strict=True)):
        assert value.shape == right.shape
        if shape[2:] == (1, 1) and part == 1:
            assert not value.any()  # a single pixel is its own mean
            continue
        limit = SUMS if part > 1 else LIMITS[value.dtype]
        limit = max(limit, SUMS) if name == "show" and part == 1 else limit
        assert float((value.double() - right).norm()) <= limit * float(right.norm()) + 1e-9, part


@layers
@types
def test_the_same_input_gives_the_same_bits(name, dtype):
    x, others = some_image(dtype, 2, 32, 517, 389), parameters(name, 32)
    first, upstream = results(LAYERS[name][0], x, others)
    for _ in range(3):
        assert all(torch.equal(one, other) for one, other in zip(first, results(LAYERS[name][0], x, others, upstream)[0], strict=True))


@layers
@pytest.mark.parametrize("shape", [(9, 64, 2000, 2000), (1, 128, 4200, 4200)])
def test_more_values_than_four_bytes_can_number(name, shape):
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GiB")
    x = torch.empty(shape, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last).normal_()
    others = parameters(name, shape[1])
    with torch.no_grad():
        output = LAYERS[name][0](x, *others)
        if shape[0] > 1:
            assert torch.equal(output[-1:], LAYERS[name][0](x[-1:], *others))
        elif name != "show":
            assert relative(output[:, -8:, -40:, -40:], LAYERS[name][0](x[:, -8:], *others)[:, :, -40:, -40:]) <= LIMITS[torch.bfloat16]
    leaf = x.requires_grad_()
    upstream = torch.ones((), device="cuda", dtype=output.dtype).expand_as(output)
    del output
    (gradient,) = torch.autograd.grad(LAYERS[name][0](leaf, *others), leaf, upstream)
    if shape[0] > 1:
        alone = x.detach()[-1:].requires_grad_()
        (right,) = torch.autograd.grad(LAYERS[name][0](alone, *others), alone, upstream[-1:])
        assert relative(gradient[-1:], right) <= LIMITS[torch.bfloat16]  # torch sums the runs of one image in another order
    else:
        assert gradient.isfinite().all()


def drawn(network, features, upstream, precision, autocast=False):
    network.precision = precision
    leaves = [features.detach().requires_grad_(), *network.parameters()]
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        picture = network(leaves[0]).float()
    return [picture.detach(), *torch.autograd.grad(picture, leaves, upstream)]


def some_network(batch, size, capacity=32):
    torch.manual_seed(0)
    network = Upsampler(UpsamplerConfig(network_capacity=capacity)).cuda()
    return network, torch.rand(batch, 32, size, size, device="cuda"), torch.randn(batch, 3, 4 * size, 4 * size, device="cuda")


@pytest.mark.parametrize(("batch", "size", "capacity"), [(2, 64, 32), (1, 37, 24), (1, 256, 32)])
def test_high_precision_is_no_worse_than_autocast(batch, size, capacity, monkeypatch):
    """Gradients in bfloat16 are some 20 % off: rounding decides at which values near zero the ReLU opens."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network, features, upstream = some_network(batch, size, capacity)
    exact, ours = (drawn(network, features, upstream, precision) for precision in ("highest", "high"))
    usual = drawn(network, features, upstream, "highest", autocast=True)
    assert ours[0].is_contiguous()
    assert relative(ours[0], exact[0]) <= 5e-3
    for value, peer, right in zip(ours, usual, exact, strict=True):
        assert value.dtype == torch.float32
        assert relative(value, right) <= 1.1 * relative(peer, right) + 1e-3


def test_graphs_replay_what_is_drawn():
    network, features, upstream = some_network(1, 64)
    network.precision = "high"
    held, leaves = features.clone().requires_grad_(), list(network.parameters())

    def draw():
        picture = network(held)
        return [picture.detach(), *torch.autograd.grad(picture, [held, *leaves], upstream)]

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                draw()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = draw()
        for seed in (1, 2):
            with torch.no_grad():
                held.copy_(torch.rand(held.shape, generator=torch.Generator().manual_seed(seed)))
            graph.replay()
            assert all(torch.equal(one, other) for one, other in zip(recorded, draw(), strict=True))


def test_nothing_waits_for_the_device():
    network, features, upstream = some_network(1, 64)
    drawn(network, features, upstream, "high")
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn(network, features, upstream, "high")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_at_2048():
    """Bytes above weights, features and the picture's gradient: 3.5 GiB with gradients, of which the convolutions' inputs are most; 1.5 without."""
    network, features, upstream = some_network(1, 512)
    network.precision = "high"

    def forward():
        with torch.no_grad():
            network(features)

    for call, limit in ((forward, 1.5), (lambda: drawn(network, features, upstream, "high"), 3.5)):
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        assert torch.cuda.max_memory_allocated() - before <= limit * 2**30
