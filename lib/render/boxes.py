"""Vectorised enumeration of (owner, cell) pairs: every cell of every owner's axis-aligned box."""

import torch
from jaxtyping import Int
from torch import Tensor


def box_cells(
    owners: Int[Tensor, "k"], low: Int[Tensor, "K 2"], extent: Int[Tensor, "K 2"]
) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"], Int[Tensor, "P"]]:
    """For owners in the given order, row by row: (owner, column, row) of every cell in low .. low + extent."""
    count = extent[owners].prod(dim=1)
    owner = owners.repeat_interleave(count)
    first = (count.cumsum(dim=0) - count).repeat_interleave(count)
    inside = torch.arange(len(owner), device=owner.device) - first
    across = extent[owner, 0]
    down = torch.div(inside, across, rounding_mode="floor")
    return owner, low[owner, 0] + inside - down * across, low[owner, 1] + down


def split_by_total(counts: Int[Tensor, "K"], limit: int) -> list[Int[Tensor, "k"]]:
    """Rows with a positive count, in order, in groups whose counts add up to about `limit` (one row may exceed it)."""
    rows = counts.nonzero()[:, 0]
    if len(rows) == 0:
        return []
    group = (counts[rows].cumsum(dim=0) - 1) // limit
    return list(rows.split(torch.unique_consecutive(group, return_counts=True)[1].tolist()))
