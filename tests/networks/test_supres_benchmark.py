"""The benchmark of the super-resolution network runs from end to end where there is no GPU."""

import json

import pytest
import torch

from benchmarks import supres, timing
from lib.networks import norm_layers


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_small_run_from_end_to_end(tmp_path, capsys):
    supres.main(["--batches", "1", "2", "--output", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["device"], result["size"], result["picture"]) == ("cpu", supres.TINY, 4 * supres.TINY)
    for values in result["batches"].values():
        for mode in timing.MODES:
            assert set(values[mode]["times"]) == {"fused", "eager_float32", "eager_bfloat16"}
            assert all(one["device_ms"]["median"] > 0 for one in values[mode]["times"].values())
        assert values["relative_l2"]["fused"]["picture"] < 1e-2
    assert capsys.readouterr().out == ""


def test_an_error_costs_only_its_own_measurement(monkeypatch, capsys):
    def refuses(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(supres.Upsampler, "_fused", refuses)
    supres.main(["--batches", "1"])
    values = json.loads(capsys.readouterr().out)["batches"]["1"]
    assert set(values["forward"]["times"]) == {"eager_float32", "eager_bfloat16"}


def test_sweeps_name_constants_that_exist():
    for name, (_, constants, rows) in supres.SWEEP.items():
        assert tuple(getattr(norm_layers, f"{name}_{constant}") for constant in constants) in rows
