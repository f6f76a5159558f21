"""What draws frame after frame draws what the avatar draws."""

import dataclasses

import pytest
import torch

from benchmarks.reenact import make_avatar, make_driver
from lib.avatars.gaussian_head_avatar import avatar as avatars
from lib.avatars.gaussian_head_avatar.avatar import RGB, GaussianAvatar
from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHead
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.geometry.head_pose import HeadPose
from lib.networks.precision import set_precision
from lib.render.gaussian.interface import rasterize

SIZE, EXPRESSIONS = 64, 64
PIXELS_PER_UNIT = 3.5 * 2048 * 0.1  # 2048², seen by the front camera at one metre; 0.1 metres per canonical unit


@pytest.fixture(scope="module")
def avatar() -> GaussianAvatar:
    return make_avatar(300)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return make_driver(tmp_path_factory.mktemp("driver"), 4, EXPRESSIONS, SIZE)


def drawn(avatar, frame):
    return avatar(frame.expression, frame.pose_code, frame.head, frame.camera)


@pytest.mark.parametrize("pose_deform_at", ["undeformed", "deformed"])
def test_a_frozen_head_is_the_head(avatar, pose_deform_at):
    config = avatar.head.config.model_copy(update={"pose_deform_at": pose_deform_at})
    head = GaussianHead(config, len(avatar.head.xyz), len(avatar.head.landmarks_3d_neutral))
    head.load_state_dict(avatar.head.state_dict())
    torch.manual_seed(0)
    codes = torch.randn(2, EXPRESSIONS), 0.3 * torch.randn(2, 6), HeadPose(0.3 * torch.randn(2, 6), torch.full((2, 1), 0.1))
    with torch.no_grad():
        frozen, expected = head.frozen(torch.float32), head(*codes)
        ours = frozen(codes[0], frozen.encode(codes[1]), codes[2].solved())
    for field in dataclasses.fields(expected):
        torch.testing.assert_close(getattr(ours, field.name), getattr(expected, field.name), rtol=1e-6, atol=1e-6, msg=field.name)
    assert not any(value.requires_grad for value in vars(ours).values())


def test_half_precision_moves_points_by_hundredths_of_a_pixel(avatar):
    torch.manual_seed(0)
    codes = torch.rand(4, EXPRESSIONS) * 2.0 - 1.0, 0.2 * torch.randn(4, 6), HeadPose(torch.zeros(4, 6), torch.ones(4, 1))
    with torch.no_grad():
        exact = avatar.head(*codes)
        errors = {}
        for dtype in (torch.float16, torch.bfloat16):
            frozen = avatar.head.frozen(dtype)
            cloud = frozen(codes[0], frozen.encode(codes[1]), codes[2])
            errors[dtype] = PIXELS_PER_UNIT * float((cloud.means - exact.means).norm(dim=-1).square().mean().sqrt())
    assert float((exact.means - avatar.head.xyz).detach().norm(dim=-1).mean()) > 0.01  # it moves
    assert errors[torch.float16] < 0.05 < errors[torch.bfloat16]


def test_on_the_cpu_it_is_the_avatar_to_the_bit(avatar, driver):
    renderer, coarse = AvatarRenderer(avatar, SIZE, SIZE), AvatarRenderer(avatar, SIZE, SIZE, coarse_only=True)
    with torch.no_grad():
        for index in range(2):
            expected = drawn(avatar, driver[index])
            assert torch.equal(renderer(driver[index]).image, expected.image)
            assert torch.allclose(coarse(driver[index]).image, expected.coarse.features[:, RGB], atol=1e-6)
    assert (renderer.width, coarse.width) == (SIZE, SIZE // 4)


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_blending_is_as_exact_as_what_was_asked_for(avatar, driver, precision, monkeypatch):
    """On a CPU everything is exact; there the choice is only looked at."""
    asked = []

    def noted(*scene, options):
        asked.append(options.precision)
        return rasterize(*scene, options=options)

    monkeypatch.setattr(avatars, "rasterize", noted)
    frame = driver[0]
    set_precision(avatar, precision)
    avatar(frame.expression, frame.pose_code, frame.head, frame.camera)
    set_precision(avatar, "highest")
    assert asked == [precision]
    assert AvatarRenderer(avatar, SIZE, SIZE, precision).options.precision == "highest"


def test_another_size_is_refused(avatar, driver):
    with pytest.raises(ValueError, match="64 x 64 pixels; the renderer was made for"):
        AvatarRenderer(avatar, 128, 128)(driver[0])
