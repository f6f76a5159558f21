"""How exactly networks compute on CUDA."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

Precision = Literal["high", "highest"]
PrecisionChoice = Literal["auto", "high", "highest"]


def chosen_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """`auto` is `high` on CUDA and `highest` elsewhere."""
    if choice != "auto":
        return choice
    return "high" if device.type == "cuda" else "highest"


def set_precision(modules: nn.Module, precision: Precision) -> None:
    """Of every network in it that has a choice, i.e. an attribute `precision`."""
    for module in modules.modules():
        if hasattr(module, "precision"):
            module.precision = precision


def products(precision: Precision) -> AbstractContextManager[None]:
    """Context of matrix products: rough with `high`. Compiled code leaves it to its caller."""
    return rough_products() if precision == "high" and not torch.compiler.is_compiling() else contextlib.nullcontext()


@contextlib.contextmanager
def rough_products() -> Iterator[None]:
    """Inside, matrix products of float32 on CUDA may round their factors to TF32 (10 bits of mantissa): several times faster.

    The switch is one for the process, and gradients are computed after the block: use it around networks, and around a backward pass.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
