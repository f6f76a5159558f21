"""trainer.deterministic: equal runs are equal to the bit on CUDA. Run with `python -m pytest -m gpu tests/gpu/test_repeatable_cuda.py`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lib.training.checkpoint import read_checkpoint
from tests.test_stages import config_of, runs, trained  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(("stage", "options"), [
    ("meshhead", []), ("gaussianhead", ["trainer.precision=high"]), ("gaussianhead", ["trainer.precision=highest"]),
])
def test_the_same_command_gives_the_same_bits(made, runs, stage, options):  # noqa: F811
    """In processes of their own, without type checks, which cannot be compiled."""
    weights = []
    for run in (1, 2):
        name = f"repeat{run}_{'_'.join([stage, *options]).replace('.', '').replace('=', '')}"
        script, values = config_of(stage, made, runs, steps=12, name=name)
        path = runs / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        command = [sys.executable, f"{script}.py", "--config", str(path), "trainer.device=cuda", "trainer.deterministic=true", *options]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "does not work here" not in result.stdout
        checkpoint = read_checkpoint(Path(values["recorder"]["checkpoint_path"]) / name / f"{stage}_latest", stage, "test")
        weights.append({f"{module}.{key}": tensor for module, state in checkpoint.modules.items() for key, tensor in state.items()})
    one, other = weights
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
