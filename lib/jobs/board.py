"""The status table: rewritten in place on a terminal; elsewhere a line per change."""

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from io import TextIOBase

from lib.jobs.coordinator import Report, State
from lib.training.runtime import is_terminal

HEAD = ("subject", "stage", "step", "attempt", "state", "elapsed", "")
URGENCY = (State.RUNNING, State.QUEUED, State.HELD, State.REFUSED, State.FAILED, State.STOPPED, State.WAITING, State.DONE)
UP, CLEAR = "\x1b[{}A", "\x1b[J"


class Board:
    """Shows reports; writes to stderr, as progress bars do."""

    def __init__(self, file: TextIOBase | None = None, in_place: bool | None = None) -> None:
        self._file = file or sys.stderr
        self._in_place = is_terminal() if in_place is None else in_place
        self._lines = 0
        self._known: dict[str, tuple[object, ...]] = {}

    def __call__(self, reports: Sequence[Report]) -> None:
        """Shows what is new."""
        if self._in_place:
            self._rewrite(reports)
        else:
            self._tell_changes(reports)

    def _rewrite(self, reports: Sequence[Report]) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line[:width - 1] for line in status_table(reports, height - 3).splitlines()]  # one that wraps would be counted wrong
        up = UP.format(self._lines) if self._lines else ""
        self._file.write(up + CLEAR + "\n".join(lines) + "\n")
        self._file.flush()
        self._lines = len(lines)

    def _tell_changes(self, reports: Sequence[Report]) -> None:
        for report in reports:
            now = (report.state, report.attempt, report.progress.stage, report.message)
            if self._known.get(report.task.name) != now:
                self._known[report.task.name] = now
                print("  ".join(cell for cell in _row(report) if cell), file=self._file, flush=True)


def status_table(reports: Sequence[Report], most: int | None = None) -> str:
    """All subjects, or the `most` that one wants to see most, and how many more there are."""
    shown = list(reports)
    if most is not None and len(shown) > most:
        chosen = sorted(range(len(shown)), key=lambda row: (URGENCY.index(shown[row].state), row))[:max(1, most)]
        shown = [shown[row] for row in sorted(chosen)]
    rows = [HEAD, *map(_row, shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(shown) < len(reports):
        others = Counter(report.state.value for report in reports if report not in shown)
        lines.append(f"and {len(reports) - len(shown)} more: " + ", ".join(f"{count} {state}" for state, count in others.items()))
    return "\n".join(lines)


def _row(report: Report) -> tuple[str, ...]:
    progress = report.progress
    step = f"{progress.step}/{progress.steps}" if progress.steps and report.state is not State.DONE else ""
    message = "" if report.state is State.DONE else report.message.replace("\n", " ")
    if message and report.state in (State.QUEUED, State.RUNNING):
        message = f"the attempt before: {message}"
    return (report.task.name, progress.stage, step, str(report.attempt or ""), report.state.value, _clock(report.seconds), message)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
