"""On CUDA: what is replayed is what is drawn, what does not fit is noticed, fast is close to exact. Run with `python -m pytest -m gpu`."""

import importlib.util

import av
import cv2
import numpy as np
import pytest
import torch

from benchmarks.reenact import make_avatar, make_driver
from lib.avatars.gaussian_head_avatar import renderer as module
from lib.avatars.gaussian_head_avatar.film import VideoConfig, film
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.metrics.psnr import psnr
from lib.networks.frozen_mlp import FrozenMLP
from lib.networks.mlp import MLP

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
              pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")]
SIZE, GAUSSIANS, FRAMES = 512, 20_000, 12


@pytest.fixture(scope="module")
def avatar():
    return make_avatar(GAUSSIANS).cuda()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return make_driver(tmp_path_factory.mktemp("driver"), FRAMES, 64, SIZE)


@torch.no_grad()
def drawn(avatar, frame):
    frame = frame.to("cuda")
    return avatar(frame.expression, frame.pose_code, frame.head, frame.camera)


def test_replayed_is_drawn(avatar, driver):
    """In float32; convolutions may be other ones, with other roundings."""
    renderer, coarse = AvatarRenderer(avatar, SIZE, SIZE, "highest"), AvatarRenderer(avatar, SIZE, SIZE, "highest", coarse_only=True)
    for index in (0, 7, 3, 3):
        expected = drawn(avatar, driver[index])
        assert float(psnr(renderer(driver[index]).image, expected.image)) > 60.0
        assert torch.allclose(coarse(driver[index]).image, expected.coarse.features[:, :3], atol=2e-3)
    assert float(psnr(renderer(driver[0]).image, drawn(avatar, driver[7]).image)) < 40.0  # it moves


def test_every_replay_gives_the_same(avatar, driver):
    renderer = AvatarRenderer(avatar, SIZE, SIZE)
    first = renderer(driver[2]).image.clone()
    renderer(driver[5])
    assert torch.equal(renderer(driver[2]).image, first)


def test_fast_is_close_to_exact(avatar, driver):
    fast, exact = AvatarRenderer(avatar, SIZE, SIZE), AvatarRenderer(avatar, SIZE, SIZE, "highest")
    for index in range(FRAMES):
        assert float(psnr(fast(driver[index]).image, exact(driver[index]).image)) >= 50.0


def test_many_inputs_may_be_handed_in_before_the_first_is_drawn(avatar, driver):
    renderer = AvatarRenderer(avatar, SIZE, SIZE)
    expected = [renderer(driver[index]).image.clone() for index in range(FRAMES)]
    torch.cuda.synchronize()
    pictures = [renderer(driver[index]).image.clone() for index in range(FRAMES)]  # the host runs ahead
    assert all(torch.equal(one, other) for one, other in zip(pictures, expected, strict=True))


def test_too_little_room_is_noticed_and_drawn_again(avatar, driver, tmp_path, monkeypatch, capsys):
    film(AvatarRenderer(avatar, SIZE, SIZE), driver, VideoConfig(), tmp_path / "enough")
    assert "drawing again" not in capsys.readouterr().out
    monkeypatch.setattr(module, "PAIRS_PER_GAUSSIAN", 0)
    monkeypatch.setattr(module, "PAIRS_LEAST", 1000)
    renderer = AvatarRenderer(avatar, SIZE, SIZE)
    first = renderer(driver[0])
    assert int(first.needed[0]) > first.room and torch.isnan(first.image).all()
    film(renderer, driver, VideoConfig(), tmp_path / "again")
    assert "drawing again" in capsys.readouterr().out
    for index in range(FRAMES):
        one, other = (cv2.imread(str(tmp_path / name / "frames" / f"{index:05d}.png")).astype(int) for name in ("enough", "again"))
        assert np.abs(one - other).max() <= 1  # graphs recorded twice may have chosen other convolutions


def test_a_film_shows_what_is_drawn(avatar, driver, tmp_path):
    renderer = AvatarRenderer(avatar, SIZE, SIZE)
    pace = film(renderer, driver, VideoConfig(), tmp_path)
    with av.open(str(tmp_path / "reenactment.mp4")) as container:
        video = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(video) == len(pace.latencies) == FRAMES
    for index, shown in enumerate(video):
        picture = (renderer(driver[index]).image[0].clamp(0.0, 1.0) * 255.0).round().byte().permute(1, 2, 0).cpu().numpy()
        assert (cv2.imread(str(tmp_path / "frames" / f"{index:05d}.png"))[..., ::-1] == picture).all()
        assert np.abs(shown.astype(int) - picture.astype(int)).mean() < 6.0
    assert 0.0 < pace.latency(0.5) < 10.0 and max(pace.drawing) < 10.0


@pytest.mark.parametrize("dims", [(192, 256, 256, 32), (182, 128, 32), (192, 256, 256, 256, 8), (91, 256, 256, 256, 256, 256, 3)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_frozen_networks_agree_with_the_cpu(dims, dtype, limit):
    torch.manual_seed(0)
    mlp, local, code = MLP(dims), torch.randn(1001, dims[0] - 20), torch.randn(1, 20)
    with torch.no_grad():
        exact = mlp.double()(local.double(), code.double())
        ours = FrozenMLP(mlp.float().cuda(), local.cuda(), dtype)(code.cuda()).cpu()
    assert float((ours.double() - exact).norm() / exact.norm()) < limit
