"""Takes tasks through their attempts: who runs, who is tried again, who is finished. It does not know what a task does."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from lib.errors import InputError, NumericalError
from lib.files import Held
from lib.jobs.executors import Executor, Job
from lib.jobs.log import LogReader, Progress
from lib.jobs.worker import Outcome, Task

PAUSE = 0.5  # seconds between looks at the jobs
HELD_PAUSE = 5.0  # seconds until something that cannot begin is looked at again


class State(Enum):
    """Of a task, as the table calls it."""

    WAITING = "waiting"  # for a worker
    HELD = "held"  # up: by another process that writes this run, or by a full queue
    QUEUED = "queued"  # handed over, not begun
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"  # bad input, or numbers that are not finite: the same again would end the same
    FAILED = "failed"  # in every attempt
    STOPPED = "stopped"  # with this command


FINAL = (State.DONE, State.REFUSED, State.FAILED, State.STOPPED)


@dataclass(frozen=True)
class Report:
    """A line of the table. `attempt` counts from 1; `seconds` since the first attempt began; `message` says why, where it did not go well."""

    task: Task
    state: State
    attempt: int
    progress: Progress
    seconds: float
    message: str


class _Entry:
    """A task on its way."""

    def __init__(self, task: Task) -> None:
        self.task, self.state, self.attempt, self.message = task, State.WAITING, 0, ""
        self.job: Job | None = None
        self.slot = 0
        self.look_at = 0.0
        self.began: float | None = None
        self.ended: float | None = None
        self.log = LogReader(task.log)

    def settle(self, outcome: Outcome, attempts: int, stopping: bool) -> None:
        """After an attempt."""
        self.job, self.message = None, f"{outcome.stage}: {outcome.message}" if outcome.stage and outcome.message else outcome.message
        if outcome.code is None:
            self.attempt -= 1
            self.hold(outcome.message)
        elif outcome.code == 0:
            self.state = State.DONE
        elif outcome.code in (InputError.exit_code, NumericalError.exit_code):
            self.state = State.REFUSED
        elif stopping:
            self.state = State.STOPPED
        elif self.attempt >= attempts:
            self.state = State.FAILED
        else:
            self.state = State.WAITING
        if self.state in FINAL:
            self.ended = time.monotonic()

    def hold(self, message: str) -> None:
        """It cannot begin now; it is looked at again later."""
        self.state, self.message, self.look_at = State.HELD, message, time.monotonic() + HELD_PAUSE

    def is_free(self) -> bool:
        """Whether it may begin, as nobody else writes its run."""
        if time.monotonic() < self.look_at:
            return False
        try:
            held = self.task.held()
        except InputError as error:
            self.state, self.message, self.ended = State.REFUSED, str(error), time.monotonic()
            return False
        if held:
            self.hold(held)
        elif self.state is State.HELD:
            self.state, self.message = State.WAITING, ""
        return not held

    def report(self) -> Report:
        """Its line now."""
        progress = self.log.read()
        if self.job is not None:
            self.state = State.RUNNING if progress.attempt == self.attempt else State.QUEUED
        seconds = 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began
        return Report(self.task, self.state, self.attempt, progress, seconds, self.message)


def coordinate(
    tasks: Sequence[Task], executor: Executor, workers: int, retries: int, show: Callable[[Sequence[Report]], None],
    stopped: Callable[[], bool], pause: float = PAUSE,
) -> tuple[Report, ...]:
    """Runs all tasks, `workers` at a time, each up to 1 + `retries` times; `show` gets the state of all again and again.

    Once `stopped`, nothing is started any more and what runs is asked to stop. An exit code of bad input or of numbers that are not finite is
    final; anything else that is not 0 leads to a further attempt. Ends when all have ended.
    """
    entries = [_Entry(task) for task in tasks]
    asked = False
    while True:
        for entry in entries:
            outcome = entry.job.outcome() if entry.job is not None else None
            if outcome is not None:
                entry.settle(outcome, 1 + retries, asked)
        if stopped() and not asked:
            asked = True
            for entry in entries:
                if entry.job is not None:
                    entry.job.stop()
        if asked:
            for entry in entries:
                if entry.job is None and entry.state not in FINAL:
                    entry.state, entry.ended = State.STOPPED, time.monotonic()
        else:
            _start(entries, executor, workers)
        reports = tuple(entry.report() for entry in entries)
        show(reports)
        if all(report.state in FINAL for report in reports):
            return reports
        time.sleep(pause)


def _start(entries: list[_Entry], executor: Executor, workers: int) -> None:
    """Hands out what there are workers for. A run that another process writes has one of them: it needs the machine, too."""
    busy = {entry.slot for entry in entries if entry.job is not None}
    for entry in entries:
        free = next((slot for slot in range(workers) if slot not in busy), None)
        if free is None:
            return
        if entry.job is not None or entry.state in FINAL:
            continue
        entry.slot = free
        busy.add(free)
        if entry.is_free():
            try:
                entry.job = executor.start(entry.task, entry.attempt + 1, free)
            except Held as held:
                entry.hold(str(held))
            else:
                entry.attempt, entry.began = entry.attempt + 1, entry.began or time.monotonic()
