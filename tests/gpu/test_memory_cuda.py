"""A training's memory on a GPU does not grow with validations. Run with `python -m pytest -m gpu tests/gpu/test_memory_cuda.py`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.test_stages import config_of, runs, trained  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

STEPS, VALIDATE = 60, 10
PIECE = 2e-3  # GB: torch takes memory of a GPU in pieces of 2 MiB at least


@pytest.mark.parametrize("stage", ["meshhead", "gaussianhead"])
def test_what_torch_keeps_is_the_same_after_every_validation(made, runs, stage):  # noqa: F811
    """In a process of its own, without type checks, which cannot be compiled."""
    name = f"memory_{stage}"
    script, values = config_of(stage, made, runs, steps=STEPS, name=name)
    path = runs / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, f"{script}.py", "--config", str(path), "trainer.device=cuda", f"trainer.validate_every={VALIDATE}",
               "recorder.show_freq=1", f"recorder.logdir={runs / name}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    events = EventAccumulator(str(runs / name), size_guidance={"scalars": 0}).Reload()
    for scalar in ("allocated_gb", "reserved_gb"):
        found = {event.step: event.value for event in events.Scalars(f"{stage}/{scalar}")}
        settled = [found[step] for step in range(VALIDATE + 5, STEPS, VALIDATE)]  # halfway between two validations
        assert settled[-1] - settled[0] <= max(0.01 * settled[0], PIECE), (scalar, settled)
