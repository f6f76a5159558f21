"""LPIPS on CUDA: kernels against their twin in float64, high precision against eager float32, graphs, waiting."""

import copy

import pytest
import torch

from lib.losses.perceptual import Lpips, unit_distance, unit_distance_twin
from lib.networks.precision import set_precision

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# Relative: float32 sums and approximate roots; the gradient is rounded to its type once (2^-9 at most in bfloat16).
GRADIENTS = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


@pytest.fixture(scope="module")
def models() -> dict[str, Lpips]:
    """VGG16 with random weights that keep the size of features: precision -> model."""
    random, exact = torch.Generator().manual_seed(0), Lpips("vgg")
    with torch.no_grad():
        for name, value in exact.state_dict().items():
            if name.startswith("lin"):
                value.copy_(torch.rand(value.shape, generator=random))
            elif value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=random) * (2.0 / value[0].numel()) ** 0.5)
            else:
                value.copy_(0.1 * torch.randn(value.shape, generator=random))
    rough = copy.deepcopy(exact)
    set_precision(rough, "high")
    return {"highest": exact.cuda(), "high": rough.cuda()}


def pictures(side: int, count: int = 1) -> torch.Tensor:
    return torch.rand(2, count, 3, side, side, generator=torch.Generator().manual_seed(1)).cuda()


def drawn(model, image, target):
    """Distance and gradient of the picture."""
    image = image.detach().requires_grad_()
    distance = model(image, target)
    return distance.detach(), *torch.autograd.grad(distance.mean(), image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 64, 512, 512), (2, 128, 127, 65), (1, 256, 128, 128), (2, 512, 33, 31), (1, 192, 27, 27), (2, 3, 17, 5),
                                   (1, 100, 1, 1)])
def test_kernels_are_the_twin(shape, dtype):
    random = torch.Generator().manual_seed(0)
    a, b = ((torch.randn(shape, generator=random).relu() + 0.01).to("cuda", dtype).contiguous(memory_format=torch.channels_last) for _ in "ab")
    weight, upstream = torch.rand(shape[1], generator=random).cuda(), torch.rand(shape[0], generator=random).cuda()
    results = []
    for distance, wide in ((unit_distance, dtype), (unit_distance_twin, torch.float64)):
        leaf = a.to(wide).requires_grad_()
        value = distance(leaf, b.to(wide), weight.to(torch.promote_types(wide, torch.float32)))
        results.append((value, *torch.autograd.grad(value, leaf, upstream.to(value))))
    (value, gradient), (exact, exact_gradient) = results
    assert value.dtype == torch.float32 and gradient.dtype == dtype and gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    assert float((gradient.double() - exact_gradient).norm()) <= GRADIENTS[dtype] * float(exact_gradient.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_and_equal_vectors(dtype):
    a = torch.rand(1, 64, 8, 9, generator=torch.Generator().manual_seed(0)).to("cuda", dtype).contiguous(memory_format=torch.channels_last)
    a[:, :, 2] = 0.0
    leaf = a.clone().requires_grad_()
    value = unit_distance(leaf, a, torch.ones(64, device="cuda"))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert float(value) < 1e-12 and float(gradient.abs().max()) < 1e-6  # one of two products may be rounded and the other not
    other = a.clone()
    other[:, :, 3] = 0.0
    (gradient,) = torch.autograd.grad(unit_distance(leaf, other, torch.ones(64, device="cuda")).sum(), leaf)
    assert gradient.isfinite().all() and gradient[:, :, 3].any()


@pytest.mark.parametrize("side", [64, 250, 512])
def test_high_precision_is_near_eager_float32(models, side, capsys):
    image, target = pictures(side, 2)
    exact, rough = (drawn(models[precision], image, target) for precision in ("highest", "high"))
    torch.testing.assert_close(rough[0], exact[0], rtol=0.05, atol=0)  # 13 layers, weights and outputs rounded by 2^-9
    likeness = float(torch.cosine_similarity(rough[1].flatten(), exact[1].flatten(), dim=0))
    with capsys.disabled():
        print(f"\n{side}: distance off by {float((rough[0] / exact[0] - 1).abs().max()):.1e}, likeness of gradients {likeness:.4f}")
    assert likeness > 0.95


def test_nothing_waits_for_the_device(models):
    image, target = pictures(64)
    drawn(models["high"], image, target)  # compiles, copies the weights
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn(models["high"], image, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_it(models):
    image, target = pictures(64)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            drawn(models["high"], image, target)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = drawn(models["high"], image, target)
    for seed in (1, 2):
        image.copy_(torch.rand(image.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        for one, other in zip(recorded, drawn(models["high"], image, target), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_a_crop_takes_few_launches(models, capsys):
    """Kernels and device time of LPIPS of a 512² crop, forward and backward; printed with -s."""
    image, target = pictures(512)
    for _ in range(3):
        drawn(models["high"], image, target)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profile:
        drawn(models["high"], image, target)
        torch.cuda.synchronize()
    launched = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    with capsys.disabled():
        print(f"\n{len(launched)} kernels, {sum(event.device_time for event in launched) / 1000.0:.2f} ms")
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=90))
    assert len(launched) < 300
