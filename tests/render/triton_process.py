"""Triton reads TRITON_INTERPRET when it is first imported: tests marked `interpreted` run in a process of their own, others compile."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARES = 2
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


def run_interpreted(file: str) -> None:
    """All tests of a file under the interpreter, by processes beside each other; some of each must have run."""
    shares = [subprocess.Popen(
        [sys.executable, "-c", IN_A_LARGE_FRAME, "-p", "no:cacheprovider", "--share", f"{share}/{SHARES}", file],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "TRITON_INTERPRET": "1"},
    ) for share in range(SHARES)]
    try:
        said = [share.communicate(timeout=600)[0] for share in shares]
    finally:
        for share in shares:
            share.kill()
    for share, text in zip(shares, said, strict=True):
        assert share.returncode == 0, text[-4000:]
        assert "passed" in text


def run_compiler(script: str, cache: Path) -> str:
    """A script that compiles kernels with an empty cache; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
