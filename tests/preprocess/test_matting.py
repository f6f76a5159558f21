"""Mattes of scenes whose truth is known, and networks behind the one interface: stand-ins with the published signatures."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import matting as benchmark
from benchmarks.matting import compare
from benchmarks.matting_scenes import BACKGROUNDS, photograph, shoot
from lib.errors import InputError
from preprocess import matting
from preprocess.matting import ClassicalMatter, open_matting
from preprocess.matting_classical import fit_gain, matte
from preprocess.matting_plate import NoEstimate, estimate_background

SIZE = 128
FRONT = 8  # row of the rig


@functools.cache
def head(preset="curly", frame=1):
    return shoot(preset, SIZE, frame, (FRONT,))[0]


def found(taken, empty=None):
    return matte(taken.picture.astype(np.float32) / 255.0, (taken.empty if empty is None else empty).astype(np.float32) / 255.0)


@pytest.mark.parametrize("preset", ["curly", "bob"])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_close_to_the_truth_before_every_background(preset, background):
    taken = photograph(head(preset), background, 1)
    soft, hard = compare(found(taken), taken.mask)
    assert soft > 0.96 and hard > 0.97


def test_edge_is_soft_where_the_truth_is():
    taken = photograph(head("curly"), "gradient", 1)
    alpha, edge = found(taken), (taken.mask > 0.05) & (taken.mask < 0.95)
    assert edge.sum() > 100
    hard_edge = np.abs((taken.mask > 0.5) - taken.mask)[edge].mean()
    assert np.abs(alpha - taken.mask)[edge].mean() < 0.6 * hard_edge


def test_gain_between_the_shots_is_found():
    random = np.random.default_rng(0)
    empty = random.uniform(0.2, 0.8, (64, 64, 3)).astype(np.float32)
    picture = empty * np.array([0.93, 1.0, 1.08], np.float32)
    picture[20:, 16:48] = (0.5, 0.3, 0.2)
    gain, agreeing = fit_gain(picture, empty)
    assert gain == pytest.approx([0.93, 1.0, 1.08], abs=0.01)
    assert agreeing[30:, 26:38].mean() < 0.1


def test_the_same_person_at_twice_the_size_has_the_same_matte():
    taken = photograph(head("curly"), "blotches", 1)
    twice = [np.kron(image, np.ones((4, 4, 1), np.uint8)) for image in (taken.picture, taken.empty)]
    large = matte(*(image.astype(np.float32) / 255.0 for image in twice))
    back = large.reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    assert compare(back, found(taken))[1] > 0.97


def test_an_empty_scene_holds_nobody():
    taken = photograph(head("curly"), "stripes", 1)
    assert found(type(taken)(taken.empty, taken.empty, taken.mask)).mean() < 0.01


@pytest.mark.parametrize("side", [1, 3, 6, 12])
def test_a_small_thing_is_no_trouble(side):
    random = np.random.default_rng(0)
    empty = random.uniform(0.4, 0.6, (64, 64, 3)).astype(np.float32)
    picture = empty.copy()
    picture[30:30 + side, 30:30 + side] = (0.9, 0.1, 0.1)
    alpha = matte(picture, empty)
    assert alpha.shape == (64, 64) and np.isfinite(alpha).all() and alpha.sum() < 2.5 * side**2 + 1.0


def test_without_the_empty_scene_it_is_estimated():
    takes = [photograph(head("bob", frame), "gradient", frame) for frame in (0, 1, 2)]
    empty = estimate_background([taken.picture for taken in takes])
    assert np.mean([compare(found(taken, empty), taken.mask)[1] for taken in takes]) > 0.9


def test_no_estimate_without_a_person():
    with pytest.raises(NoEstimate, match="no person"):
        estimate_background([np.full((64, 64, 3), 120, np.uint8)] * 3)


class BackgroundNetwork(nn.Module):
    """The signature of BackgroundMattingV2; alpha is where the pictures differ."""

    def __init__(self):
        super().__init__()
        self.backbone_scale, self.refine_mode, self.refine_sample_pixels = 0.25, "sampling", 80_000
        self.weight = nn.Parameter(torch.tensor(10.0))

    def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, Tensor]:
        assert self.backbone_scale <= 0.5 and self.refine_mode == "thresholding"
        assert src.size(2) % 4 == 0 and src.size(3) % 4 == 0 and src.size(0) == bgr.size(0)
        return ((src - bgr).abs().sum(1, keepdim=True) * self.weight).clamp(0.0, 1.0), src


class VideoNetwork(nn.Module):
    """The signature of RobustVideoMatting; alpha is a tenth of how many pictures it has seen."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, src: Tensor, r1: Tensor | None = None, r2: Tensor | None = None, r3: Tensor | None = None, r4: Tensor | None = None,
                downsample_ratio: float = 1.0) -> list[Tensor]:
        assert 0.0 < downsample_ratio <= 1.0
        seen = torch.ones(1) if r1 is None else r1 + 1.0
        return [src, torch.ones_like(src[:, :1]) * seen * self.weight, seen, seen, seen, seen]


class BrokenNetwork(VideoNetwork):
    """Gives NaN."""

    def forward(self, src: Tensor, r1: Tensor | None = None, r2: Tensor | None = None, r3: Tensor | None = None, r4: Tensor | None = None,
                downsample_ratio: float = 1.0) -> list[Tensor]:
        return [src, torch.full_like(src[:, :1], float("nan")), src, src, src, src]


def saved(network: nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.save(torch.jit.script(network), str(path))
    return path


def test_background_matting_gets_both_pictures(tmp_path):
    way = open_matting("background_matting_v2", saved(BackgroundNetwork(), tmp_path / "model.pth"), "cpu", has_backgrounds=True)
    picture, empty = torch.full((2, 3, 30, 34), 0.5), torch.full((3, 30, 34), 0.5)
    picture[1, :, 5:9, 7:20] = 1.0
    alpha = way.begin()(picture, empty)
    expected = torch.zeros(2, 1, 30, 34)
    expected[1, :, 5:9, 7:20] = 1.0
    assert torch.equal(alpha, expected) and way.needs_background
    with pytest.raises(InputError, match="empty scene"):
        way.begin()(picture, None)


def test_video_matting_remembers_and_begins_anew(tmp_path):
    way = open_matting("robust_video_matting", saved(VideoNetwork(), tmp_path / "model.torchscript"), "cpu", has_backgrounds=False)
    matter, pictures = way.begin(), torch.zeros(2, 3, 8, 8)
    seen = torch.cat([matter(pictures, None), matter(pictures[:1], None)])[:, 0, 0, 0]
    assert seen.tolist() == pytest.approx([0.1, 0.2, 0.3]) and way.remembers
    assert float(way.begin()(pictures[:1], None).max()) == pytest.approx(0.1)


def test_nan_of_a_network_is_told(tmp_path):
    way = open_matting("robust_video_matting", saved(BrokenNetwork(), tmp_path / "model.torchscript"), "cpu", has_backgrounds=False)
    with pytest.raises(InputError, match="NaN"):
        way.begin()(torch.zeros(1, 3, 8, 8), None)


def test_auto_takes_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(matting, "WEIGHTS_FOLDER", tmp_path)
    assert open_matting("auto", None, "cpu", has_backgrounds=True).name == "classical"
    assert "no weights" in capsys.readouterr().out
    saved(VideoNetwork(), tmp_path / "rvm_mobilenetv3_fp32.torchscript")
    assert open_matting("auto", None, "cpu", has_backgrounds=True).name == "robust_video_matting"
    saved(BackgroundNetwork(), tmp_path / "torchscript_resnet50_fp32.pth")
    assert open_matting("auto", None, "cpu", has_backgrounds=True).name == "background_matting_v2"
    assert open_matting("auto", None, "cpu", has_backgrounds=False).name == "robust_video_matting"
    (tmp_path / "rvm_mobilenetv3_fp32.torchscript").unlink()
    assert open_matting("auto", None, "cpu", has_backgrounds=False).name == "classical"
    assert "no background/image_<camera>.jpg, without which background_matting_v2" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "says"), [
    ("background_matting_v2", "torchscript_resnet101_fp32.pth"), ("robust_video_matting", "releases/tag/v1.0.0")])
def test_absent_weights_are_told_with_place_and_source(name, says, tmp_path, monkeypatch):
    monkeypatch.setattr(matting, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(InputError) as error:
        open_matting(name, None, "cpu", has_backgrounds=True)
    assert says in str(error.value) and str(tmp_path) in str(error.value) and "github.com/PeterL1n" in str(error.value)


def test_foreign_weights_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "dict.pth")
    for path in (tmp_path / "text.pth", tmp_path / "dict.pth"):
        with pytest.raises(InputError, match="TorchScript"):
            open_matting("background_matting_v2", path, "cpu", has_backgrounds=True)
    for name, network in (("background_matting_v2", VideoNetwork()), ("robust_video_matting", BackgroundNetwork())):
        with pytest.raises(InputError, match=f"not one of {name}"):
            open_matting(name, saved(network, tmp_path / "other"), "cpu", has_backgrounds=True)
    for name in ("auto", "classical"):
        with pytest.raises(InputError, match="--weights"):
            open_matting(name, tmp_path / "other", "cpu", has_backgrounds=True)


def test_classical_wants_a_background():
    with pytest.raises(InputError, match="empty scene"):
        ClassicalMatter()(torch.zeros(1, 3, 8, 8), None)


def test_small_benchmark_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "ESTIMATED_FROM", 2)
    benchmark.main(["--small", "--sheets", str(tmp_path)])
    result = json.loads(capsys.readouterr().out)
    assert result["sizes"]["96"]["all"]["hard"] > 0.95 and result["milliseconds_192"] > 0 and (tmp_path / "mattes_96.png").exists()
