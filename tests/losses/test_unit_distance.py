"""What compares LPIPS' features: its kernels under Triton's interpreter against the twin in float64, the twin against its definition."""

import pytest
import torch

from lib.losses.perceptual import EPSILON, unit_distance, unit_distance_twin
from tests.render.triton_process import installed, interpreted, run_interpreted, starts_interpreter

SHAPES = [(1, 3, 1, 1), (2, 3, 7, 5), (1, 64, 9, 11), (2, 64, 8, 4), (2, 100, 5, 7), (1, 512, 3, 3), (2, 512, 1, 5)]


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


def features(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of two pictures, and weights of channels; float64."""
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, *shape, generator=random, dtype=torch.float64).float().double()
    return a, b, torch.rand(shape[1], generator=random).double()


def result(distance, a, b, weight, dtype, upstream=None):
    """Distances and gradient, in float64."""
    leaf = a.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    value = distance(leaf, b.to(dtype).contiguous(memory_format=torch.channels_last), weight.to(dtype))
    (gradient,) = torch.autograd.grad(value, leaf, torch.arange(1.0, len(a) + 1.0).to(value) if upstream is None else upstream.to(value))
    return value.detach().double(), gradient.double()


def assert_kernels_are_the_twin(a, b, weight, upstream=None):
    ours = result(unit_distance, a, b, weight, torch.float32, upstream)
    right = result(unit_distance_twin, a, b, weight, torch.float64, upstream)
    for value, oracle in zip(ours, right, strict=True):
        torch.testing.assert_close(value, oracle, rtol=2e-5, atol=2e-6 * float(oracle.abs().max()))
    return ours


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_the_twin(shape):
    assert_kernels_are_the_twin(*features(*shape))


@interpreted
def test_an_expanded_gradient_is_read():
    a, b, weight = features(2, 64, 4, 5)
    assert_kernels_are_the_twin(a, b, weight, torch.tensor(0.5).expand(2))


@interpreted
def test_other_layouts_are_taken():
    a, b, weight = (values.float() for values in features(2, 6, 8, 10))
    crop = unit_distance(a[:, ::2, 1:5, 3:], b[:, ::2, 1:5, 3:], weight[::2])
    torch.testing.assert_close(crop, unit_distance_twin(a[:, ::2, 1:5, 3:], b[:, ::2, 1:5, 3:], weight[::2]), rtol=1e-5, atol=0)


def zeros(of_a: bool, of_b: bool):
    """Vectors of which some are zero."""
    a, b, weight = features(2, 20, 4, 6)
    a[:, :, 1:3] *= not of_a
    b[:, :, 1:3] *= not of_b
    return a, b, weight


@interpreted
@pytest.mark.parametrize(("of_a", "of_b"), [(True, False), (False, True), (True, True)])
def test_kernels_at_zero_vectors(of_a, of_b):
    value, gradient = assert_kernels_are_the_twin(*zeros(of_a, of_b))
    assert value.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_zero_vectors_the_length_has_no_gradient(dtype):
    a, b, weight = zeros(True, False)
    _, gradient = result(unit_distance, a, b, weight, dtype)
    upstream = torch.tensor([1.0, 2.0]).double()[:, None, None, None]
    unit = b / (b.norm(dim=1, keepdim=True) + EPSILON)
    through_the_values = upstream * -2.0 * weight[:, None, None] * unit / EPSILON / (4 * 6)
    torch.testing.assert_close(gradient[:, :, 1:3], through_the_values[:, :, 1:3], rtol=1e-5, atol=0)
    assert not result(unit_distance, *zeros(True, True), dtype)[1][:, :, 1:3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_features_have_no_distance_and_no_gradient(dtype):
    a, _, weight = features(2, 64, 5, 6)
    value, gradient = result(unit_distance, a, a, weight, dtype)
    assert not value.any() and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_length_does_not_matter_so_the_gradient_is_across(dtype):
    a, b, weight = features(2, 64, 5, 6)
    value, gradient = result(unit_distance, a, b, weight, dtype)
    torch.testing.assert_close(result(unit_distance, 8.0 * a, 0.5 * b, weight, dtype)[0], value, rtol=1e-5, atol=0)
    assert (gradient * a).sum(dim=1).abs().max() <= 1e-5 * (gradient * a).abs().sum(dim=1).max()


@pytest.mark.parametrize("wanting", [1, 2])
def test_gradients_of_the_others_are_those_of_the_twin(wanting):
    """They want torch's expressions, also where kernels run."""
    gradients = []
    for distance in (unit_distance, unit_distance_twin):
        leaves = [values.float() for values in features(2, 6, 4, 5)]
        leaves[wanting].requires_grad_()
        gradients += torch.autograd.grad(distance(*leaves).sum(), leaves[wanting])
    assert torch.equal(*gradients) and gradients[0].any()


def test_gradcheck():
    a, b, weight = (values.requires_grad_() for values in features(2, 5, 3, 2))
    assert torch.autograd.gradcheck(unit_distance_twin, (a, b, weight))
