"""Where a run happens: device, seeds, signals, and how a script ends."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType

import numpy as np
import torch

from lib.errors import InputError, NumericalError, Stopped
from lib.training.distributed import OtherFailed, count, is_first, is_first_to_fail, joined, leave, local_rank

# What the disk or its owner refuses, wherever it comes up, is told as bad input is; other errors of the system are faults of this code.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def run(main: Callable[[], None], together: bool = False) -> None:
    """Runs a script; turns the errors meant for users into one message and an exit code (2 input, 3 numerical, 130/143 stopped).

    `together`: the processes of torchrun are one run. An error of any ends all, with the exit code of that one.
    """
    code = 0
    try:
        with joined(together):
            code = _run(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    if code:
        sys.exit(code)


def _run(main: Callable[[], None]) -> int:
    """The exit code, after the message."""
    new_line = "" if count() == 1 else "\n"  # another process may show its progress
    try:
        main()
    except (InputError, NumericalError) as error:
        if is_first_to_fail(error.exit_code):
            print(f"{new_line}error: {error}", file=sys.stderr, flush=True)
        return leave(error.exit_code)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        if is_first_to_fail(InputError.exit_code):
            what = error.filename or "a file"
            print(f"{new_line}error: {what}: {error.strerror}; free space or correct the permissions", file=sys.stderr, flush=True)
        return leave(InputError.exit_code)
    except OtherFailed as failed:
        if str(failed) and is_first_to_fail(failed.exit_code):
            print(f"{new_line}error: {failed}", file=sys.stderr, flush=True)
        return leave(failed.exit_code, heard=True)
    except Stopped as stopped:
        if is_first():
            print(stopped, file=sys.stderr, flush=True)
        return leave(0) or stopped.exit_code
    except KeyboardInterrupt:
        if is_first():
            print("interrupted", file=sys.stderr)
        return 130
    return leave(0)


def choose_device(name: str, gpu_id: int = 0, option: str = "trainer.device") -> torch.device:
    """`auto` is CUDA device `gpu_id` where there is one, else the CPU. Raises InputError, naming `option`, for a device that is not here.

    A CUDA device becomes the current one, as what is recorded or waited for without naming a device is of that. Each of several processes has the
    CUDA device of its number on this machine. Convolutions of float32 compute in it from then on: torch lets
    them round their factors to TF32 on CUDA, but here what may be rough says so (networks/precision.py).
    """
    torch.backends.cudnn.allow_tf32 = False
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and devices == 0:
        print("no CUDA device here: running on the CPU (gpu_id is ignored)")
        return torch.device("cpu")
    if count() > 1 and name != "cpu":
        return _own_device(name, devices, option)
    if name == "auto":
        name = f"cuda:{gpu_id}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{option}: expected auto, cpu, cuda or cuda:<n>, found '{name}'") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{option}: expected auto, cpu, cuda or cuda:<n>, found '{name}'")
    if device.type == "cuda" and (device.index or 0) >= devices:
        raise InputError(f"{option}: '{name}' is not available here ({devices} CUDA devices); use auto, cpu or another gpu_id")
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device


def _own_device(name: str, devices: int, option: str) -> torch.device:
    if name not in ("auto", "cuda"):
        raise InputError(f"{option} is '{name}', but each of the {count()} processes takes a CUDA device of its own; write auto, cuda or cpu")
    if local_rank() >= devices:
        raise InputError(f"torchrun started process {local_rank() + 1} of a machine with {devices} CUDA devices; a process needs one of its own: "
                         f"write --nproc_per_node={devices} at most, or {option}=cpu")
    print(f"{count()} processes: each takes the CUDA device of its number on its machine (gpu_id is ignored)")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def memory_in_use(device: torch.device) -> dict[str, float]:
    """GB of a GPU: what tensors take (`allocated_gb`), and what torch keeps for them (`reserved_gb`). Nothing for a CPU."""
    if device.type != "cuda":
        return {}
    return {"allocated_gb": torch.cuda.memory_allocated(device) / 1e9, "reserved_gb": torch.cuda.memory_reserved(device) / 1e9}


def seed_everything(seed: int, device: torch.device, deterministic: bool = False) -> None:
    """Seeds torch (all devices) and numpy; initial weights depend on this alone. On the CPU, and with `deterministic` on CUDA, sums are taken
    in one order, so that equal runs are equal to the bit (on a CPU with any fixed number of threads)."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    everywhere = deterministic and device.type == "cuda"
    if everywhere:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first product
    torch.backends.cudnn.deterministic = everywhere
    torch.use_deterministic_algorithms(everywhere or device.type == "cpu", warn_only=not everywhere)
    torch.utils.deterministic.fill_uninitialized_memory = False


class StopSignals:
    """Context in which SIGTERM and Ctrl-C are noted instead of ending the process; a further Ctrl-C ends it at once.

    With several processes it does not: torchrun passes on what the terminal has already sent, and kills after 30 s what has not ended.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: signals go to whoever is
            self._before = {}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            if is_first():
                at_once = " (Ctrl-C from now on stops at once)" if count() == 1 else ""
                print(f"\nstopping after this step; everything will be saved{at_once}", file=sys.stderr)
        elif number == signal.SIGINT and count() == 1:  # schedulers may repeat SIGTERM; a person means it
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def is_terminal() -> bool:
    """Whether somebody watches: progress bars are redrawn often only then."""
    return sys.stderr.isatty() and os.environ.get("CI") is None
