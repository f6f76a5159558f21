"""What test_distributed.py starts as several processes: `several.py PLAN`, a JSON file of runs that they make one after the other.

{"runs": [{"script", "config", "overrides"}], "trouble": {"step", "kind"}}: trouble is what process 1 meets when it loads that step.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.datasets.sampler import TrainingBatches
from lib.errors import InputError
from lib.training.distributed import rank
from lib.training.runtime import run

SIGNALS = {"stopped": signal.SIGTERM, "killed": signal.SIGKILL}


def make_trouble(step: int, kind: str) -> None:
    load = TrainingBatches.__getitem__

    def troubled(self, number):
        batch = load(self, number)
        if rank() == 1 and number == step:
            if kind in SIGNALS:
                os.kill(os.getpid(), SIGNALS[kind])
            elif kind == "input":
                raise InputError("this picture cannot be used")
            else:
                batch.expression.fill_(float("nan"))
        return batch

    TrainingBatches.__getitem__ = troubled


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    if "trouble" in plan:
        make_trouble(**plan["trouble"])
    for one in plan["runs"]:
        with mock.patch.object(sys, "argv", [one["script"], "--config", one["config"], *one["overrides"]]):
            importlib.import_module(one["script"]).main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main, together=True)
