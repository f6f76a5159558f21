"""The benchmark of reenactment runs from end to end where there is no GPU."""

import json

import pytest
import torch

from benchmarks import reenact


def test_small_run_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reenact.main(["--small", "--output", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["gaussians"], result["resolution"], result["preset"]) == (600, 64, "veryfast")
    assert set(result["drawn"]) == {"before", "rendered", "rendered_highest", "coarse"}
    assert all(values["frames_per_second"] > 0 for values in result["drawn"].values())
    assert result["drawn"]["before"]["over_rendered"] > 0
    assert result["psnr_against_before"] == {"rendered": 100.0, "rendered_highest": 100.0}  # the same on the CPU
    assert 0.2 < result["covered"] < 0.8
    assert 0 < result["expression_rows"] < 600 and 0 < result["pose_rows"] < 600
    for written in result["written"].values():
        assert written["frames_per_second"] > 0 and written["latency_ms"]["median"] <= written["latency_ms"]["95%"]
    assert {row["passed"] for row in result["acceptance"]} == {None}
    assert capsys.readouterr().out.replace("rasterizer: reference (tensors on cpu)\n", "") == ""


def test_the_avatar_is_seeded():
    one, same, other = (reenact.make_avatar(50, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.xyz"], other["head.xyz"])


@pytest.mark.parametrize("name", ["exp_color", "pose_deform"])
def test_the_avatar_has_the_published_widths(name):
    widths = {"exp_color": (192, 256, 256, 32), "pose_deform": (81, 256, 256, 3)}
    assert getattr(reenact.make_avatar(50).head, name).dims == widths[name]
