"""The benchmark of several processes runs from end to end where there is no GPU, and its arithmetic."""

import json

import pytest

from benchmarks import scaling


def test_small_run_of_two_processes(tmp_path, capsys):
    scaling.main(["--small", "--processes", "2", "--images", "1", "--steps", "1", "--rounds", "1", "--folder", str(tmp_path)])
    result = json.loads(capsys.readouterr().out)
    row, = result["results"]
    assert (row["processes"], row["device"], row["resolution"]) == (2, "cpu", 64) and row["gaussians"] > 500
    times = row["images_per_process"]["1"]
    assert times["images_per_second"] == pytest.approx(2e3 / times["step_ms"]["median"], rel=1e-3) and times["without_exchange_ms"]["median"] > 0
    assert result["weak_efficiency"] == result["strong_efficiency"] == result["acceptance"] == {}  # nothing to compare with


def test_efficiency_is_the_share_of_the_speed_of_as_many_single_processes():
    speeds = {1: {"1": 10.0, "2": 12.0, "4": 16.0}, 2: {"1": 19.0, "2": 23.0, "4": 28.0}, 4: {"1": 36.0, "4": 60.0}}
    result = scaling.summary([
        {"processes": count, "images_per_process": {images: {"images_per_second": speed} for images, speed in row.items()}}
        for count, row in speeds.items()
    ])
    assert result["weak_efficiency"] == {"2 x 1": 0.95, "2 x 2": 0.958, "2 x 4": 0.875, "4 x 1": 0.9, "4 x 4": 0.938}
    assert result["strong_efficiency"] == {"2 / 2": 0.792, "4 / 2": 0.719, "4 / 4": 0.562}
    assert {name: row["passed"] for name, row in result["acceptance"].items()} == {"2 processes": False, "4 processes": True}
