"""Where a run happens: device, seeds, and how a script ends."""

import os
import sys
from collections.abc import Callable

import numpy as np
import torch

from lib.errors import InputError, NumericalError


def run(main: Callable[[], None]) -> None:
    """Runs a script; turns the errors meant for users into one message and an exit code (2 input, 3 numerical, 130 Ctrl-C)."""
    try:
        main()
    except (InputError, NumericalError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def choose_device(name: str, gpu_id: int = 0, option: str = "trainer.device") -> torch.device:
    """`auto` is CUDA device `gpu_id` where there is one, else the CPU. Raises InputError, naming `option`, for a device that is not here."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if count == 0:
            print("no CUDA device here: running on the CPU (gpu_id is ignored)")
            return torch.device("cpu")
        name = f"cuda:{gpu_id}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{option}: expected auto, cpu, cuda or cuda:<n>, found '{name}'") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{option}: expected auto, cpu, cuda or cuda:<n>, found '{name}'")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"{option}: '{name}' is not available here ({count} CUDA devices); use auto, cpu or another gpu_id")
    return device


def seed_everything(seed: int) -> None:
    """Seeds torch (all devices) and numpy; initial weights depend on this alone."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def is_terminal() -> bool:
    """Whether somebody watches: progress bars are redrawn often only then."""
    return sys.stderr.isatty() and os.environ.get("CI") is None
