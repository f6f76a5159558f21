"""Frequency encoding of NeRF (Mildenhall et al., ECCV 2020, eq. 4) without the factor pi and with the input kept."""

import torch
from jaxtyping import Float
from torch import Tensor


def encoded_width(width: int, frequencies: int) -> int:
    """Columns of `positional_encoding` for `width` input columns."""
    return width * (1 + 2 * frequencies)


def positional_encoding(x: Float[Tensor, "*B D"], frequencies: int) -> Float[Tensor, "*B K"]:
    """[x, sin x, cos x, sin 2x, cos 2x, ..., sin 2^(k-1) x, cos 2^(k-1) x], blocks of D columns, k = `frequencies`."""
    if frequencies == 0:
        return x
    angles = x[..., None, :] * (1 << torch.arange(frequencies, device=x.device))[:, None]  # exact: powers of two
    return torch.cat([x, torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3)], dim=-1)
