"""On CUDA: pictures in batches and their measures are those of the CPU. Run with `python -m pytest -m gpu`."""

import importlib.util

import pytest
import torch

from benchmarks.reenact import make_avatar, make_driver
from lib.avatars.gaussian_head_avatar.drawing import BatchRenderer
from lib.evaluation.conventions import CONVENTIONS
from lib.evaluation.measures import CrossMeasures, Flicker, TruthMeasures, exact
from lib.losses.perceptual import Lpips
from lib.metrics.psnr import psnr
from tests.evaluation.pictures import compared

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
              pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")]
SIZE = 256


def test_measures_are_those_of_the_cpu():
    torch.manual_seed(0)
    batch, networks = compared(count=4, size=128, closed=(1,)), {name: Lpips(name) for name in ("vgg", "alex")}
    with exact():
        expected = TruthMeasures(networks, tuple(CONVENTIONS))(batch)
        found = TruthMeasures({name: network.cuda() for name, network in networks.items()}, tuple(CONVENTIONS))(batch.to("cuda"))
        chain = [False, True, False, True]
        torch.testing.assert_close(Flicker()(batch.to("cuda"), chain).cpu(), Flicker()(batch, chain), rtol=1e-4, atol=1e-6, equal_nan=True)
        cross = CrossMeasures()(batch.image.cuda()).values.cpu()
        torch.testing.assert_close(cross, CrossMeasures()(batch.image).values, rtol=1e-3, atol=1e-5, equal_nan=True)
    assert found.names == expected.names
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_measuring_does_not_wait_for_the_device():
    batch, measure, flicker = compared(count=4, size=128).to("cuda"), TruthMeasures({}, tuple(CONVENTIONS)), Flicker()
    with exact():
        measure(batch), flicker(batch, [False] * 4)
        torch.cuda.set_sync_debug_mode("error")
        try:
            measure(batch), flicker(batch, [True] * 4)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_batch_is_its_pictures(tmp_path):
    avatar, driver = make_avatar(20_000).cuda(), make_driver(tmp_path, 5, 64, SIZE)
    with exact():
        draw = BatchRenderer(avatar, SIZE, SIZE)
        drawn = draw([driver[index] for index in range(5)])
        assert drawn.finite == (True,) * 5 and draw.frames_per_second > 0
        for index, image in enumerate(drawn.images):
            frame = driver[index].to("cuda")
            assert float(psnr(avatar(frame.expression, frame.pose_code, frame.head, frame.camera).image, image[None])) > 60.0
        with torch.no_grad():  # NaN of single Gaussians would stay alone: they are not drawn
            avatar.upsampler.exit.bias.fill_(torch.nan)
        assert BatchRenderer(avatar, SIZE, SIZE)([driver[0]]).finite == (False,)
