"""Which task runs when, and how it ends: with a stand-in for the executor, so that no process is started."""

from pathlib import Path

import pytest

from lib.files import Held
from lib.jobs import coordinator
from lib.jobs.coordinator import State, coordinate
from lib.jobs.executors import Executor, Job
from lib.jobs.log import begin_stage
from lib.jobs.worker import Command, Outcome, Task

DONE, KILLED, CRASHED, SAVED = Outcome(0, "b"), Outcome(-9, "a", "killed by SIGKILL"), Outcome(1, "a", "OSError"), Outcome(143, "a", "saved")
BAD, NOT_FINITE = Outcome(2, "a", "no picture"), Outcome(3, "a", "the loss is not finite")


class StandIn(Executor):
    """Attempts last two looks and end as written down: name -> outcomes in order."""

    def __init__(self, outcomes: dict[str, list[Outcome]], endless: bool = False) -> None:
        self.left, self.endless = {name: list(given) for name, given in outcomes.items()}, endless
        self.started: list[tuple[str, int, int]] = []
        self.running: dict[str, int] = {}
        self.most, self.asked = 0, []

    def start(self, task, attempt, slot):
        assert task.name not in self.running, "two workers on one run"
        assert slot not in self.running.values()
        self.started.append((task.name, attempt, slot))
        self.running[task.name] = slot
        self.most = max(self.most, len(self.running))
        return _Attempt(self, task)


class _Attempt(Job):
    def __init__(self, executor: StandIn, task: Task) -> None:
        self.executor, self.name, self.looks, self.stopped = executor, task.name, 0, False

    def outcome(self):
        self.looks += 1
        if self.looks < 2 or (self.executor.endless and not self.stopped):
            return None
        del self.executor.running[self.name]
        return SAVED if self.stopped else self.executor.left[self.name].pop(0)

    def stop(self):
        self.stopped = True
        self.executor.asked.append(self.name)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(coordinator, "HELD_PAUSE", 0.01)


def task(folder: Path, name: str) -> Task:
    return Task(name, (Command("a", ("true",)), Command("b", ("true",))), folder / name / "subject.lock", folder / f"{name}.log")


def end(folder: Path, executor: StandIn, workers: int = 2, retries: int = 2, stopped=lambda: False, seen: list | None = None):
    reports = coordinate([task(folder, name) for name in executor.left], executor, workers, retries,
                         (lambda rows: None) if seen is None else seen.append, stopped, pause=0.002)
    return {report.task.name: report for report in reports}


def test_so_many_at_a_time_as_there_are_workers_in_the_order_of_the_list(tmp_path):
    executor = StandIn({name: [DONE] for name in "abcde"})
    reports = end(tmp_path, executor)
    assert [name for name, _, _ in executor.started] == list("abcde")
    assert executor.most == 2 and {slot for _, _, slot in executor.started} == {0, 1}
    assert all(report.state is State.DONE and report.attempt == 1 for report in reports.values())


@pytest.mark.parametrize("lost", [KILLED, CRASHED, SAVED, Outcome(1, "", "the worker ended without a word")])
def test_what_was_killed_or_crashed_or_preempted_is_tried_again(tmp_path, lost):
    executor = StandIn({"a": [lost, lost, DONE], "b": [DONE]})
    reports = end(tmp_path, executor)
    assert (reports["a"].state, reports["a"].attempt) == (State.DONE, 3) and reports["b"].attempt == 1


def test_after_the_retries_it_has_failed_with_the_last_message_and_others_go_on(tmp_path):
    executor = StandIn({"a": [KILLED, CRASHED], "b": [DONE], "c": [DONE]})
    reports = end(tmp_path, executor, workers=1, retries=1)
    assert (reports["a"].state, reports["a"].attempt, reports["a"].message) == (State.FAILED, 2, "a: OSError")
    assert reports["b"].state is reports["c"].state is State.DONE


@pytest.mark.parametrize("final", [BAD, NOT_FINITE])
def test_what_would_end_the_same_again_is_final(tmp_path, final):
    reports = end(tmp_path, StandIn({"a": [final], "b": [KILLED, DONE]}))
    assert (reports["a"].state, reports["a"].attempt, reports["a"].message) == (State.REFUSED, 1, f"a: {final.message}")
    assert reports["b"].state is State.DONE


def test_a_run_that_another_process_writes_is_waited_for_and_costs_no_attempt(tmp_path):
    executor, seen = StandIn({"a": [Outcome(None, "", "process 7 on there is writing"), DONE]}), []
    reports = end(tmp_path, executor, retries=0, seen=seen)
    assert (reports["a"].state, reports["a"].attempt) == (State.DONE, 1)
    assert (State.HELD, "process 7 on there is writing") in [(rows[0].state, rows[0].message) for rows in seen]


def test_a_run_that_is_written_has_a_worker_as_it_needs_the_machine_too(tmp_path, monkeypatch):
    answers = iter(["process 7 on there is writing"] * 4)
    monkeypatch.setattr(Task, "held", lambda self: next(answers, "") if self.name == "a" else "")
    executor = StandIn({"a": [DONE], "b": [DONE], "c": [DONE]})
    seen: list = []
    end(tmp_path, executor, seen=seen)
    while_held = [sum(row.state in (State.QUEUED, State.RUNNING) for row in rows) for rows in seen if rows[0].state is State.HELD]
    assert while_held and max(while_held) == 1


def test_a_run_that_cannot_be_written_is_refused_alone(tmp_path):
    (tmp_path / "a").write_text("a file in the way of the folder")
    reports = end(tmp_path, StandIn({"a": [DONE], "b": [DONE]}))
    assert (reports["a"].state, reports["b"].state) == (State.REFUSED, State.DONE)
    assert "cannot be created" in reports["a"].message


def test_an_executor_that_is_full_is_asked_again(tmp_path, monkeypatch):
    executor, start, refusals = StandIn({"a": [DONE]}), StandIn.start, iter([True, True])

    def full(self, *arguments):
        if next(refusals, False):
            raise Held("too many jobs")
        return start(self, *arguments)

    monkeypatch.setattr(StandIn, "start", full)
    seen: list = []
    reports = end(tmp_path, executor, retries=0, seen=seen)
    assert (reports["a"].state, reports["a"].attempt) == (State.DONE, 1)
    assert "too many jobs" in [rows[0].message for rows in seen if rows[0].state is State.HELD]


def test_stopping_asks_what_runs_starts_nothing_and_ends(tmp_path):
    looks = iter([False, False])
    executor = StandIn({name: [DONE] for name in "abc"}, endless=True)
    reports = end(tmp_path, executor, stopped=lambda: next(looks, True))
    assert executor.asked == ["a", "b"] and len(executor.started) == 2
    assert all(report.state is State.STOPPED for report in reports.values())


def test_what_ended_well_in_spite_of_being_asked_to_stop_is_done(tmp_path, monkeypatch):
    looks = iter([False])
    monkeypatch.setattr(_Attempt, "stop", lambda self: None)
    reports = end(tmp_path, StandIn({"a": [DONE], "b": [BAD]}), stopped=lambda: next(looks, True))
    assert (reports["a"].state, reports["b"].state) == (State.DONE, State.REFUSED)


def test_a_task_is_queued_until_its_log_says_that_this_attempt_began(tmp_path):
    begin_stage(tmp_path / "a.log", 1, "of_yesterday", ("true",))
    executor, states, start = StandIn({"a": [KILLED, DONE]}), [], StandIn.start

    def show(rows):
        states.append((rows[0].state, rows[0].attempt, rows[0].progress.stage))
        if len(states) in (1, 4):
            begin_stage(tmp_path / "a.log", rows[0].attempt, "meshhead", ("true",))

    coordinate([task(tmp_path, "a")], executor, 1, 1, show, lambda: False, pause=0.0)
    assert start is StandIn.start
    assert states[:2] == [(State.QUEUED, 1, ""), (State.RUNNING, 1, "meshhead")]
    assert states[-1] == (State.DONE, 2, "meshhead")
