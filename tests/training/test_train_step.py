"""The benchmark of a training step, tiny."""

import json

from benchmarks import train_step


def test_small_run_from_end_to_end(tmp_path):
    train_step.main(["--small", "--images", "1", "2", "--steps", "1", "--rounds", "1", "--output", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["device"] == "cpu"
    assert result["gaussians"] > 100
    for images in ("1", "2"):
        rows = result["images"][images]
        assert set(rows) == {"high", "highest"}
        assert all(row["ms_per_image"] > 0 for row in rows.values())


def test_what_was_promised_is_judged():
    images = {1: {"high": {"ms_per_image": 17.0, "peak_gib": 7.0}}, 4: {"high": {"ms_per_image": 15.0, "peak_gib": 20.0}}}
    assert [row["passed"] for row in train_step.acceptance({"images": images})] == [True, False, False]
