"""The benchmark of the rasterizers runs from end to end where there is no GPU, and tells who draws something else; the example of its document."""

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import candidates, rasterizer, timing
from benchmarks.scenes import SCENES, make_drawing
from lib.render.gaussian import interface, reference
from tests.render.test_gaussian_adapters import Gsplat, install, use_inria

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "rasterizer.md"
SCENE = SCENES[0].reduced(16)


def candidate(name):
    return next(one for one in candidates.CANDIDATES if one.name == name)


def verdict(name, scene=SCENE):
    drawing = make_drawing(scene)
    return candidates.judge(candidate(name), [candidates.compare(candidate(name), drawing, candidates.truth(drawing, candidate(name).clip))])


def use_broken_reference(monkeypatch):
    def broken(cloud, camera, background, options):
        image = reference.rasterize(cloud, camera, background, options)
        return type(image)(image.features * 1.01, image.alpha, image.radii)

    monkeypatch.setitem(interface.BACKENDS, "reference", broken)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_small_run_from_end_to_end(no_gpu, tmp_path, capsys):
    rasterizer.main(["--small", "--output", str(tmp_path / "out.json"), "--scenes", "head-150k", "head-50k-b16", "--backends", "reference"])
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["scenes"]) == ["head-150k", "head-50k-b16"]
    assert {"device", "torch", "versions", "obstacles", "recorded", "acceptance", "seconds"} <= set(result)
    assert result["reference_grouping"]["padded_over_grouped"] > 0
    for scene in result["scenes"].values():
        assert scene["parity"]["reference"]["passed"]
        assert scene["counters"]["pairs"] > 0
        for mode in timing.MODES:
            assert scene[mode]["reference"]["device_ms"]["median"] > 0
            assert scene[mode]["reference"]["over_reference"] == 1
    assert result["obstacles"]["gsplat"] == "not asked for"
    assert {row["passed"] for row in result["acceptance"]} == {None, True}
    assert capsys.readouterr().out == ""


def test_a_wrong_picture_fails_and_is_not_compared(no_gpu, monkeypatch, capsys):
    use_broken_reference(monkeypatch)
    rasterizer.main(["--small", "--scenes", "head-150k", "--backends", "reference"])
    scene = json.loads(capsys.readouterr().out)["scenes"]["head-150k"]
    assert not scene["parity"]["reference"]["passed"]
    assert {"image", "d_features", "d_means"} <= set(scene["parity"]["reference"]["beyond"])
    assert "alpha" not in scene["parity"]["reference"]["beyond"]
    assert scene["parity"]["reference"]["signed_over_rms"]["image"] > 0.5  # always too bright
    assert scene["forward"]["reference"]["not_comparable"] == "parity failed"
    assert "over_reference" not in scene["forward"]["reference"]


def test_an_error_costs_only_its_own_measurement(no_gpu, monkeypatch, capsys):
    def refuses(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(interface.BACKENDS, "reference", refuses)
    rasterizer.main(["--small", "--scenes", "head-150k", "--backends", "reference"])
    scene = json.loads(capsys.readouterr().out)["scenes"]["head-150k"]
    assert scene["parity"]["reference"] == {"passed": False, "error": "RuntimeError: no such kernel"}
    assert scene["forward"] == {}


@pytest.mark.parametrize("version", ["1.4.0", "1.5.0+pt24cu124", "1.5.3"])
@pytest.mark.parametrize("name", ["head-150k", "head-50k-b16", "head-50k-b16-shared"])
def test_gsplat_is_called_as_it_wants(monkeypatch, version, name):
    stand_in, takes_batches = Gsplat(), version == "1.5.3"

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, **others):
        if means.dim() == 2:
            return stand_in.rasterization(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds=backgrounds, **others)
        assert takes_batches
        values = zip(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, strict=True)
        parts = [rasterization(*row[:7], backgrounds=row[7], **others) for row in values]
        return torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts]), {}

    install(monkeypatch, "gsplat", rasterization=rasterization, __version__=version)
    result = verdict("gsplat", next(scene for scene in SCENES if scene.name == name).reduced(16))
    assert result["passed"], result
    assert result["relative_l2"]["d_quats_wxyz"] < 1e-4


@pytest.mark.parametrize("compiled", [32, 40])
def test_inria_is_called_as_it_wants(monkeypatch, compiled):
    use_inria(monkeypatch, compiled)
    result = verdict("inria")
    assert max(result["relative_l2"].values()) < 1e-3
    assert "alpha" not in result["relative_l2"]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_scenes_are_seeded_and_seen(scene):
    small = scene.reduced(16)
    drawing, again = make_drawing(small), make_drawing(small)
    assert torch.equal(drawing.cloud.means, again.cloud.means)
    assert not torch.equal(drawing.cloud.means, make_drawing(small, seed=1).cloud.means)
    assert drawing.upstream.shape == (small.images, small.channels, small.size, small.size)
    assert len(drawing.cloud.means) == (1 if small.shared else small.images)
    counters = timing.counters(drawing, "reference")
    assert counters["visible"] > 0.5 * small.count * small.images
    if scene.family == "pile":
        assert counters["longest_list"] == small.count


def test_profiles_are_told_by_stage():
    events = [
        ("project_forward", True, 10.0), ("blend_backward", True, 40.0), ("blend_forward", True, 20.0), ("Memset (Device)", True, 2.0),
        ("void at_cuda_detail::cub::DeviceScanKernel<int>", True, 6.0), ("ampere_sgemm", True, 1.0), ("cudaEventSynchronize", False, 5.0),
        ("cudaLaunchKernel", False, 3.0),
    ]
    result = timing.digest(events, 2)
    assert result["stages_us"] == {
        "blend backward": 20.0, "blend": 10.0, "projection": 5.0, "count scan": 3.0, "memsets": 1.0, "other": 0.5}
    assert (result["kernels"], result["host_waits"], result["device_us"]) == (3.0, 0.5, 39.5)


def test_the_acceptance_is_judged_by_the_measured_ratios():
    scenes = {"head-150k": {
        "forward": {"gluon": {"device_ms": {"median": 0.2}}, "gsplat": {"over_gluon": 2.9}},
        "forward_backward": {"gluon": {"device_ms": {"median": 0.6}}, "gsplat": {"over_gluon": 7.0}},
        "peak_bytes": {"gluon": 100, "gsplat": 200}, "parity": {"gluon": {"relative_l2": {"image": 2e-4, "d_means": 4e-4}}},
    }}
    result = {"scenes": scenes, "small": False, "recorded": {"over_ours": rasterizer.over_recorded(scenes, "gluon")}}
    rows = {row["what"]: (row["value"], row["passed"]) for row in rasterizer.acceptance(result, "gluon")}
    assert rows["head 150k, opacity 0.3, forward+backward: gsplat / ours"] == (7.0, True)
    assert rows["head 150k, opacity 0.3, forward: gsplat / ours"] == (2.9, False)
    assert rows["head 150k, opacity 0.3, forward+backward: INRIA's recorded / ours"] == (12.85, True)
    assert rows["head 150k, peak memory: ours / gsplat"] == (0.5, True)
    assert rows["'high': worst relative L2 (head-150k, d_means)"] == (4e-4, True)
    assert rows["large 100k, forward+backward: gsplat / ours"] == (None, None)


def test_the_example_of_the_document_runs():
    example = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL).group(1)
    names = {}
    exec(example, names)  # noqa: S102 (the example of the documentation)
    assert names["image"].features.shape == (1, 3, 256, 256)
    assert names["cloud"].means.grad.isfinite().all()
