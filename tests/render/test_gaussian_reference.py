"""The reference rasterizer against a dense loop over Gaussians in depth order, and laws that any backend must obey."""

import dataclasses
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at
from lib.render.gaussian import interface, reference
from lib.render.gaussian.interface import rasterize

FIELDS = ("means", "quats_wxyz", "scales", "opacities", "features")


def make_camera(width=21, height=13, focal=16.0, batch=2, principal=(0.8, -0.6)):
    """Cameras around the origin at a distance of 3 to 4; the principal point is off the centre by `principal` pixels."""
    centre = torch.tensor([[0.3, 0.2, 3.5], [-2.2, 0.9, 2.4]], dtype=torch.float64)[:batch]
    intrinsics = torch.zeros(batch, 3, 3, dtype=torch.float64)
    for b in range(batch):
        intrinsics[b] = torch.tensor([
            [focal * (1 + 0.2 * b), 0.0, 0.5 * width + principal[0]], [0.0, focal * (1.1 - 0.2 * b), 0.5 * height + principal[1]], [0.0, 0.0, 1.0],
        ])
    return Camera(look_at(centre, 0.1 * centre.flip(1)), intrinsics, width, height)


def scattered(channels, batch=2, count=50, seed=0):
    """Many sizes and shapes around the origin; some outside of the picture, near or behind the cameras."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = normal(batch, count, 3)
    means[:, ::7] *= 3.0
    return GaussianCloud(
        means=means, quats_wxyz=torch.nn.functional.normalize(normal(batch, count, 4), dim=-1), scales=(0.7 * normal(batch, count, 3) - 2.3).exp(),
        opacities=torch.sigmoid(2.0 * normal(batch, count)), features=normal(batch, count, channels),
    )


def stacked(channels, batch=2, count=40, seed=1):
    """Large and nearly opaque Gaussians behind each other: most pixels stop after a few."""
    cloud = scattered(channels, batch, count, seed)
    generator = torch.Generator().manual_seed(seed)
    return dataclasses.replace(
        cloud, means=0.5 * cloud.means, scales=cloud.scales + 0.3,
        opacities=0.9 + 0.1 * torch.rand(batch, count, generator=generator, dtype=torch.float64),
    )


def tied(channels, batch=2, count=30, seed=2):
    """Pairs at exactly equal depth: the one with the lower index is in front."""
    cloud = stacked(channels, batch, count, seed)
    means = cloud.means.clone()
    means[:, count // 2:] = means[:, :count // 2]
    return dataclasses.replace(cloud, means=means)


SCENES = {"scattered": scattered, "stacked": stacked, "tied": tied}


def single(cloud, camera):
    return (
        GaussianCloud(**{name: getattr(cloud, name).float() for name in FIELDS}),
        Camera(camera.world_to_camera.float(), camera.intrinsics.float(), camera.width, camera.height),
    )


def double(cloud, camera):
    return (
        GaussianCloud(**{name: getattr(cloud, name).double() for name in FIELDS}),
        Camera(camera.world_to_camera.double(), camera.intrinsics.double(), camera.width, camera.height),
    )


def rotation_matrix(quat):
    w, x, y, z = quat.unbind()
    return torch.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]).reshape(3, 3)


def dense(cloud, camera, background):
    """Section 4 of the rasterizer specification with half-integer pixel centres, every Gaussian at every pixel; (features, alpha, stopped)."""
    width, height = camera.width, camera.height
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5, indexing="ij")
    pictures, alphas, stops = [], [], []
    for b in range(len(cloud.means)):
        view, shift, k = camera.world_to_camera[b, :, :3], camera.world_to_camera[b, :, 3], camera.intrinsics[b]
        fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
        points = [view @ mean + shift for mean in cloud.means[b]]
        colour = torch.zeros(cloud.features.shape[-1], height, width, dtype=torch.float64)
        transmittance, done = torch.ones(height, width, dtype=torch.float64), torch.zeros(height, width, dtype=torch.bool)
        for n in sorted(range(len(points)), key=lambda n: points[n][2].item()):  # stable: ties in index order
            px, py, pz = points[n]
            if pz.item() <= 0.2:
                continue
            # The Jacobian is evaluated at most 0.3 half pictures beyond the border.
            tx = (px / pz).clamp(float((-0.15 * width - cx) / fx), float((1.15 * width - cx) / fx))
            ty = (py / pz).clamp(float((-0.15 * height - cy) / fy), float((1.15 * height - cy) / fy))
            zero = torch.zeros((), dtype=torch.float64)
            jacobian = torch.stack([fx / pz, zero, -fx * tx / pz, zero, fy / pz, -fy * ty / pz]).reshape(2, 3)
            turn = rotation_matrix(cloud.quats_wxyz[b, n])
            covariance = turn @ torch.diag(cloud.scales[b, n] ** 2) @ turn.T
            inverse = torch.linalg.inv(jacobian @ view @ covariance @ view.T @ jacobian.T + 0.3 * torch.eye(2, dtype=torch.float64))
            dx, dy = x - (fx * px / pz + cx), y - (fy * py / pz + cy)
            power = -0.5 * (inverse[0, 0] * dx * dx + (inverse[0, 1] + inverse[1, 0]) * dx * dy + inverse[1, 1] * dy * dy)
            alpha = (cloud.opacities[b, n] * power.exp()).clamp(max=0.99)
            skip = alpha < 1 / 255
            after = transmittance * (1 - alpha)
            done = done | (~skip & (after < 1e-4))
            draw = ~skip & ~done
            colour = colour + torch.where(draw, alpha * transmittance, zero) * cloud.features[b, n][:, None, None]
            transmittance = torch.where(draw, after, transmittance)
        pictures.append(colour + transmittance * background[:, None, None])
        alphas.append((1 - transmittance)[None])
        stops.append(done)
    return torch.stack(pictures), torch.stack(alphas), torch.stack(stops)


def leaves(cloud, camera):
    """The same scene with gradients."""
    cloud = GaussianCloud(**{name: getattr(cloud, name).detach().clone().requires_grad_() for name in FIELDS})
    return cloud, dataclasses.replace(camera, world_to_camera=camera.world_to_camera.clone().requires_grad_())


def gradients(cloud, camera, features, alpha, seed=5):
    """Of a random linear function of the picture; for quaternions along the unit sphere, where all formulas of R agree."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(features.shape, generator=generator, dtype=features.dtype)
    weight_alpha = torch.randn(alpha.shape, generator=generator, dtype=features.dtype)
    total = (features * weight).sum() + (alpha * weight_alpha).sum()
    means, quats, *others = torch.autograd.grad(total, [*(getattr(cloud, name) for name in FIELDS), camera.world_to_camera])
    unit = cloud.quats_wxyz.detach()
    return means, quats - (quats * unit).sum(dim=-1, keepdim=True) * unit, *others


def draw_with_gradients(cloud, camera, background):
    cloud, camera = leaves(cloud, camera)
    image = rasterize(cloud, camera, background)
    return [image.features, image.alpha, *gradients(cloud, camera, image.features, image.alpha)]


def some_background(channels):
    return torch.linspace(-0.5, 1.5, channels, dtype=torch.float64)


def assert_all_close(actual, expected, **tolerance):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("channels", [1, 3, 32, 37])
@pytest.mark.parametrize("scene", SCENES)
def test_picture_is_dense_loop(scene, channels):
    cloud, camera, background = SCENES[scene](channels), make_camera(), some_background(channels)
    image = rasterize(cloud, camera, background)
    features, alpha, stopped = dense(cloud, camera, background)
    torch.testing.assert_close(image.features, features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(image.alpha, alpha, rtol=1e-9, atol=1e-9)
    if scene != "scattered":
        assert stopped.float().mean() > 0.1
    assert not torch.allclose(features[0], features[1], atol=0.01)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 8), (16, 24), (33, 7), (9, 17)])
def test_any_size_is_dense_loop(width, height):
    cloud, camera, background = scattered(3, seed=6), make_camera(width, height), some_background(3)
    image = rasterize(cloud, camera, background)
    assert image.features.shape == (2, 3, height, width)
    assert image.alpha.shape == (2, 1, height, width)
    features, alpha, _ = dense(cloud, camera, background)
    torch.testing.assert_close(image.features, features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(image.alpha, alpha, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("principal", [(-9.0, 4.0), (14.0, -11.0)])
def test_far_off_centre_principal_point_is_dense_loop(principal):
    cloud, camera, background = scattered(3, seed=7), make_camera(principal=principal), some_background(3)
    image = rasterize(cloud, camera, background)
    assert image.alpha.max() > 0.1
    torch.testing.assert_close(image.features, dense(cloud, camera, background)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scene", SCENES)
def test_gradients_are_those_of_dense_loop(scene):
    cloud, camera = leaves(SCENES[scene](3, count=24), make_camera(14, 11))
    background = some_background(3)
    image = rasterize(cloud, camera, background)
    ours = gradients(cloud, camera, image.features, image.alpha)
    features, alpha, _ = dense(cloud, camera, background)
    oracle = gradients(cloud, camera, features, alpha)
    assert all(value.abs().max() > 1e-3 for value in oracle)
    assert_all_close(ours, oracle, rtol=1e-7, atol=1e-8)


def test_gradients_are_finite_differences():
    cloud, camera = scattered(2, batch=1, count=4, seed=3), make_camera(7, 5, focal=5.0, batch=1)
    cloud = dataclasses.replace(cloud, means=0.4 * cloud.means, scales=cloud.scales + 0.2, opacities=0.3 + 0.5 * cloud.opacities)
    cloud, camera = leaves(cloud, camera)
    background = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)

    def draw(means, quats, scales, opacities, features, world_to_camera, background):
        unit = GaussianCloud(means, torch.nn.functional.normalize(quats, dim=-1), scales, opacities, features)
        image = rasterize(unit, dataclasses.replace(camera, world_to_camera=world_to_camera), background)
        return image.features, image.alpha

    assert torch.autograd.gradcheck(draw, (*(getattr(cloud, name) for name in FIELDS), camera.world_to_camera, background))


def on_axis(opacities, sigmas, depths, width=9, height=7):
    """Isotropic Gaussians on the optical axis through the centre of pixel (4, 3), focal length 10."""
    count = len(opacities)
    means = torch.zeros(1, count, 3, dtype=torch.float64)
    means[0, :, 2] = torch.tensor(depths, dtype=torch.float64)
    quats = torch.zeros(1, count, 4, dtype=torch.float64)
    quats[..., 0] = 1.0
    cloud = GaussianCloud(
        means, quats, torch.tensor(sigmas, dtype=torch.float64)[None, :, None].expand(1, count, 3).clone(),
        torch.tensor([opacities], dtype=torch.float64), torch.arange(1.0, count + 1, dtype=torch.float64)[None, :, None],
    )
    intrinsics = torch.tensor([[[10.0, 0.0, 4.5], [0.0, 10.0, 3.5], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    return cloud, Camera(torch.eye(3, 4, dtype=torch.float64)[None], intrinsics, width, height)


BLACK = torch.zeros(1, dtype=torch.float64)


def test_one_gaussian_has_closed_form():
    cloud, camera = on_axis([0.8], [0.2], [2.0])
    alpha = rasterize(cloud, camera, BLACK).alpha[0, 0]
    variance = (10.0 * 0.2 / 2.0) ** 2 + 0.3  # on the axis the Jacobian is focal / depth; low-pass 0.3 px²
    for i in range(7):
        for j in range(9):
            value = 0.8 * math.exp(-0.5 * ((j - 4) ** 2 + (i - 3) ** 2) / variance)
            assert float(alpha[i, j]) == pytest.approx(value if value >= 1 / 255 else 0.0)
    assert (alpha == 0).any()


def test_alpha_is_clamped():
    cloud, camera = on_axis([1.0], [1.0], [2.0])
    assert float(rasterize(cloud, camera, BLACK).alpha.max()) == pytest.approx(0.99)


@pytest.mark.parametrize(("opacities", "expected"), [
    ([0.99, 0.98, 0.49], 0.99 + 0.01 * 0.98 + 0.01 * 0.02 * 0.49),  # 1.02e-4 is left
    ([0.99, 0.98, 0.51, 0.3], 0.99 + 0.01 * 0.98),  # the third would leave 9.8e-5: dropped, and the fourth with it
    ([0.99, 0.9, 0.95, 0.1], 0.99 + 0.01 * 0.9),
])
def test_pixel_stops_before_transmittance_falls_below_1e_4(opacities, expected):
    count = len(opacities)
    cloud, camera = on_axis(opacities, [1.0] * count, [2.0 + 0.1 * k for k in range(count)])
    assert float(rasterize(cloud, camera, BLACK).alpha[0, 0, 3, 4]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("depth", "drawn"), [(0.19, False), (0.2, False), (0.21, True), (-1.0, False)])
def test_near_plane_is_at_0_2(depth, drawn):
    cloud, camera = on_axis([0.5], [0.01], [depth])
    assert bool((rasterize(cloud, camera, BLACK).alpha > 0).any()) == drawn


def test_order_is_depth_not_index():
    cloud, camera = on_axis([0.9, 0.9], [1.0, 1.0], [3.0, 2.0])
    front = 0.9 * 2.0 + 0.1 * 0.9 * 1.0  # features are 1 and 2; the second is nearer
    assert float(rasterize(cloud, camera, BLACK).features[0, 0, 3, 4]) == pytest.approx(front)


def test_permuting_gaussians_changes_nothing():
    cloud, camera, background = stacked(3), make_camera(), some_background(3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = GaussianCloud(**{name: getattr(cloud, name)[:, order] for name in FIELDS})
    plain, mixed = draw_with_gradients(cloud, camera, background), draw_with_gradients(shuffled, camera, background)
    expected = plain[:2] + [value[:, order] for value in plain[2:-1]] + plain[-1:]
    assert_all_close(mixed, expected, rtol=1e-9, atol=1e-9)


def test_batch_is_each_camera_alone():
    cloud, camera, background = scattered(3), make_camera(), some_background(3)
    whole = rasterize(cloud, camera, background)
    for b in range(2):
        alone = GaussianCloud(**{name: getattr(cloud, name)[b:b + 1] for name in FIELDS})
        one = rasterize(alone, Camera(camera.world_to_camera[b:b + 1], camera.intrinsics[b:b + 1], camera.width, camera.height), background)
        torch.testing.assert_close(one.features, whole.features[b:b + 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.alpha, whole.alpha[b:b + 1], rtol=1e-12, atol=1e-12)


def test_rigid_motion_of_cloud_and_camera_changes_nothing():
    cloud, camera, background = scattered(3), make_camera(), some_background(3)
    motion = Rotation.from_rotvec([0.9, -1.7, 0.4])
    turn, shift = torch.from_numpy(motion.as_matrix()), torch.tensor([3.0, -2.0, 0.7], dtype=torch.float64)
    quats = [(motion * Rotation.from_quat(q.numpy(), scalar_first=True)).as_quat(scalar_first=True) for q in cloud.quats_wxyz.reshape(-1, 4)]
    moved = dataclasses.replace(
        cloud, means=cloud.means @ turn.T + shift, quats_wxyz=torch.stack([torch.from_numpy(q) for q in quats]).reshape(cloud.quats_wxyz.shape),
    )
    view = camera.world_to_camera[..., :3] @ turn.T
    extrinsic = torch.cat([view, camera.world_to_camera[..., 3:] - (view @ shift)[..., None]], dim=-1)
    image, other = rasterize(cloud, camera, background), rasterize(moved, dataclasses.replace(camera, world_to_camera=extrinsic), background)
    torch.testing.assert_close(other.features, image.features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.alpha, image.alpha, rtol=1e-9, atol=1e-9)


def test_moving_principal_point_moves_picture():
    cloud, camera, background = scattered(3, count=30), make_camera(40, 30, principal=(0.0, 0.0)), some_background(3)
    cloud = dataclasses.replace(cloud, means=0.4 * torch.tanh(cloud.means))  # well inside both pictures
    still, part = rasterize(cloud, camera, background), rasterize(cloud, camera.cropped(9, 6, 27, 19), background)
    torch.testing.assert_close(part.features, still.features[:, :, 6:25, 9:36], rtol=1e-9, atol=1e-9)
    assert part.alpha.max() > 0.3


def check_background(cloud, camera):
    background = some_background(3)
    cloud, camera = leaves(cloud, camera)
    image = rasterize(cloud, camera, background)
    assert torch.equal(image.alpha, torch.zeros_like(image.alpha))
    assert torch.equal(image.features, background[:, None, None].expand_as(image.features))
    return cloud, camera, image


def test_transparent_cloud_shows_background():
    cloud, camera = scattered(3), make_camera()
    for opacity in (0.0, 0.0039):  # 1/255 = 0.00392
        check_background(dataclasses.replace(cloud, opacities=torch.full_like(cloud.opacities, opacity)), camera)


def test_empty_view_shows_background():
    cloud, camera = scattered(3), make_camera()
    aside = camera.world_to_camera[:, 0, :3]  # the right-hand axis of each camera
    check_background(dataclasses.replace(cloud, means=0.01 * cloud.means + 40.0 * aside[:, None]), camera)


def test_no_gaussians_show_background():
    check_background(GaussianCloud(**{name: getattr(scattered(3), name)[:, :0] for name in FIELDS}), make_camera())


def test_gaussians_behind_camera_are_ignored_without_nan():
    cloud, camera, background = scattered(3, count=20), make_camera(), some_background(3)
    cloud = dataclasses.replace(cloud, means=0.4 * cloud.means)
    eye = -(camera.world_to_camera[..., :3].transpose(1, 2) @ camera.world_to_camera[..., 3:])[..., 0]  # (2, 3)
    forward = camera.world_to_camera[:, 2, :3]
    hidden = torch.stack([eye, eye - forward, eye + 0.199 * forward, eye + camera.world_to_camera[:, 0, :3], eye - 1e6 * forward], dim=1)
    extra = {name: getattr(cloud, name)[:, :5] for name in FIELDS} | {"means": hidden}
    both = GaussianCloud(**{name: torch.cat([extra[name], getattr(cloud, name)], dim=1) for name in FIELDS})
    plain, more = draw_with_gradients(cloud, camera, background), draw_with_gradients(both, camera, background)
    assert all(torch.isfinite(value).all() for value in more)
    assert all(torch.equal(value[:, :5], torch.zeros_like(value[:, :5])) for value in more[2:-1])
    assert_all_close(more, plain[:2] + [torch.cat([torch.zeros_like(v[:, :5]), v], dim=1) for v in plain[2:-1]] + plain[-1:], rtol=1e-9, atol=1e-9)


def test_only_hidden_gaussians_have_zero_gradients():
    cloud, camera = scattered(3), make_camera()
    cloud, camera, image = check_background(dataclasses.replace(cloud, opacities=torch.zeros_like(cloud.opacities)), camera)
    if image.features.requires_grad:
        for value in torch.autograd.grad(image.features.sum(), [getattr(cloud, name) for name in FIELDS], allow_unused=True):
            assert value is None or torch.equal(value, torch.zeros_like(value))


def test_extra_channels_do_not_change_first_ones():
    cloud, camera, background = stacked(37), make_camera(), some_background(37)
    many = rasterize(cloud, camera, background)
    few = rasterize(dataclasses.replace(cloud, features=cloud.features[..., :3]), camera, background[:3])
    torch.testing.assert_close(few.features, many.features[:, :3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(few.alpha, many.alpha, rtol=1e-12, atol=1e-12)


def test_features_may_be_any_number():
    # The picture is linear in features and background: nothing is clamped.
    cloud, camera, background = scattered(3), make_camera(), some_background(3)
    one = rasterize(cloud, camera, background).features
    scaled = rasterize(dataclasses.replace(cloud, features=-50.0 * cloud.features), camera, -50.0 * background).features
    torch.testing.assert_close(scaled, -50.0 * one, rtol=1e-9, atol=1e-9)
    assert scaled.min() < 0
    assert scaled.max() > 1


def test_constant_feature_and_background_give_constant_picture():
    cloud, camera = stacked(2), make_camera()
    constant = torch.tensor([0.25, -3.0], dtype=torch.float64)
    image = rasterize(dataclasses.replace(cloud, features=constant.expand_as(cloud.features)), camera, constant)
    torch.testing.assert_close(image.features, constant[:, None, None].expand_as(image.features))


def test_recomputing_changes_nothing(monkeypatch):
    cloud, camera, background = stacked(3), make_camera(), some_background(3)
    kept = draw_with_gradients(cloud, camera, background)
    calls, original = [], reference.checkpoint
    monkeypatch.setattr(reference, "checkpoint", lambda *arguments, **options: calls.append(1) or original(*arguments, **options))
    monkeypatch.setattr(reference, "KEEP_VALUES", 0)
    again = draw_with_gradients(cloud, camera, background)
    assert calls
    assert_all_close(again, kept, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 5000])
@pytest.mark.parametrize("scene", SCENES)
def test_chunking_changes_nothing(monkeypatch, scene, limit):
    cloud, camera, background = SCENES[scene](3), make_camera(), some_background(3)
    calls, original = [], reference._blend
    monkeypatch.setattr(reference, "_blend", lambda *arguments: calls.append(1) or original(*arguments))
    whole = draw_with_gradients(cloud, camera, background)
    before = len(calls)
    monkeypatch.setattr(reference, "CHUNK_VALUES", limit)
    parts = draw_with_gradients(cloud, camera, background)
    assert len(calls) - before > before
    assert_all_close(parts, whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("tile", [1, 4, 16])
@pytest.mark.parametrize("scene", SCENES)
def test_tile_size_changes_nothing(monkeypatch, scene, tile):
    cloud, camera, background = SCENES[scene](3), make_camera(27, 19), some_background(3)
    usual = draw_with_gradients(cloud, camera, background)
    monkeypatch.setattr(reference, "TILE", tile)
    assert_all_close(draw_with_gradients(cloud, camera, background), usual, rtol=1e-9, atol=1e-9)


def test_float32_agrees_with_float64():
    cloud, camera, background = scattered(3), make_camera(), some_background(3)
    exact = rasterize(cloud, camera, background)
    single = GaussianCloud(**{name: getattr(cloud, name).float() for name in FIELDS})
    image = rasterize(single, Camera(camera.world_to_camera.float(), camera.intrinsics.float(), camera.width, camera.height), background.float())
    assert image.features.dtype == torch.float32
    assert (image.features.double() - exact.features).abs().mean() < 1e-5
    assert (image.features.double() - exact.features).abs().max() < 0.05  # a threshold may fall on the other side


def test_unknown_backend_is_input_error_with_known_ones():
    with pytest.raises(InputError, match="cuda3000") as error:
        rasterize(scattered(1), make_camera(), some_background(1), backend="cuda3000")
    for name in ("auto", *interface.BACKENDS):
        assert name in str(error.value)
    assert "reference" in str(error.value)


def test_named_reference_is_reference():
    cloud, camera, background = scattered(3), make_camera(), some_background(3)
    direct = reference.rasterize(cloud, camera, background)
    image = rasterize(cloud, camera, background, backend="reference")
    assert torch.equal(image.features, direct.features)
    assert torch.equal(image.alpha, direct.alpha)
