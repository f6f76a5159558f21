"""Where Triton kernels run."""

import functools
import importlib.util
import os
import shutil

import torch
from torch import Tensor

LEAST_CAPABILITY = (8, 0)


@functools.cache
def triton_missing(interpreted: bool) -> str | None:
    """What kernels need and is not here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not interpreted and not (os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang"))):
        return "triton needs a C compiler: cc, gcc or clang on the PATH, or the variable CC"
    return None


def must_be_repeatable() -> bool:
    """Whether torch was told to use deterministic algorithms on pain of an error (`trainer.deterministic`): atomic sums are then not allowed."""
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def runs_kernels(x: Tensor, *types: torch.dtype) -> bool:
    """Whether kernels for these types (float32 where none is named) take this tensor: on a GPU that they are written for, or on the CPU
    under Triton's interpreter (TRITON_INTERPRET=1, for tests)."""
    if x.dtype not in (types or (torch.float32,)):
        return False
    if x.is_cuda:
        return torch.version.hip is None and _capability(x.device) >= LEAST_CAPABILITY and triton_missing(False) is None
    return x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and triton_missing(True) is None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
