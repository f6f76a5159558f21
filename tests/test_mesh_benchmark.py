"""The benchmark of a step of stage 1 runs where there is no GPU."""

import json

import yaml

from benchmarks import mesh_step
from tests.tiny import mesh_dict


def test_small_run_from_end_to_end(made, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(mesh_dict(made.subject, tmp_path)))
    before = sorted(tmp_path.iterdir())
    mesh_step.main(["--config", str(config), "--steps", "2", "--settle", "1", "--output", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out.json"])  # nothing of a run is left
    assert result["device"] == "cpu"
    assert result["vertices"] > 100
    assert result["products_gflop"] > 0
    assert result["step"]["single_ms"]["median"] > 0
    regions = result["profile"]["regions_ms"]
    assert all(part["host"] > 0 for part in regions.values())
    assert regions["backward"]["host"] > regions["zero level"]["host"]
    assert result["profile"]["host_waits"] > 4
