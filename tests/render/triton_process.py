"""Triton reads TRITON_INTERPRET when it is first imported: tests marked `interpreted` run in a process of their own, others compile."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_under_the_interpreter")
starts_interpreter = pytest.mark.skipif(INTERPRETED, reason="starts that process")
compiles = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be compiled")


def run_interpreted(file: str) -> None:
    """All tests of a file under the interpreter; some must have run."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert "passed" in result.stdout


def run_compiler(script: str, cache: Path) -> str:
    """A script that compiles kernels with an empty cache; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
