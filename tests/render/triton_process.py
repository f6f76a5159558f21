"""Triton reads TRITON_INTERPRET when it is first imported: tests marked `interpreted` run in a process of their own, others compile."""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARES = 2
FEW = 100  # tests, with which nobody needs a core for others
# Python keeps frames in pieces of 16 KB and gives one back when it is empty: a loop whose calls begin at the end of a piece maps and unmaps memory
# at every call, which took a third of the time of these tests. A frame of this many names has a piece of a megabyte, with room for all that it calls.
IN_A_LARGE_FRAME = """
import sys, pytest
names = {}
exec("def large(call):\\n call()\\n " + "".join(f"name_{number} = " for number in range(70_000)) + "0", names)
names["large"](lambda: sys.exit(pytest.main(sys.argv[1:])))
"""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_under_the_interpreter")
starts_interpreter = pytest.mark.skipif(INTERPRETED, reason="starts that process")
compiles = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be compiled")


class Interpreters:
    """Processes that run files under the interpreter, begun when tests have been collected: others compute with one thread, so a core is idle."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._shares: dict[str, list[Future[str]]] = {}
        self._processes: list[subprocess.Popen] = []

    def start(self, files: list[str], beside: int) -> None:
        """Begins with these; `beside`: how many other tests run meanwhile."""
        self._executor = ThreadPoolExecutor(SHARES if beside < FEW else max(1, (os.cpu_count() or 1) - 1))
        for file in files:
            self._shares[file] = [self._executor.submit(self._run, file, share) for share in range(SHARES)]

    def wait(self, file: str) -> None:
        """Until all tests of a file have run; some of each process must."""
        for share in self._shares[file]:
            assert "passed" in share.result()

    def stop(self) -> None:
        """Ends those that still run."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()

    def _run(self, file: str, share: int) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_A_LARGE_FRAME, "-p", "no:cacheprovider", "--share", f"{share}/{SHARES}", file],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "TRITON_INTERPRET": "1"},
        )
        self._processes.append(process)
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said[-4000:]
        return said


interpreters = Interpreters()


def run_interpreted(file: str) -> None:
    """All tests of a file under the interpreter."""
    interpreters.wait(file)


def run_compiler(script: str, cache: Path) -> str:
    """A script that compiles kernels with an empty cache; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
