"""Less work for the host: torch.compile where it works and a sentence where it does not, and CUDA graphs of modules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Compiled:
    """A function that is compiled at its first call. If that fails, it says so and goes on as it was written."""

    def __init__(self, function: Callable[..., Any], what: str, enabled: bool) -> None:
        self.written, self.what = function, what
        self._function = torch.compile(function) if enabled else function

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        if self._function is self.written:
            return self.written(*arguments)
        try:
            return self._function(*arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, OSError) as error:  # of a part of a compiler; one of the function itself comes again below
            self._function = self.written
            result = self.written(*arguments)
            print(f"{self.what}: torch.compile does not work here ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}); "
                  "going on without, slower. trainer.compile=False says so beforehand")
            return result


def changing(tensor: Tensor, dimension: int = 0) -> Tensor:
    """The tensor, marked for compilers: this dimension has another size at every call."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor


class Graphed:
    """A module whose calls with gradients are replayed from CUDA graphs, one per set of shapes: the host starts two things, not hundreds.

    Gradients of its parameters lie where the next call writes others. Other calls are those of the module itself.
    """

    def __init__(self, module: nn.Module, enabled: bool) -> None:
        self.module, self.enabled = module, enabled
        self._graphed: dict[tuple[torch.Size, ...], Callable[..., Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the module gives; inputs must want gradients, or not, as at the first call."""
        if not (self.enabled and torch.is_grad_enabled()):
            return self.module(*inputs)
        shapes = tuple(value.shape for value in inputs)
        if shapes not in self._graphed:
            samples = tuple(torch.zeros_like(value, requires_grad=value.requires_grad) for value in inputs)
            self._graphed[shapes] = torch.cuda.make_graphed_callables(_Around(self.module), samples)
        return self._graphed[shapes](*inputs)


class _Around(nn.Module):
    """Recording changes `forward`: of this one, not of the module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the module gives."""
        return self.module(*inputs)
