"""What benchmarks/quality.py concludes from runs."""

import json
import sys

import pytest

from benchmarks import quality
from benchmarks.quality import Run, curves, verdict


def made(precision, seed, psnr, ssim=0.9):
    return Run(precision, seed, {"novel_view": {"psnr": psnr, "ssim": ssim}}, 60.0, {"psnr": (20.0, psnr), "total": (1.0, 0.5)})


def test_means_are_compared_and_seeds_told_apart():
    found = verdict([made("high", 0, 30.0), made("highest", 0, 30.2), made("high", 1, 30.3), made("highest", 1, 30.15)])["novel_view_psnr"]
    assert found["difference"] == pytest.approx(-0.025) and found["within"]
    assert found["seed_spread"] == pytest.approx(0.3)


@pytest.mark.parametrize(("psnr", "ssim", "wrong"), [
    (30.11, 0.9, "novel_view_psnr"), (30.0, 0.9021, "novel_view_ssim"), (29.8, 0.9, "novel_view_psnr"),
])
def test_what_lies_apart_is_not_within(psnr, ssim, wrong):
    found = verdict([made("high", 0, psnr, ssim), made("highest", 0, 30.0)])
    assert [name for name, one in found.items() if not one["within"]] == [wrong]


def test_every_run_has_a_curve():
    text = curves([made("high", 0, 30.0), made("highest", 7, 30.2)])
    assert text.count("<svg") == 2 and "highest, seed 7" in text


def test_the_scripts_get_the_same_but_precision_and_seed(tmp_path, monkeypatch, capsys):
    asked = []

    def trained(configs, overrides, precision, seed, steps, output):
        asked.append((tuple(configs), tuple(overrides), precision, seed, steps))
        return made(precision, seed, 30.0)

    monkeypatch.setattr(quality, "train_and_measure", trained)
    monkeypatch.setattr(sys, "argv", ["quality", "--config", "a.yaml", "--config", "b.yaml", "--steps", "7", "--seeds", "3", "4",
                                      "--output", str(tmp_path), "trainer.device=cpu"])
    quality.main()
    assert asked == [(("a.yaml", "b.yaml"), ("trainer.device=cpu",), precision, seed, 7) for seed in (3, 4) for precision in ("high", "highest")]
    assert json.loads(capsys.readouterr().out)["verdict"]["novel_view_ssim"]["within"] and (tmp_path / "quality.html").exists()
