"""Launches of Triton and Gluon kernels that cost the host little.

Triton looks at every argument of every launch, which takes longer than the smaller kernels here. A `Launch` lets it do so once for
every set of numbers, and then starts what was compiled with the addresses alone.
"""

import ctypes
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HANG = 20.0  # seconds
KEPT = 1024  # sets of numbers per kernel


class Launch:
    """A kernel whose parameters are tensors, then integers, then constants; the latter are given here by name.

    Tensors must keep their types and be aligned to 16 bytes (see `aligned`): Triton compiles another kernel for others.
    """

    def __init__(self, kernel: Any, warps: int, options: tuple[tuple[str, Any], ...] = (), **constants: Any) -> None:
        self.kernel, self.constants = kernel, {**constants, "num_warps": warps, **dict(options)}
        self.tail = tuple(constants[name] for name in kernel.arg_names[len(kernel.arg_names) - len(constants):])
        self.bound: dict[tuple, tuple] = {}

    def __call__(self, grid: tuple[int, ...], tensors: tuple[Tensor, ...], integers: tuple[int, ...]) -> None:
        """Starts it on the current stream of the tensors' device, which must be the current one."""
        device = tensors[0].get_device()
        bound = self.bound.get((grid, integers, device))
        if bound is None:
            compiled = self.kernel[grid](*tensors, *integers, **self.constants)
            if compiled is not None:  # the interpreter gives none
                if len(self.bound) >= KEPT:
                    self.bound.clear()
                head = (*grid, 1, 1)[:3]
                handles = compiled.function, compiled.packed_metadata, None, None, None
                self.bound[grid, integers, device] = compiled.run, head, handles, integers + self.tail
            return
        run, head, handles, rest = bound
        run(*head, torch._C._cuda_getCurrentRawStream(device), *handles, *[tensor.data_ptr() for tensor in tensors], *rest)


class HostWords:
    """Integers in memory that the device writes and the host reads, without a call of the driver."""

    def __init__(self, count: int) -> None:
        self.tensor = torch.empty(count, dtype=torch.int64, pin_memory=True)
        self._words = (ctypes.c_int64 * count).from_address(self.tensor.data_ptr())
        self._expected = False

    def clear(self) -> None:
        """Before the kernel that writes them is started."""
        if self._expected:  # somebody was interrupted: the old numbers must not come after the clearing
            torch.cuda.synchronize()
        self._expected = True
        for place in range(len(self._words)):
            self._words[place] = -1

    def wait(self) -> tuple[int, ...]:
        """What the kernel has written, which must not be negative. Raises what has gone wrong on the device if it never does."""
        end = time.monotonic() + HANG
        while min(self._words) < 0:
            if time.monotonic() > end:
                torch.cuda.synchronize()
                if min(self._words) < 0:
                    raise RuntimeError("the device is done but has not told how much room a drawing needs: were its kernels not started?")
        self._expected = False
        return tuple(self._words)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of a tensor the current one, if it is not."""
    device = tensor.get_device()
    return nullcontext() if device < 0 or device == torch._C._cuda_getDevice() else torch.cuda.device(device)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and from an address divisible by 16."""
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
