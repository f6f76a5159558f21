"""Real workers of this machine, with stages of a few lines: whatever is killed, no two write one run, and the rest goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("submitit")

from lib.files import RunLock
from lib.jobs import coordinator
from lib.jobs.coordinator import Report, State, coordinate
from lib.jobs.executors import ROOT, JobsConfig, choose_executor
from lib.jobs.worker import Command, Task, attempt_task

# As a training does: one process at a time, saves on SIGTERM, is finished at once when it is run again.
STAGE = """
import os, signal, sys, time
from pathlib import Path
from lib.files import RunLock
folder = Path(sys.argv[1])
def save(number, frame):
    (folder / 'finished').write_text('')
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
with RunLock(folder / 'stage.lock'):
    with (folder / 'begun').open('a') as file:
        file.write(f'{os.getpid()}\\n')
    while not (folder / 'finished').exists():
        time.sleep(0.02)
"""
COORDINATOR = """
import sys
from pathlib import Path
from tests.jobs.test_local_workers import run, task
run([task(Path(sys.argv[1]))], Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(coordinator, "HELD_PAUSE", 0.1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def task(folder: Path, code: str = STAGE) -> Task:
    return Task("bob", (Command("stage", (sys.executable, "-c", code, str(folder))),), folder / "subject.lock", folder / "subject.log")


def run(tasks: list[Task], folder: Path, stopped: Callable[[], bool] = lambda: False, seen: list | None = None, **jobs) -> tuple[Report, ...]:
    config = JobsConfig(workers=2, **jobs)
    show = (lambda rows: None) if seen is None else (lambda rows: seen.append((rows[0].state, rows[0].message)))
    return coordinate(tasks, choose_executor(config, folder / ".jobs"), config.workers, config.retries, show, stopped, pause=0.05)


def begun(folder: Path) -> list[int]:
    """Processes of the stage so far."""
    path = folder / "begun"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30.0
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def meanwhile(folder: Path, act: Callable[[int], None], then: Callable[[int], object] = lambda process: True) -> threading.Thread:
    """Once the stage has begun: `act` on its process; when `then` holds, what comes next is finished at once."""
    def go() -> None:
        wait_for(lambda: begun(folder))
        process = begun(folder)[0]
        act(process)
        wait_for(lambda: then(process))
        (folder / "finished").write_text("")

    thread = threading.Thread(target=go)
    thread.start()
    return thread


def test_a_worker_killed_takes_its_stage_along_and_is_tried_again(tmp_path):
    thread, seen = meanwhile(tmp_path, lambda stage: os.kill(parent(stage), signal.SIGKILL), lambda stage: not alive(stage)), []
    (report,) = run([task(tmp_path)], tmp_path, seen=seen)
    thread.join()
    assert (report.state, report.attempt, len(begun(tmp_path))) == (State.DONE, 2, 2)
    assert any("the worker ended without a word" in message for _, message in seen)


def test_a_stage_killed_is_said_and_tried_again(tmp_path):
    thread, seen = meanwhile(tmp_path, lambda stage: os.kill(stage, signal.SIGKILL)), []
    (report,) = run([task(tmp_path)], tmp_path, seen=seen)
    thread.join()
    assert (report.state, report.attempt) == (State.DONE, 2)
    assert "stage: killed by SIGKILL" in [message for _, message in seen]


def test_the_process_between_killed_makes_the_worker_save(tmp_path):
    thread = meanwhile(tmp_path, lambda stage: os.kill(parent(parent(stage)), signal.SIGKILL), lambda stage: not alive(stage))
    (report,) = run([task(tmp_path)], tmp_path)
    thread.join()
    assert (report.state, report.attempt) == (State.DONE, 2)
    assert "ended with exit code 143" in (tmp_path / "subject.log").read_text()


def test_time_that_is_up_makes_a_stage_save_and_a_further_attempt_go_on(tmp_path):
    thread, seen = meanwhile(tmp_path, lambda stage: os.kill(parent(stage), signal.SIGUSR2), lambda stage: not alive(stage)), []
    (report,) = run([task(tmp_path)], tmp_path, seen=seen)
    thread.join()
    assert (report.state, report.attempt) == (State.DONE, 2)
    assert "ended with exit code 143" in (tmp_path / "subject.log").read_text()


def test_stopping_lets_the_stage_save(tmp_path):
    (report,) = run([task(tmp_path)], tmp_path, stopped=lambda: bool(begun(tmp_path)))
    assert (report.state, report.attempt) == (State.STOPPED, 1)
    assert "ended with exit code 143" in (tmp_path / "subject.log").read_text()
    assert [alive(process) for process in begun(tmp_path)] == [False]


def test_bad_input_is_final_and_its_message_is_kept(tmp_path):
    bad = "import sys; print('one'); print('error: no picture\\n  look there', file=sys.stderr); sys.exit(2)"
    (report,) = run([task(tmp_path, bad)], tmp_path)
    assert (report.state, report.attempt, report.message) == (State.REFUSED, 1, "stage: no picture\n  look there")


def test_workers_have_a_share_of_the_cores_and_ctrl_c_does_not_reach_them(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    code = ("import os, signal; from pathlib import Path; status = Path(f'/proc/{os.getppid()}/status').read_text();"
            "blocked = int(status.split('SigBlk:')[1].split()[0], 16);"
            "print('said', os.environ['OMP_NUM_THREADS'], blocked >> (signal.SIGINT - 1) & 1, signal.pthread_sigmask(signal.SIG_BLOCK, ()))")
    run([task(tmp_path, code)], tmp_path)
    assert "said 2 1 set()" in (tmp_path / "subject.log").read_text()


def test_workers_have_a_gpu_each_by_the_names_that_are_visible_here(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-4, 7")
    code = "import os; print('gpu', os.environ['CUDA_VISIBLE_DEVICES'])"
    tasks = [Task(name, task(tmp_path, code).commands, tmp_path / f"{name}.lock", tmp_path / f"{name}.log") for name in ("a", "b")]
    run(tasks, tmp_path)
    assert ["gpu GPU-4\n" in (tmp_path / "a.log").read_text(), "gpu 7\n" in (tmp_path / "b.log").read_text()] == [True, True]


def test_a_coordinator_killed_leaves_no_second_worker_on_a_run(tmp_path):
    """Its worker saves and ends by itself; who runs the same again waits for it."""
    process = subprocess.Popen([sys.executable, "-c", COORDINATOR, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: begun(tmp_path))
    first = begun(tmp_path)[0]
    os.kill(first, signal.SIGSTOP)  # it takes its time
    process.kill()
    process.wait()
    seen: list = []
    thread = threading.Timer(1.0, lambda: os.kill(first, signal.SIGCONT))
    thread.start()
    (report,) = run([task(tmp_path)], tmp_path, seen=seen)
    thread.join()
    assert (report.state, report.attempt, len(begun(tmp_path))) == (State.DONE, 1, 2)
    assert any(state is State.HELD and "is writing this run" in message for state, message in seen)
    assert not alive(first)


def test_a_run_that_a_person_took_before_the_worker_began_is_waited_for(tmp_path, monkeypatch):
    """A job may wait in a queue for hours."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # those of the tests stay
    (tmp_path / "finished").write_text("")
    by_hand = subprocess.Popen([sys.executable, "-c", "import sys; from pathlib import Path; from lib.files import RunLock\n"
                                "with RunLock(Path(sys.argv[1])): print('held', flush=True); input()", str(tmp_path / "meshhead.lock")],
                               cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert by_hand.stdout is not None and by_hand.stdout.readline() == "held\n"
    held = attempt_task(task(tmp_path), 1, {}, None)
    by_hand.communicate("\n")
    assert held.code is None and f"process {by_hand.pid} on" in held.message
    assert attempt_task(task(tmp_path), 1, {}, None).code == 0


def test_asking_who_else_writes_keeps_the_own_lock(tmp_path):
    """Whatever the folder is called: a lock of one process is lost when it is taken twice."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one = Task("one", (), tmp_path / "real" / "subject.lock", tmp_path / "log", (tmp_path / "link",))
    with RunLock(one.lock):
        assert one.held(by_others=True) == "" and one.lock.exists()


def test_a_run_trained_by_hand_is_waited_for(tmp_path):
    (tmp_path / "finished").write_text("")
    held, seen = RunLock(tmp_path / "meshhead.lock"), []
    by_hand = subprocess.Popen([sys.executable, "-c", "import sys, time; from pathlib import Path; from lib.files import RunLock\n"
                                "with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(1.0)", str(held.path)],
                               cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert by_hand.stdout is not None and by_hand.stdout.readline() == "held\n"
    (report,) = run([task(tmp_path)], tmp_path, seen=seen)
    by_hand.wait()
    assert report.state is State.DONE
    assert any(state is State.HELD and f"process {by_hand.pid} on" in message for state, message in seen)
