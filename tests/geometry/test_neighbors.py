"""Nearest neighbours against the full table of distances."""

import pytest
import torch

from lib.geometry import neighbors
from lib.geometry.neighbors import mean_squared_to_nearest, nearest_squared
from tests.render.triton_process import installed, interpreted, run_interpreted, starts_interpreter


def table(points, targets):
    return (points[:, None] - targets[None]).square().sum(dim=-1)


def test_nearest_is_minimum_of_table():
    torch.manual_seed(0)
    points, targets = torch.randn(57, 3, dtype=torch.float64), torch.randn(23, 3, dtype=torch.float64)
    torch.testing.assert_close(nearest_squared(points, targets), table(points, targets).min(dim=1).values)


def test_nearest_gradient_is_that_of_table():
    torch.manual_seed(1)
    points = torch.randn(31, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, dtype=torch.float64)
    ours = torch.autograd.grad((nearest_squared(points, targets) * weight).sum(), (points, targets))
    oracle = torch.autograd.grad((table(points, targets).min(dim=1).values * weight).sum(), (points, targets))
    for a, b in zip(ours, oracle, strict=True):
        torch.testing.assert_close(a, b)
    assert ours[1].abs().sum() > 0
    assert torch.autograd.gradcheck(nearest_squared, (points, targets))


def test_nearest_at_target_is_zero_with_zero_gradient():
    points = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    squared = nearest_squared(points, torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    gradient, = torch.autograd.grad(squared.sum(), points)
    assert squared.tolist() == [0.0]
    assert torch.equal(gradient, torch.zeros(1, 3))


def test_small_distances_far_from_origin_are_exact():
    # 1e-3 apart at 100 units: |a|² + |b|² - 2ab in float32 would return noise of the order of 1e-3.
    points = torch.tensor([[100.0, 0.0, 0.0], [100.0 + 2**-10, 0.0, 0.0], [100.0 + 3 * 2**-10, 0.0, 0.0]])
    assert nearest_squared(points, points[:1]).tolist() == [0.0, 2**-20, 9 * 2**-20]
    torch.testing.assert_close(mean_squared_to_nearest(points, 1), torch.tensor([2**-20, 2**-20, 4 * 2**-20]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_mean_excludes_self(count):
    torch.manual_seed(2)
    points = torch.randn(40, 3, dtype=torch.float64)
    squared = table(points, points)
    expected = torch.stack([
        torch.cat([squared[n, :n], squared[n, n + 1:]]).sort().values[:count].mean() for n in range(40)
    ])
    torch.testing.assert_close(mean_squared_to_nearest(points, count), expected)


def test_coinciding_points_are_neighbours():
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(mean_squared_to_nearest(points, 1), torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(mean_squared_to_nearest(points, 2), torch.tensor([2.0, 2.0, 4.0], dtype=torch.float64))


def test_too_few_points_use_those_there_are():
    points = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert mean_squared_to_nearest(points, 3).tolist() == [9.0, 9.0]
    assert mean_squared_to_nearest(points[:1], 3).tolist() == [0.0]
    assert mean_squared_to_nearest(points[:0], 3).tolist() == []


@pytest.mark.parametrize("limit", [1, 30, 200])
def test_chunking_changes_nothing(monkeypatch, limit):
    torch.manual_seed(3)
    points, targets = torch.randn(45, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    whole = nearest_squared(points, targets), mean_squared_to_nearest(points, 3)
    calls, squared = [], neighbors._squared
    monkeypatch.setattr(neighbors, "_squared", lambda *arguments: calls.append(1) or squared(*arguments))
    monkeypatch.setattr(neighbors, "CHUNK_DISTANCES", limit)
    assert torch.equal(nearest_squared(points, targets), whole[0])
    assert torch.equal(mean_squared_to_nearest(points, 3), whole[1])
    assert len(calls) > 2  # there were chunks


@interpreted
@pytest.mark.parametrize(("count", "targets"), [(1, 1), (300, 1), (129, 70), (5, 33)])
def test_the_kernel_finds_the_first_of_the_nearest(count, targets):
    generator = torch.Generator().manual_seed(count)
    points, others = torch.randn(count, 3, generator=generator), torch.randn(targets, 3, generator=generator)
    others[-1] = others[0]  # equally near: the first
    assert torch.equal(neighbors._nearest(points, others), (points[:, None] - others).square().sum(dim=-1).argmin(dim=1))


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)
