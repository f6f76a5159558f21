"""The benchmark of loading runs from end to end where there is no GPU, and what it says of the cache is so."""

import json

import pytest
import torch

from benchmarks import data
from lib.datasets.sampler import TrainingBatches


def test_small_run_from_end_to_end(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(data, "ROUNDS", 2)
    data.main(["--size", "64", "--steps", "6", "--step-ms", "3", "--workers", "2"])
    result = json.loads(capsys.readouterr().out)
    assert all(part["median"] > 0 for part in result["milliseconds"].values())
    assert set(result["batches_per_second"]) == {"0", "1", "2", "4", "8"} and min(result["batches_per_second"].values()) > 0
    picture, training = 5 * 64 * 64, result["training"]
    assert {name: row["cache_peak_bytes"] // picture for name, row in training.items()} == {
        "decoded": 0, "half_cached": result["pictures"] // 2, "cached": result["pictures"]}
    for row in training.values():
        assert 0.0 <= row["data_wait_share"] < 1.0 and row["step_ms"] >= 3.0 and row["cache_peak_bytes"] <= row["cache_limit_bytes"]


def test_pictures_are_a_capture(tmp_path):
    capture = data.open_capture(data.write_capture(tmp_path, 32), 32, 0.0)
    assert capture.train_cameras == list(data.CAMERAS) and len(capture.frames) == data.FRAMES and capture.expression_count == data.EXPRESSIONS
    batches = TrainingBatches(capture, 1, 1, seed=0)
    one, other = batches[0], batches[1]
    assert not torch.equal(one.pixels, other.pixels)
    assert 0.05 < float(one.masks.mean()) < 0.95 and float(one.visible.mean()) == pytest.approx(1.0 - 4.0 / 32.0, abs=0.05)
