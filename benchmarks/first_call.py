"""How long the first picture takes in a process of its own: run as `python -m benchmarks.first_call BACKEND small|full`; prints JSON.

The clock starts when torch, triton and the interface are imported and the context of the device is there. TRITON_CACHE_DIR says which
cache of compiled kernels is used; `measure` takes an empty one, then the same again.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.candidates import CANDIDATES
from benchmarks.scenes import SCENES, make_drawing
from benchmarks.timing import make_pass, synchronize

ROOT = Path(__file__).resolve().parent.parent


def measure(name: str, small: bool) -> dict:
    """Seconds to the first picture and the first gradients, from an empty and from a warm cache."""
    with tempfile.TemporaryDirectory() as cache:
        return {which: _child(name, small, cache) for which in ("empty_cache", "warm_cache")}


def _child(name: str, small: bool, cache: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_call", name, "small" if small else "full"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, env={**os.environ, "TRITON_CACHE_DIR": cache})
    if result.returncode:
        raise RuntimeError(f"the process of the first call failed: {result.stderr[-500:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """The child."""
    name, size = sys.argv[1:]
    cuda = torch.cuda.is_available()
    scene = SCENES[0].reduced(16) if size == "small" else SCENES[0]
    drawing = make_drawing(scene).to("cuda" if cuda else "cpu")
    if importlib.util.find_spec("triton") is not None:
        import triton  # noqa: F401  (an import, which is not what is measured)
    synchronize(cuda)
    candidate, result, start = next(one for one in CANDIDATES if one.name == name), {}, time.perf_counter()
    make_pass(candidate, drawing, "forward")()
    synchronize(cuda)
    result["picture_s"] = round(time.perf_counter() - start, 3)
    make_pass(candidate, drawing, "forward_backward")()
    synchronize(cuda)
    result["gradients_s"] = round(time.perf_counter() - start, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
