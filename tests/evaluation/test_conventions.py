"""Published conventions against formulas written out here."""

import math

import numpy as np
import pytest
import torch

from lib.evaluation.conventions import CONVENTIONS
from lib.evaluation.measures import TruthMeasures, exact
from lib.losses.perceptual import SCALE, SHIFT, Lpips, unit_vectors
from tests.evaluation.pictures import compared


@pytest.fixture(scope="module")
def networks() -> dict[str, Lpips]:
    torch.manual_seed(0)
    return {name: Lpips(name) for name in ("vgg", "alex")}


def zero_padded_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Windows as convolutions that pad with zeros, in float64."""
    x = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-x.square() / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def mean(picture: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(picture.double()[None], window, padding=5, groups=3)[0]

    m, n = mean(a), mean(b)
    covariance = mean(a.double() * b.double()) - m * n
    va, vb = mean(a.double() ** 2) - m * m, mean(b.double() ** 2) - n * n
    return float((((2 * m * n + 1e-4) * (2 * covariance + 9e-4)) / ((m * m + n * n + 1e-4) * (va + vb + 9e-4))).mean())


def ratio(a: torch.Tensor, b: torch.Tensor) -> float:
    return 20.0 * math.log10(1.0 / math.sqrt(float((a.double() - b.double()).square().mean())))


def published_lpips(network: Lpips, a: torch.Tensor, b: torch.Tensor) -> float:
    """Of what its own forward gets, without the mapping from [0,1]."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))
    a, b = ((picture[None] - shift) / scale for picture in (a, b))
    total = 0.0
    for number, layer in enumerate(network.features):
        a, b = layer(a), layer(b)
        if number in network.compared:
            difference = (unit_vectors(a) - unit_vectors(b)).square()
            total += float(network.get_submodule(network.compared[number])(difference).mean())
    return total


def read_back(picture: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.clip(picture.numpy() * 255.0 + 0.5, 0, 255).astype(np.uint8)).float() / 255.0


@torch.no_grad()
def expected(name: str, image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, networks: dict[str, Lpips]) -> list[float]:
    if name == "ga_train":
        return [sum(ratio(image[k], target[k]) for k in range(3)) / 3.0, zero_padded_ssim(image, target),
                published_lpips(networks["alex"], image, target)]
    image, target = read_back(image), read_back(target)
    if name == "ga_metrics":
        return [ratio(image, target), zero_padded_ssim(image, target), published_lpips(networks["vgg"], image, target)]
    image, target = image * read_back(mask), target * read_back(mask)
    return [ratio(image, target), zero_padded_ssim(image, target), 0.05 * published_lpips(networks["vgg"], 2 * image - 1, 2 * target - 1)]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_is_its_formula(networks, name):
    batch = compared(count=2)
    with exact():
        measures = TruthMeasures(networks, (name,))(batch)
    first = measures.names.index(f"{name}_psnr")
    assert measures.names[first:first + 3] == (f"{name}_psnr", f"{name}_ssim", f"{name}_lpips")
    for row in range(2):
        wanted = expected(name, batch.image[row], batch.target[row], batch.mask[row], networks)
        assert measures.values[row, first:first + 3].tolist() == pytest.approx(wanted, rel=1e-3)


def test_conventions_differ_from_ours_and_from_each_other(networks):
    with exact():
        measures = TruthMeasures(networks, tuple(CONVENTIONS))(compared(count=1))
    found = dict(zip(measures.names, measures.values[0].tolist(), strict=True))
    assert found["hg_masked_psnr"] > found["psnr"] + 1.0  # equal black around the head
    assert len({round(found[key], 6) for key in ("psnr", "ga_train_psnr", "hg_masked_psnr")}) == 3
    assert len({round(found[key], 6) for key in ("lpips_vgg", "ga_metrics_lpips", "hg_masked_lpips")}) == 3


def test_without_its_network_a_convention_has_no_lpips():
    measures = TruthMeasures({}, ("ga_metrics",))(compared(count=1))
    found = dict(zip(measures.names, measures.values[0].tolist(), strict=True))
    assert math.isnan(found["ga_metrics_lpips"]) and math.isfinite(found["ga_metrics_psnr"])
