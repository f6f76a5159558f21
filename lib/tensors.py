"""Frozen dataclasses of tensors travel between files; this base class moves and stacks them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

BundleType = TypeVar("BundleType", bound="TensorBundle")


class TensorBundle:
    """Base of frozen dataclasses whose fields are tensors, other bundles, or plain values (ints, strings, None)."""

    def to(self: BundleType, device: torch.device | str) -> BundleType:
        """The same bundle with every tensor, also in nested bundles, on `device`. The host does not wait until a GPU has its copies."""
        at_once = torch.device(device).type == "cpu"  # what comes from a GPU is complete when it is read
        return dataclasses.replace(self, **{
            field.name: value.to(device, non_blocking=not at_once) if isinstance(value, Tensor) else value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, TensorBundle))
        })

    def rows(self: BundleType, rows: slice) -> BundleType:
        """The same bundle with copies of these entries of the leading dimension of every tensor and tuple, also in nested bundles."""
        return dataclasses.replace(self, **{
            field.name: value.rows(rows) if isinstance(value, TensorBundle) else value[rows].clone() if isinstance(value, Tensor) else value[rows]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), (Tensor, TensorBundle, tuple))
        })

    @classmethod
    def stack(cls: type[BundleType], bundles: Sequence[BundleType]) -> BundleType:
        """One bundle whose tensors have a new leading batch dimension; strings become tuples, other values must agree."""
        return cls(**{
            field.name: _stack([getattr(bundle, field.name) for bundle in bundles], field.name)
            for field in dataclasses.fields(cls)
        })


def _stack(values: list[Any], name: str) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.dtype == torch.uint8:  # pictures: in the loading thread alone, where torch would take all cores
        return torch.from_numpy(np.stack([value.numpy() for value in values]))
    if isinstance(first, Tensor):
        return torch.stack(values)
    if isinstance(first, TensorBundle):
        return type(first).stack(values)
    if isinstance(first, str):
        return tuple(values)
    if any(value != first for value in values):
        raise ValueError(f"cannot stack '{name}': values differ within the batch: {values}")
    return first


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator that is a pure function of integers such as (seed, step): randomness that survives a resume."""
    state = np.random.SeedSequence([k % 2**32 for k in key]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
