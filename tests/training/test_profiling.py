"""--profile: what it leaves behind, and that training does not notice."""

import gzip
import json
import re

import pytest
import torch

from lib.training.checkpoint import read_checkpoint
from lib.training.profiling import COUNT, LARGEST, WARM_UP, StepProfiler
from tests.tiny import Tiny, mesh_dict, run_script


def test_a_profiled_run_is_the_same_run_and_leaves_a_table_and_a_trace(made: Tiny, tmp_path, capsys):
    for name, options in (("plain", ()), ("profiled", ("--profile",))):
        run_script("train_meshhead", mesh_dict(made.subject, tmp_path, steps=7, name=name), tmp_path, *options)
    plain, profiled = (read_checkpoint(tmp_path / "checkpoints" / name / "meshhead_latest", "meshhead", "test") for name in ("plain", "profiled"))
    tensors = [(f"{module}.{name}", tensor, profiled.modules[module][name])
               for module, state in plain.modules.items() for name, tensor in state.items()]
    assert tensors and [name for name, one, other in tensors if not torch.equal(one, other)] == []

    results = tmp_path / "results"
    assert not list((results / "plain").glob("*profile*"))
    with gzip.open(results / "profiled" / "meshhead_profile.json.gz") as file:
        assert len(json.load(file)["traceEvents"]) > 1000
    lines = (results / "profiled" / "meshhead_profile.txt").read_text().splitlines()
    assert lines[0].startswith("steps 6 to 7 on CPU, torch ")
    assert re.fullmatch(r"step [\d.e+]+ ms \([\d.e+]+ ms while profiled\), [\d.e+]+ operations", lines[1])
    rows = [line.split(maxsplit=3) for line in lines[4:]]
    assert len(rows) == LARGEST and len({row[3] for row in rows}) == LARGEST
    spent = [float(row[0]) for row in rows]
    assert spent == sorted(spent, reverse=True) and spent[-1] > 0
    assert 10 < sum(float(row[1].rstrip("%")) for row in rows) <= 100.5
    assert f"profile: {lines[1]}; {results / 'profiled' / 'meshhead_profile.txt'}" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "clock", "profiler", "end"), [
    (600_000, WARM_UP - COUNT, WARM_UP, WARM_UP + COUNT), (15, 5, 10, 15), (14, 6, 10, 14), (6, 2, 4, 6), (3, 1, 2, 3),
])
def test_few_steps_are_measured_after_the_others(tmp_path, steps, clock, profiler, end):
    start = 40
    measured = StepProfiler(tmp_path, "stage", torch.device("cpu"), start, start + steps)
    running = {}
    for done in range(start + 1, start + min(steps, WARM_UP + 2 * COUNT) + 1):
        torch.ones(3) + 1
        said = measured.after(done)
        running[done - start] = measured._profile is not None
        assert (said is not None) == (done - start == end)
    assert [done for done, on in running.items() if on] == list(range(profiler, end))
    assert measured.first - measured.count == start + clock
    operations = (tmp_path / "stage_profile.txt").read_text()
    assert re.search(r" 1  aten::add\n", operations) and re.search(r" 1  aten::ones\n", operations)


def test_a_run_that_ends_early_writes_nothing_and_the_next_can_be_profiled(tmp_path):
    for length in (WARM_UP + 1, WARM_UP + COUNT):
        measured = StepProfiler(tmp_path, "stage", torch.device("cpu"), 0, 100)
        for done in range(1, length + 1):
            measured.after(done)
        measured.close()
        assert len(list(tmp_path.iterdir())) == (2 if length == WARM_UP + COUNT else 0)


def test_too_short_a_run_says_so(made: Tiny, tmp_path, capsys):
    run_script("train_meshhead", mesh_dict(made.subject, tmp_path, steps=2), tmp_path, "--profile")
    assert "profile: needs 3 steps, this run has 2" in capsys.readouterr().out
    assert not list((tmp_path / "results" / "tiny").glob("*profile*"))
