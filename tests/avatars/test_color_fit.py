"""Where super-resolution is an affine map of features, the fit finds that map; cameras go with the head."""

import copy
import dataclasses
import math

import pytest
import torch

from benchmarks.reenact import make_avatar
from lib.avatars.gaussian_head_avatar.avatar import GaussianAvatar
from lib.avatars.gaussian_head_avatar.color_fit import CHECKED, FITTED, ColorMap, draw, fit_colors, look_at_head, quarter
from lib.avatars.gaussian_head_avatar.splat_export import splats_of, write_splats
from lib.datasets.driving import DrivingFrame, front_camera
from lib.errors import InputError
from lib.geometry.head_pose import HeadPose
from lib.metrics.psnr import psnr
from lib.networks.upsampler import SCALE

SIZE, CHANNELS = 64, 32
POSE = torch.tensor([[0.3, -0.5, 0.2, 0.1, -0.2, 0.4]])


class AffineUpsampler(torch.nn.Module):
    """Enlarges matrix · features + offset, where 1 in every channel, the background, is white."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.matrix = 2.0 * torch.rand(3, CHANNELS) / CHANNELS  # colours of this head are then between 0 and 1
        self.offset = 1.0 - self.matrix.sum(dim=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        color = torch.einsum("oc,bchw->bohw", self.matrix, features) + self.offset[:, None, None]
        return color.repeat_interleave(SCALE, dim=-1).repeat_interleave(SCALE, dim=-2)


@pytest.fixture(scope="module")
def avatar() -> GaussianAvatar:
    made = make_avatar(1500)
    made.upsampler = AffineUpsampler()
    return made


def a_frame(pose: torch.Tensor = POSE, scale: float = 0.1) -> DrivingFrame:
    torch.manual_seed(2)
    return DrivingFrame(0.5 * torch.randn(1, 64), torch.zeros(1, 6), HeadPose(pose, torch.tensor([[scale]])), front_camera(SIZE))


def test_an_affine_super_resolution_is_found(avatar):
    frame = a_frame()
    found, residual = fit_colors(avatar, [frame], SIZE)
    assert residual < 1e-3
    assert found.matrix.shape == (3, CHANNELS) and found.offset.shape == (3,)
    with torch.no_grad():
        features = avatar.head(frame.expression, frame.pose_code, frame.head).features
    expected = (features @ avatar.upsampler.matrix.T + avatar.upsampler.offset).clamp(0.0, 1.0)
    assert float(expected.std(dim=1).min()) > 0.05 and float(expected.min()) > 0.0 and float(expected.max()) < 1.0
    torch.testing.assert_close(found(features), expected, rtol=0.0, atol=1e-3)


def test_the_residual_is_what_the_map_leaves(avatar):
    """Against pixels blended one by one, of a super-resolution that is not affine."""
    curved = copy.deepcopy(avatar)
    affine = curved.upsampler.forward
    curved.upsampler.forward = lambda features: affine(features) ** 3
    frame = a_frame()
    colors, residual = fit_colors(curved, [frame], SIZE)
    squares, weights = 0.0, 0.0
    with torch.no_grad():
        for direction in FITTED:
            drawn = draw(curved, frame, direction, SIZE)
            alpha = drawn.coarse.alpha.double()
            blended = drawn.coarse.features.double() - (1.0 - alpha)
            mapped = torch.einsum("oc,bchw->bohw", colors.matrix.double(), blended) + colors.offset.double()[:, None, None] * alpha + (1.0 - alpha)
            squares += float((alpha * (mapped - quarter(drawn.image).double()).square()).sum())
            weights += 3.0 * float(alpha.sum())
    assert residual == pytest.approx(math.sqrt(squares / weights), rel=1e-3) and residual > 0.01


def test_the_files_come_as_close_as_the_map_lets_them(avatar, tmp_path):
    score = write_splats(avatar, [a_frame()], [tmp_path / "a.ply"], [[]], SIZE, 0.3, tmp_path / "a.png")
    assert score.quarter > 30.0 > 20.0 > score.first_channels  # these have nothing to do with the picture


def test_without_the_low_pass_there_are_holes(avatar, tmp_path):
    scores = [write_splats(avatar, [a_frame()], [tmp_path / "a.ply"], [[]], SIZE, low_pass, tmp_path / "a.png") for low_pass in (0.0, 0.3)]
    assert scores[1].quarter > scores[0].quarter + 10.0


def test_the_low_pass_is_a_variance_along_every_axis(avatar):
    frame, colors = a_frame(), ColorMap(torch.zeros(3, CHANNELS), torch.full((3,), 0.5))
    narrow, wide = (splats_of(avatar, frame, colors, variance) for variance in (0.0, 0.02))
    added = (2.0 * wide.log_scales).exp() - (2.0 * narrow.log_scales).exp()
    torch.testing.assert_close(added, torch.full_like(added, 0.02 * 0.1**2), rtol=1e-3, atol=1e-9)
    assert all(torch.equal(getattr(wide, name), getattr(narrow, name)) for name in ("means", "quats_wxyz", "opacity_logits", "f_dc"))


def test_an_avatar_that_is_nan_or_out_of_sight_is_refused(avatar):
    with pytest.raises(InputError, match=r"nothing of the avatar is seen by cameras that are 0\.012 world units away"):
        fit_colors(avatar, [a_frame(scale=0.001)], SIZE)  # nearer than what the rasterizer draws
    broken = copy.deepcopy(avatar)
    broken.upsampler.offset[1] = math.nan
    with pytest.raises(InputError, match="the avatar renders NaN"):
        fit_colors(broken, [a_frame()], SIZE)


def test_colors_stay_within_what_viewers_show(avatar):
    colors = ColorMap(10.0 * torch.ones(3, CHANNELS), torch.full((3,), -0.2))
    shown = colors(torch.randn(1, 50, CHANNELS))
    assert float(shown.min()) == 0.0 and float(shown.max()) == 1.0


@pytest.mark.parametrize("direction", CHECKED[:2])
def test_cameras_go_with_the_head(avatar, direction):
    pictures = []
    with torch.no_grad():
        for pose, scale in ((torch.zeros(1, 6), 0.1), (POSE, 0.1), (POSE, 0.3)):
            pictures.append(draw(avatar, a_frame(pose, scale), direction, SIZE).image)
    assert float((pictures[0] - 1.0).abs().max()) > 0.1
    for picture in pictures[1:]:
        assert float(psnr(picture, pictures[0])) > 40.0


def test_a_camera_to_the_left_sees_the_left_of_the_head_nearer():
    head = HeadPose(POSE, torch.tensor([[0.1]]))
    ears = head.to_world(torch.tensor([[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]]))
    left, right = look_at_head(head, 30.0, 0.0, SIZE).to_camera(ears)[0, :, 2].tolist()
    assert left < right
    crown = head.to_world(torch.tensor([[[0.0, 1.0, 0.0]]]))
    assert float(look_at_head(head, 0.0, 0.0, SIZE).project(crown)[0, 0, 1]) < SIZE / 2  # upright
    nearer = dataclasses.replace(head, scale=torch.tensor([[0.2]]))
    assert torch.allclose(look_at_head(nearer, 0.0, 0.0, SIZE).project(nearer.to_world(torch.tensor([[[0.0, 0.0, 0.5]]]))), torch.tensor(SIZE / 2))


def test_a_quarter_is_the_mean_of_squares():
    image = torch.arange(2.0 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    assert torch.equal(quarter(image), image.reshape(2, 3, 2, 4, 2, 4).mean(dim=(3, 5)))
