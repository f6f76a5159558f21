"""The recursive smoothing of the published reenactment."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def smooth(values: Float[Tensor, "T D"], previous: float) -> Float[Tensor, "T D"]:
    """y_i = previous · y_(i-1) + (1 - previous) · x_i, started at the first frame."""
    rows = [values[0]]
    for value in values[1:]:
        rows.append(previous * rows[-1] + (1.0 - previous) * value)
    return torch.stack(rows)


def smooth_poses(poses: Float[Tensor, "T 6"], previous: float) -> Float[Tensor, "T 6"]:
    """The same for poses. Rotation vectors jump where a head turns beyond half a turn; there the longer one of the same rotation is smoothed."""
    if previous == 0.0:
        return poses
    turns = [poses[0, :3]]
    for turn in poses[1:, :3]:
        turns.append(min((turn, _other_way(turn)), key=lambda one: float((one - turns[-1]).norm())))
    steady = smooth(torch.cat([torch.stack(turns), poses[:, 3:]], dim=1), previous)
    short = [turn if turn.norm() <= math.pi else _other_way(turn) for turn in steady[:, :3]]
    return torch.cat([torch.stack(short), steady[:, 3:]], dim=1)


def _other_way(turn: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    """The rotation vector of the same rotation that turns the other way round (itself for none)."""
    angle = float(turn.norm())
    return turn * (1.0 - 2.0 * math.pi / angle) if angle > 0.0 else turn
