"""Nearest neighbours by chunked brute force: exact, no index to build, any device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.kernels import runs_kernels

# Upper bound of distances held at once: 64 MB in float32.
CHUNK_DISTANCES = 1 << 24
BLOCK, TARGETS = 128, 32  # points and targets that a program of the kernel compares at once


def nearest_squared(points: Float[Tensor, "N 3"], targets: Float[Tensor, "L 3"]) -> Float[Tensor, "N"]:
    """Squared distance to the nearest target; differentiable in both."""
    return (points - targets.index_select(0, _nearest(points.detach(), targets.detach()))).square().sum(dim=1)


def _nearest(points: Float[Tensor, "N 3"], targets: Float[Tensor, "L 3"]) -> Int[Tensor, "N"]:
    if runs_kernels(points) and len(points):  # cdist takes a hundred times longer on a GPU
        from lib.geometry.neighbor_kernels import nearest

        rows = torch.empty(len(points), dtype=torch.int64, device=points.device)
        with torch.cuda.device_of(points):
            nearest[(-(-len(points) // BLOCK),)](
                points.contiguous(), targets.contiguous(), rows, len(points), len(targets), BLOCK=BLOCK, TARGETS=TARGETS)
        return rows
    rows = max(1, CHUNK_DISTANCES // len(targets))
    return torch.cat([_squared(part, targets).argmin(dim=1) for part in points.split(rows)])


def mean_squared_to_nearest(points: Float[Tensor, "N 3"], count: int) -> Float[Tensor, "N"]:
    """Mean squared distance to the `count` nearest other points (fewer if there are not that many)."""
    count = min(count, len(points) - 1)
    if count < 1:
        return points.new_zeros(len(points))
    rows = max(1, CHUNK_DISTANCES // len(points))
    means = []
    for start in range(0, len(points), rows):
        squared = _squared(points[start:start + rows], points)
        own = torch.arange(start, start + len(squared), device=points.device)
        squared.scatter_(1, own[:, None], float("inf"))
        means.append(squared.topk(count, dim=1, largest=False).values.mean(dim=1))
    return torch.cat(means)


def _squared(points: Float[Tensor, "N 3"], targets: Float[Tensor, "M 3"]) -> Float[Tensor, "N M"]:
    # Without the matrix-product shortcut, whose cancellation is of the order of the spacing of a dense cloud.
    return torch.cdist(points, targets, compute_mode="donot_use_mm_for_euclid_dist").square()
