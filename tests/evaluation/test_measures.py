"""Measures of batches against direct formulas; a stream of single pictures gives what a batch gives."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from lib.evaluation.measures import CrossMeasures, Flicker, TruthMeasures, exact, neutral_psnr
from lib.losses.perceptual import Lpips
from lib.metrics.ssim import MARGIN
from tests.evaluation.pictures import compared

CLOSED = (1,)


@pytest.fixture(scope="module")
def alex() -> Lpips:
    torch.manual_seed(0)
    return Lpips("alex")


def named(measures, row: int) -> dict[str, float]:
    return dict(zip(measures.names, measures.values[row].tolist(), strict=True))


def test_every_region_is_a_mean_over_its_pixels():
    batch = compared(closed=CLOSED)
    measures = TruthMeasures({}, ())(batch)
    for row in range(3):
        found = named(measures, row)
        error, target = batch.image[row].double() - batch.target[row].double(), batch.target[row]
        _, similarity = structural_similarity(batch.image[row].permute(1, 2, 0).numpy(), target.permute(1, 2, 0).numpy(), gaussian_weights=True,
                                              sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=-1, full=True)
        inside = (slice(MARGIN, -MARGIN),) * 2
        for prefix, weights in (("", torch.ones_like(batch.mask)), ("mask_", batch.mask), ("face_", batch.face), ("mouth_", batch.mouth)):
            weight = weights[row, 0]
            if prefix == "mouth_" and row in CLOSED:
                assert all(math.isnan(found[prefix + kind]) for kind in ("psnr", "ssim", "l1"))
                continue
            squared = float((error.square().mean(dim=0) * weight).sum() / weight.sum())
            assert found[prefix + "psnr"] == pytest.approx(-10.0 * math.log10(squared), abs=1e-3)
            assert found[prefix + "l1"] == pytest.approx(float((error.abs().mean(dim=0) * weight).sum() / weight.sum()), rel=1e-4)
            part = torch.from_numpy(similarity).mean(dim=-1)[inside] * weight[inside]
            assert found[prefix + "ssim"] == pytest.approx(float(part.sum() / weight[inside].sum()), abs=1e-4)


def test_lpips_is_raw_over_the_frame_and_there_only_with_a_network(alex):
    batch = compared(closed=CLOSED)
    with exact():
        measures = TruthMeasures({"alex": alex}, ())(batch)
        expected = alex(batch.image, batch.target)
    torch.testing.assert_close(measures.values[:, measures.names.index("lpips_alex")], expected)
    assert not any("lpips" in name for name in TruthMeasures({}, ())(batch).names)
    assert math.isnan(named(measures, 1)["mouth_lpips_alex"]) and named(measures, 0)["mouth_lpips_alex"] > 0


def test_pictures_do_not_depend_on_their_batch(alex):
    batch, measure = compared(), TruthMeasures({"alex": alex}, ("ga_metrics",))
    with exact():
        whole = measure(batch).values
        singles = torch.cat([measure(batch.rows(slice(row, row + 1))).values for row in range(3)])
    torch.testing.assert_close(singles, whole, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (2, 3), (3, 1, 1)])
def test_flicker_goes_on_over_batches(sizes):
    batch, chain = compared(count=5), [False, True, True, False, True]
    flicker, parts, start = Flicker(), [], 0
    for size in sizes:
        parts.append(flicker(batch.rows(slice(start, start + size)), chain[start:start + size]))
        start += size
    found = torch.cat(parts)
    assert torch.isnan(found[:, 0]).tolist() == [not one for one in chain]
    for row in (1, 2, 4):
        change = ((batch.image[row] - batch.image[row - 1]) - (batch.target[row] - batch.target[row - 1])).abs().mean(dim=0)
        weight = torch.maximum(batch.mask[row, 0], batch.mask[row - 1, 0])
        assert found[row].tolist() == pytest.approx([float(change.mean()), float((change * weight).sum() / weight.sum())], rel=1e-4)


def head(left: int, shade: float = 0.4) -> torch.Tensor:
    """A grey square of 8 pixels on white."""
    picture = torch.ones(3, 20, 30)
    picture[:, 6:14, left:left + 8] = shade
    return picture


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (2, 3)])
def test_without_a_truth_measures_have_closed_forms(sizes):
    images = torch.stack([head(4), head(6), head(8), head(8), head(8, shade=0.0)])
    measure, parts, start = CrossMeasures(), [], 0
    for size in sizes:
        measures = measure(images[start:start + size])
        parts.append(measures.values)
        start += size
    columns = dict(zip(measures.names, torch.cat(parts).T.tolist(), strict=True))
    strip = 2 * 8 * 0.6 / 600  # a column of the square comes or goes
    assert columns["change"][1:] == pytest.approx([2 * strip, 2 * strip, 0.0, 64 * 0.4 / 600], rel=1e-4)
    assert columns["silhouette_area"] == pytest.approx([64 / 600] * 5)
    assert columns["silhouette_iou"][1:] == pytest.approx([48 / 80, 48 / 80, 1.0, 1.0])
    assert columns["clipped"] == pytest.approx([0.0] * 4 + [1.0]) and columns["nonfinite"] == [0.0] * 5
    assert columns["jitter"][3] == pytest.approx(strip, rel=1e-4) and columns["area_jitter"][2:] == pytest.approx([0.0] * 3)
    unknown = {name: [index for index, value in enumerate(values) if math.isnan(value)] for name, values in columns.items()}
    assert unknown == {"change": [0], "silhouette_iou": [0], "jitter": [0, 1], "area_jitter": [0, 1],
                       "nonfinite": [], "clipped": [], "silhouette_area": []}


def test_a_head_that_is_gone_for_a_frame_does_not_spoil_the_mean():
    nothing = torch.ones(3, 20, 30)
    measures = CrossMeasures()(torch.stack([head(4), head(4), nothing, head(4), head(4)]))
    columns = dict(zip(measures.names, measures.values.T.tolist(), strict=True))
    assert columns["area_jitter"][2] == pytest.approx(0.5) and math.isnan(columns["area_jitter"][3]) and math.isnan(columns["clipped"][2])
    assert columns["silhouette_iou"][1:] == [1.0, 0.0, 0.0, 1.0] and columns["area_jitter"][4] == pytest.approx(0.5)
    assert not any(map(math.isinf, measures.values.flatten().tolist()))


def test_what_is_not_finite_is_counted_and_does_not_spoil_the_rest():
    broken = head(4)
    broken[0, :5] = torch.nan
    broken[1, 0, 0] = torch.inf
    measures = CrossMeasures()(torch.stack([head(4), broken, head(4)]))
    columns = dict(zip(measures.names, measures.values.T.tolist(), strict=True))
    assert columns["nonfinite"] == pytest.approx([0.0, (5 * 30 + 1) / 1800, 0.0])
    assert math.isfinite(columns["change"][1]) and math.isfinite(columns["jitter"][2])


def test_another_mouth_is_compared_where_it_is_open():
    batch = compared(closed=CLOSED)
    found = neutral_psnr(batch.target + 0.1, batch)
    assert found[[0, 2]].tolist() == pytest.approx([20.0, 20.0], abs=1e-3) and torch.isnan(found[1])
