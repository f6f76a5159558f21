"""torch.compile where it works, and a sentence where it does not."""

from collections.abc import Callable
from typing import Any

import torch


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
        except (RuntimeError, ImportError, OSError) as error:  # of a part of a compiler; one of the function itself comes again below
            self._function = self.written
            result = self.written(*arguments)
            print(f"{self.what}: torch.compile does not work here ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}); "
                  "going on without, slower. trainer.compile=False says so beforehand")
            return result


def changing(tensor: torch.Tensor, dimension: int = 0) -> torch.Tensor:
    """The tensor, marked for compilers: this dimension has another size at every call."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor
