"""Laws of drawing, with the reference: any number of Gaussians, cameras and channels, any size of picture, however odd the Gaussians are."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian.contract import FeatureImage
from lib.render.gaussian.interface import rasterize

faults = settings.get_profile("faults")
ODD_SCALES = (0.0, 1e-20, 1e-6, 1e-3, 0.05, 1.0, 1e3)
ODD_OPACITIES = (0.0, 1e-30, 1 / 255, 0.5, 0.99, 1.0)
ODD_DEPTHS = (-1.5, -1.0, 0.0, 0.19, 1.0, 100.0)  # of the means in front of a camera at distance 1: behind it, at it, nearer than the culling


@st.composite
def scenes(draw) -> tuple[GaussianCloud, Camera, torch.Tensor]:
    """Clouds and cameras that fit together."""
    number, channels, batch = draw(st.sampled_from([0, 1, 2, 5, 40])), draw(st.sampled_from([1, 3, 4, 33])), draw(st.integers(1, 3))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    clouds = batch if draw(st.booleans()) else 1

    def odd(values: tuple[float, ...], *shape: int) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(len(values), shape, generator=rng)]

    means = 0.4 * torch.randn(clouds, number, 3, generator=rng)
    scales, opacities = 0.1 * torch.rand(clouds, number, 3, generator=rng), torch.rand(clouds, number, generator=rng)
    if draw(st.booleans()):
        scales = odd(ODD_SCALES, clouds, number, 3)
    if draw(st.booleans()):
        opacities = odd(ODD_OPACITIES, clouds, number)
    if draw(st.booleans()):
        means[..., 2] = odd(ODD_DEPTHS, clouds, number)
    quats = torch.nn.functional.normalize(torch.randn(clouds, number, 4, generator=rng), dim=-1)
    cloud = GaussianCloud(means, quats, scales, opacities, torch.randn(clouds, number, channels, generator=rng))
    focal = draw(st.sampled_from([0.5, 2.0, 50.0])) * width
    intrinsics = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]).repeat(batch, 1, 1)
    world_to_camera = torch.cat([torch.eye(3), torch.tensor([[0.0], [0.0], [1.0]])], dim=1).repeat(batch, 1, 1)
    return cloud, Camera(world_to_camera, intrinsics, width, height), torch.rand(channels, generator=rng)


def drawn(cloud: GaussianCloud, camera: Camera, background: torch.Tensor) -> FeatureImage:
    return rasterize(cloud, camera, background, backend="reference")


@faults
@given(scene=scenes())
def test_pictures_have_the_right_shape_and_are_finite(scene):
    cloud, camera, background = scene
    image = drawn(*scene)
    batch, channels = len(camera.intrinsics), len(background)
    assert image.features.shape == (batch, channels, camera.height, camera.width) and image.alpha.shape == (batch, 1, camera.height, camera.width)
    assert image.radii.shape == (batch, cloud.means.shape[1]) and int(image.radii.min() if image.radii.numel() else 0) >= 0
    assert bool(torch.isfinite(image.features).all()) and bool(((image.alpha >= 0) & (image.alpha <= 1)).all())
    seen = torch.cat([cloud.features.flatten(0, 1), background[None]])  # a pixel is a mean of what is there
    low, high = (limit[None, :, None, None] for limit in (seen.amin(dim=0), seen.amax(dim=0)))
    assert bool(((image.features >= low - 1e-4) & (image.features <= high + 1e-4)).all())


@faults
@given(scene=scenes(), seed=st.integers(0, 99))
def test_the_order_of_gaussians_does_not_matter(scene, seed):
    cloud, camera, background = scene
    depths = camera.to_camera(cloud.means.expand(len(camera.intrinsics), -1, -1))[..., 2]
    if any(len(row.unique()) < len(row) for row in depths):  # equally near ones are drawn in their order
        apart = torch.randperm(cloud.means.shape[1], generator=torch.Generator().manual_seed(seed))[:, None] * torch.tensor([0.0, 0.0, 1e-4])
        cloud = dataclasses.replace(cloud, means=cloud.means + apart)
    order = torch.randperm(cloud.means.shape[1], generator=torch.Generator().manual_seed(seed))
    shuffled = GaussianCloud(*(getattr(cloud, field.name)[:, order] for field in dataclasses.fields(cloud)))
    one, other = drawn(cloud, camera, background), drawn(shuffled, camera, background)
    assert torch.allclose(one.features, other.features, atol=1e-5) and torch.allclose(one.alpha, other.alpha, atol=1e-5)
    assert torch.equal(one.radii[:, order], other.radii)


@faults
@given(scene=scenes())
def test_gradients_are_finite(scene):
    cloud, camera, background = scene
    tensors = [getattr(cloud, field.name).requires_grad_() for field in dataclasses.fields(cloud)]
    image = drawn(GaussianCloud(*tensors), camera, background)
    loss = image.features.square().sum() + image.alpha.sum()
    if not loss.requires_grad:
        return  # nothing is there to be drawn
    for field, gradient in zip(dataclasses.fields(cloud), torch.autograd.grad(loss, tensors, allow_unused=True), strict=True):
        assert gradient is None or bool(torch.isfinite(gradient).all()), field.name


@faults
@given(scene=scenes(), how=st.sampled_from(["transparent", "behind", "aside"]))
def test_what_cannot_be_seen_shows_the_background_and_learns_nothing(scene, how):
    cloud, camera, background = scene
    if how == "transparent":
        cloud = dataclasses.replace(cloud, opacities=cloud.opacities * 0)
    else:
        shift = torch.tensor([0.0, 0.0, -1e5] if how == "behind" else [1e7, 0.0, 0.0])
        cloud = dataclasses.replace(cloud, means=cloud.means + shift, scales=cloud.scales.clamp(max=1.0))
    means = cloud.means.clone().requires_grad_()
    image = drawn(dataclasses.replace(cloud, means=means), camera, background)
    assert torch.equal(image.features, background[None, :, None, None].expand_as(image.features)) and not bool(image.alpha.any())
    assert not bool(image.radii.any())
    if image.features.requires_grad:
        image.features.sum().backward()
        assert means.grad is None or not bool(means.grad.any())
