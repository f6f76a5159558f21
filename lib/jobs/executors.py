"""Where attempts run: workers of this machine, or a Slurm cluster.

Both are submitit's executors, chosen over Ray: nothing has to be running beforehand, a login node that can call `sbatch` is enough, state is
files on a shared disk, and it is a small package of pure Python. Ray wants a cluster of its own daemons, and brings a scheduler that a
university's Slurm already is.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import lib
from lib.config import Config
from lib.errors import InputError
from lib.files import Held, make_folder
from lib.jobs.worker import Outcome, Task, attempt_task

SubmititJob = Any  # submitit.Job[Outcome]; the package is optional
ROOT = Path(str(lib.__file__)).resolve().parents[1]  # of the scripts, from which workers import lib
YEAR = 365 * 24 * 60  # minutes; submitit has no word for "no limit"
LOST = 1  # exit code of a worker that said none
NOTHING_SAID = ("FINISHED", "INTERRUPTED")  # by submitit, of a process of this machine; Slurm's states tell more
SLOW_DISK = 15.0  # seconds until a file of another machine is seen here
SAVING = 90  # seconds before the end of its time at which an attempt is told to save


class JobsConfig(Config):
    """Section `jobs`: who does the work."""

    executor: Literal["local", "slurm"] = Field("local", description="local: workers on this machine; slurm: jobs of a cluster, from a login node")
    workers: int = Field(1, gt=0, description="tasks at a time; slurm: jobs in the queue at a time")
    retries: int = Field(2, ge=0, description="further attempts after one that was killed, preempted, out of time or crashed; bad input is final")
    threads: int | None = Field(None, gt=0, description="local: CPU threads per worker; left out: OMP_NUM_THREADS, or else all cores, shared out")
    timeout_min: int | None = Field(None, gt=0, description="minutes an attempt may take, after which it saves and ends (slurm: required, --time)")
    slurm: dict[str, str | int | float | bool | list[str] | None] = Field(
        {}, description="passed to sbatch by submitit's names, e.g. {partition: gpu, gpus_per_node: 1, cpus_per_task: 8, mem: 64GB}")


class Job(ABC):
    """An attempt that was handed over."""

    @abstractmethod
    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""

    @abstractmethod
    def stop(self) -> None:
        """Asks it to save and end."""


class Executor(ABC):
    """Takes attempts. `slot` tells those that run at the same time apart: 0, 1, ..."""

    @abstractmethod
    def start(self, task: Task, attempt: int, slot: int) -> Job:
        """Hands an attempt over; returns at once. Raises Held where that is not possible now, InputError where it will never be."""


def choose_executor(config: JobsConfig, folder: Path) -> Executor:
    """The one that the configuration names; its files go to `folder`. Raises InputError where it cannot be had."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise InputError("jobs: needs submitit, which is not installed: run make setup, or pip install -e .[cluster]") from error
    make_folder(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # of workers, wherever they start
    return LocalWorkers(config, folder) if config.executor == "local" else SlurmQueue(config, folder)


class LocalWorkers(Executor):
    """Processes of this machine; with several GPUs, each slot has its own. They save and end when this process is gone, however it ended."""

    def __init__(self, config: JobsConfig, folder: Path) -> None:
        import submitit

        minutes = config.timeout_min or YEAR
        self._executor = submitit.LocalExecutor(folder)
        self._executor.update_parameters(timeout_min=minutes, signal_delay_s=min(SAVING, minutes * 30))
        threads = config.threads or max(1, _free_cores() // config.workers)
        self._environment = {"OMP_NUM_THREADS": str(threads)}
        self._gpus = _gpus()

    def start(self, task: Task, attempt: int, slot: int) -> Job:
        """See Executor."""
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else ""
        environment = self._environment | {"CUDA_VISIBLE_DEVICES": gpu}
        with _own_terminal_signals():
            return _Submitted(self._executor.submit(attempt_task, task, attempt, environment, os.getpid()), 0.0, _terminate)


class SlurmQueue(Executor):
    """Jobs of a Slurm cluster. They do not need this process: who runs the same command again later finds what they made."""

    def __init__(self, config: JobsConfig, folder: Path) -> None:
        import submitit

        self._accepted = False
        if config.timeout_min is None:
            raise InputError("jobs.timeout_min: Slurm wants to know how many minutes an attempt may take; a longer training goes on in the next one")
        try:
            self._executor = submitit.SlurmExecutor(folder)
            self._executor.update_parameters(**{"signal_delay_s": SAVING, **config.slurm, "time": config.timeout_min})
        except RuntimeError as error:
            raise InputError("jobs.executor: slurm: there is no `srun` here; start this on a login node of the cluster, or write local") from error
        except (ValueError, TypeError) as error:
            raise InputError(f"jobs.slurm: {error}") from error

    def start(self, task: Task, attempt: int, slot: int) -> Job:
        """See Executor."""
        from submitit.core.utils import FailedJobError

        self._executor.update_parameters(job_name=task.name)
        try:
            job = self._executor.submit(attempt_task, task, attempt, {}, None)
        except FailedJobError as error:
            # The first one tells whether the keys are right. Later it is the cluster: too many jobs, or it does not answer.
            raise (Held if self._accepted else InputError)(f"jobs.slurm: sbatch refused the job: {' '.join(str(error).split())}") from error
        self._accepted = True
        return _Submitted(job, SLOW_DISK, _cancel)


class _Submitted(Job):
    """A job of submitit. `patience`: seconds that a result may take to be seen here once its job has ended."""

    def __init__(self, job: SubmititJob, patience: float, stop: Callable[[SubmititJob], None]) -> None:
        self._job, self._patience, self._stop = job, patience, stop
        self._ended: float | None = None

    def outcome(self) -> Outcome | None:
        """See Job."""
        from submitit.core.utils import UncompletedJobError

        if not self._job.done():
            return None
        self._ended = self._ended or time.monotonic()
        if not self._job.paths.result_pickle.exists():
            if time.monotonic() < self._ended + self._patience:
                return None
            state = "" if self._job.state in NOTHING_SAID else f", {self._job.state}"
            return Outcome(LOST, "", f"the worker ended without a word{state} ({self._job.paths.stderr})")
        try:
            return self._job.result()
        except UncompletedJobError:
            return Outcome(LOST, "", f"the worker failed ({self._job.paths.stderr})")

    def stop(self) -> None:
        """See Job."""
        self._stop(self._job)


def _terminate(job: SubmititJob) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(job.job_id), signal.SIGTERM)  # which it passes on; submitit's own `cancel` kills after a second


def _cancel(job: SubmititJob) -> None:
    signals = [] if job.state == "PENDING" else ["--signal=TERM"]
    subprocess.run(["scancel", *signals, job.job_id], check=False)


@contextlib.contextmanager
def _own_terminal_signals() -> Iterator[None]:
    """Ctrl-C, or a terminal that is closed, means this process, which asks its workers to stop. They inherit that these are blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _free_cores() -> int:
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() else len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _gpus() -> list[str]:
    """CUDA devices by the names under which this process sees them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said == "":
        return []
    import torch

    count = torch.cuda.device_count()
    return [str(number) for number in range(count)] if said is None else [name.strip() for name in said.split(",")][:count]
