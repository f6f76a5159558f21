"""Adapters of installed rasterizers, on stand-ins that obey the published interfaces of the packages.

gsplat's draws by `reference`. INRIA's is a dense loop of its own from section 4 of the rasterizer specification: it sees the camera only
through the matrices and tangents that it is given, so that an error of the adapter's conversion shows.
"""

import collections
import dataclasses
import importlib.machinery
import math
import sys
import types

import pytest
import torch

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import gsplat, inria, installed, interface, reference
from lib.render.gaussian.contract import RasterOptions
from lib.render.gaussian.interface import rasterize
from lib.render.gaussian.projection import project
from tests.render.test_gaussian_reference import (
    FIELDS,
    SCENES,
    double,
    leaves,
    make_camera,
    on_axis,
    rotation_matrix,
    scattered,
    single,
    some_background,
    stacked,
)

LIMIT = 2e-4  # relative L2: cameras and matrices are rounded to float32
CENTRED = (0.0, 0.0)


def inside(cloud):
    """The same cloud in the middle of the pictures."""
    return dataclasses.replace(cloud, means=0.4 * torch.tanh(cloud.means))


def wide(principal=CENTRED, batch=2):
    return make_camera(40, 27, principal=principal, batch=batch)


def install(monkeypatch, name, **members):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(installed, "device_obstacle", lambda cloud: None)
    inria._compiled_channels.cache_clear()


def checked(value, *shape):
    assert value.shape == shape
    assert value.dtype == torch.float32
    return value.double()


class Gsplat:
    """gsplat.rasterization of 1.5, and of 1.4 with one radius; without batch dimensions, which 1.4 does not have."""

    def __init__(self, axes=True):
        self.axes, self.calls, self.last = axes, 0, None

    def rasterization(
        self, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=0.01, far_plane=1e10, radius_clip=0.0, eps2d=0.3,
        sh_degree=None, packed=True, tile_size=16, backgrounds=None,
    ):
        self.calls += 1
        assert (near_plane, eps2d, radius_clip, packed, sh_degree) == (0.2, 0.3, 0.0, False, None)
        count, cameras, channels = len(means), len(viewmats), colors.shape[-1]
        viewmats, intrinsics = checked(viewmats, cameras, 4, 4), checked(Ks, cameras, 3, 3).detach()
        assert torch.equal(viewmats[:, 3].detach(), torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64).expand(cameras, 4))
        cloud = GaussianCloud(
            checked(means, count, 3)[None], torch.nn.functional.normalize(checked(quats, count, 4), dim=-1)[None], checked(scales, count, 3)[None],
            checked(opacities, count)[None], checked(colors, count, channels)[None],
        )
        parts = []
        for k in range(cameras):
            camera = Camera(viewmats[k:k + 1, :3], intrinsics[k:k + 1], width, height)
            image = reference.rasterize(cloud, camera, torch.zeros(channels, dtype=torch.float64))
            behind = checked(backgrounds, cameras, channels)[k, :, None, None]
            parts.append((image.features + (1 - image.alpha) * behind, image.alpha, project(cloud, camera)))
        conics = torch.stack([part[2].conics for part in parts])
        a, b, c = conics.unbind(dim=-1)
        variances = torch.stack([c, a], dim=-1) / (a * c - b * b)[..., None]
        sigmas = (2 * (opacities.detach().double().clamp(min=1 / 255) * 255).log()).sqrt().clamp(max=3.33)
        radii = torch.ceil(sigmas[None, :, None] * variances.sqrt()).int() if self.axes else torch.ceil(3 * variances.amax(dim=-1).sqrt()).int()
        culled = torch.stack([part[2].extent for part in parts]).prod(dim=-1) == 0
        radii[culled] = 0
        conics = conics.detach().clone()
        conics[culled] = torch.nan
        self.last = torch.cat([part[0] for part in parts]).permute(0, 2, 3, 1).float().contiguous()
        alpha = torch.cat([part[1] for part in parts]).permute(0, 2, 3, 1).float().contiguous()
        return self.last, alpha, {"radii": radii, "conics": conics.float()}


def use_gsplat(monkeypatch, **options):
    stand_in = Gsplat(**options)
    install(monkeypatch, "gsplat", rasterization=stand_in.rasterization)
    return stand_in


class Inria:
    """diff_gaussian_rasterization, compiled for `channels`; `form` is what differs between the published versions."""

    def __init__(self, channels, form):
        self.channels, self.form, self.calls = channels, form, 0

    def draw(self, settings, means, colours, opacities, scales, quats):
        self.calls += 1
        width, height, count = settings.image_width, settings.image_height, len(means)
        assert type(settings.tanfovx) is float
        assert type(settings.tanfovy) is float
        assert (settings.scale_modifier, settings.prefiltered) == (1.0, False)
        assert getattr(settings, "debug", False) is False
        assert getattr(settings, "antialiasing", False) is False
        if count == 0:
            return torch.zeros(self.channels, height, width), torch.zeros(0, dtype=torch.int32)
        background, view, full = (getattr(settings, name).detach() for name in ("bg", "viewmatrix", "projmatrix"))
        view, full = checked(view, 4, 4), checked(full, 4, 4)
        checked(settings.campos, 3)
        if colours.shape[-1] < self.channels or len(background) < self.channels:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        colours, background = checked(colours, *colours.shape)[:, :self.channels], checked(background, *background.shape)[:self.channels]
        homogeneous = torch.cat([checked(means, count, 3), torch.ones(count, 1, dtype=torch.float64)], dim=1)
        points, projected = (homogeneous @ view)[:, :3], homogeneous @ full
        index = (points[:, 2] > 0.2).nonzero()[:, 0]
        index = index[points[index, 2].detach().argsort(stable=True)]
        x, y, z = points[index].unbind(dim=1)
        ndc = projected[index, :2] / (projected[index, 3:] + 1e-7)
        pixels = ((ndc + 1) * torch.tensor([width, height]) - 1) / 2
        fx, fy = width / (2 * settings.tanfovx), height / (2 * settings.tanfovy)
        limit_x, limit_y = 1.3 * settings.tanfovx, 1.3 * settings.tanfovy
        tx, ty = (x / z).clamp(-limit_x, limit_x) * z, (y / z).clamp(-limit_y, limit_y) * z
        zero = torch.zeros_like(z)
        jacobian = torch.stack([torch.stack([fx / z, zero, -fx * tx / z**2], dim=1), torch.stack([zero, fy / z, -fy * ty / z**2], dim=1)], dim=1)
        turns = torch.stack([rotation_matrix(quat) for quat in checked(quats, count, 4)])[index] if len(index) else torch.zeros(0, 3, 3).double()
        spread = jacobian @ view[:3, :3].T @ turns * checked(scales, count, 3)[index, None, :]
        covariance = spread @ spread.transpose(1, 2) + 0.3 * torch.eye(2, dtype=torch.float64)
        inverse, determinant = torch.linalg.inv(covariance), torch.linalg.det(covariance.detach())
        middle = 0.5 * covariance.detach().diagonal(dim1=1, dim2=2).sum(dim=1)
        radius = torch.ceil(3 * (middle + (middle**2 - determinant).clamp(min=0.1).sqrt()).sqrt())
        blocks = torch.tensor([-(-width // 16), -(-height // 16)])
        low = ((pixels.detach() - radius[:, None]) / 16).trunc().clamp(min=0).minimum(blocks)
        high = ((pixels.detach() + radius[:, None] + 15) / 16).trunc().clamp(min=0).minimum(blocks)
        radii = torch.zeros(count, dtype=torch.int32)
        radii[index] = torch.where((high > low).all(dim=1), radius, 0.0).int()
        v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        touched = torch.ones(height, width, len(index), dtype=torch.bool)
        for axis, grid in enumerate((u, v)):
            touched &= (grid[..., None] // 16 >= low[:, axis]) & (grid[..., None] // 16 < high[:, axis])
        dx, dy = pixels[:, 0] - u[..., None], pixels[:, 1] - v[..., None]
        power = -0.5 * (inverse[:, 0, 0] * dx * dx + inverse[:, 1, 1] * dy * dy) - inverse[:, 0, 1] * dx * dy
        alpha = (checked(opacities, count, 1)[index, 0] * power.exp()).clamp(max=0.99)
        alpha = torch.where(touched & (alpha >= 1 / 255), alpha, 0.0)
        after = (1 - alpha).cumprod(dim=-1)
        before = torch.cat([torch.ones(height, width, 1, dtype=torch.float64), after], dim=-1)[..., :-1]
        weight = torch.where(after >= 1e-4, alpha * before, 0.0)
        image = (weight @ colours[index]).permute(2, 0, 1) + (1 - weight.sum(dim=-1)) * background[:, None, None]
        return image.float(), radii


def use_inria(monkeypatch, channels, form="plain"):
    stand_in = Inria(channels, form)
    names = "image_height image_width tanfovx tanfovy bg scale_modifier viewmatrix projmatrix sh_degree campos prefiltered"
    names += {"early": "", "antialiased": " debug antialiasing", "strange": " debug kernel_size"}.get(form, " debug")

    class GaussianRasterizer(torch.nn.Module):
        def __init__(self, raster_settings):
            super().__init__()
            self.raster_settings = raster_settings

        def forward(self, means3D, means2D, opacities, shs=None, colors_precomp=None, scales=None, rotations=None, cov3D_precomp=None):
            assert shs is None
            assert cov3D_precomp is None
            checked(means2D, len(means3D), 3)
            image, radii = stand_in.draw(self.raster_settings, means3D, colors_precomp, opacities, scales, rotations)
            depth = torch.zeros(1, *image.shape[1:])
            others = {"antialiased": (image, radii, depth), "four": (image, radii, depth, depth), "swapped": (image, depth, radii)}
            return others.get(form, (image, radii))

    settings = collections.namedtuple("GaussianRasterizationSettings", names)
    install(monkeypatch, "diff_gaussian_rasterization", GaussianRasterizationSettings=settings, GaussianRasterizer=GaussianRasterizer)
    return stand_in


def along_sphere(gradient, quats):
    return gradient - (gradient * quats).sum(dim=-1, keepdim=True) * quats


def assert_is_reference(backend, cloud, camera, wanted=FIELDS, **options):
    """Picture, alpha and gradients against float64 from the same numbers rounded to float32."""
    results, radii = [], []
    for name, scene in ((backend, single(cloud, camera)), ("reference", double(*single(cloud, camera)))):
        own, where = leaves(*scene)
        where = where if "world_to_camera" in wanted else dataclasses.replace(where, world_to_camera=where.world_to_camera.detach())
        dtype = own.means.dtype
        background = some_background(cloud.features.shape[-1]).to(dtype).requires_grad_("background" in wanted)
        image = rasterize(own, where, background, backend=name, options=RasterOptions(**options) if name == "reference" else interface.DEFAULT)
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(image.features.shape, generator=generator, dtype=torch.float64).to(dtype)
        weight_alpha = torch.randn(image.alpha.shape, generator=generator, dtype=torch.float64).to(dtype)
        inputs = {key: getattr(own, key) for key in FIELDS} | {"world_to_camera": where.world_to_camera, "background": background}
        total = (image.features * weight).sum() + (image.alpha * weight_alpha).sum()
        gradients = dict(zip(wanted, torch.autograd.grad(total, [inputs[key] for key in wanted]), strict=True))
        gradients["quats_wxyz"] = along_sphere(gradients["quats_wxyz"], own.quats_wxyz.detach())
        results.append({"features": image.features.detach(), "alpha": image.alpha.detach()} | {f"d_{key}": value for key, value in gradients.items()})
        radii.append(image.radii)
    for name, exact in results[1].items():
        ours = results[0][name]
        assert ours.shape == exact.shape
        assert ours.dtype == torch.float32
        assert exact.abs().max() > 1e-3
        assert float((ours.double() - exact).norm()) <= LIMIT * float(exact.norm()), name
    assert radii[0].shape == radii[1].shape
    assert radii[0].dtype == torch.int32
    return radii


ALL = (*FIELDS, "world_to_camera", "background")


@pytest.mark.parametrize("axes", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scene", SCENES)
def test_gsplat_is_reference(monkeypatch, scene, batch, axes):
    stand_in = use_gsplat(monkeypatch, axes=axes)
    radii, exact = assert_is_reference("gsplat", SCENES[scene](3, batch), make_camera(batch=batch), ALL)
    assert stand_in.calls == batch
    assert torch.equal(radii == 0, exact == 0)
    assert (radii - exact).abs().max() <= 1
    assert (radii != exact).float().mean() < 0.05


@pytest.mark.parametrize("principal", [(-9.0, 4.0), (14.0, -11.0)])
def test_gsplat_takes_any_principal_point(monkeypatch, principal):
    use_gsplat(monkeypatch)
    assert_is_reference("gsplat", scattered(37, seed=7), make_camera(principal=principal), ALL)


def test_gsplat_draws_one_cloud_by_many_cameras_in_one_call(monkeypatch):
    stand_in = use_gsplat(monkeypatch)
    assert_is_reference("gsplat", scattered(5, batch=1), make_camera(), ALL)
    assert stand_in.calls == 1


def test_gsplat_gives_a_view_of_its_picture(monkeypatch):
    stand_in = use_gsplat(monkeypatch)
    cloud, camera = single(scattered(5, batch=1), make_camera())
    image = rasterize(cloud, camera, some_background(5).float(), backend="gsplat")
    assert image.features.data_ptr() == stand_in.last.data_ptr()
    assert image.features.permute(0, 2, 3, 1).is_contiguous()
    assert image.features.shape == (2, 5, 13, 21)


def test_gsplat_radii_of_thin_gaussians_are_finite():
    # Variances 1e6 and 0.3: in float32 the determinant of the conic is all rounding.
    conics = torch.tensor([[[1.5, 1.5, 1.5], [0.1, 0.0, 0.4], [torch.nan] * 3]])
    radii = gsplat._radii(torch.tensor([[[9, 9], [9, 9], [0, 9]]]), conics)
    assert radii[0, 0] > 3
    assert radii[0, 1:].tolist() == [math.ceil(3 * math.sqrt(10.0)), 0]


@pytest.mark.parametrize("form", ["plain", "early", "antialiased"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scene", SCENES)
def test_inria_is_clipped_reference(monkeypatch, scene, batch, form):
    stand_in = use_inria(monkeypatch, 8, form)
    radii, exact = assert_is_reference("inria", SCENES[scene](3, batch), wide(batch=batch), clip=True)
    assert stand_in.calls == 1 + batch  # a probe, and alpha in a padded channel
    drawn = exact > 0
    assert drawn.any()
    assert torch.equal(radii[drawn], exact[drawn])


def test_clip_matters_in_these_scenes():
    cloud, camera, background = scattered(3), wide(), some_background(3)
    plain, clipped = (rasterize(cloud, camera, background, backend="reference", options=RasterOptions(clip=clip)).alpha for clip in (False, True))
    assert float((plain - clipped).norm()) > 2 * LIMIT * float(plain.norm())


@pytest.mark.parametrize(("channels", "calls"), [(1, 2), (7, 2), (8, 3)])
def test_inria_pads_channels_and_finds_alpha(monkeypatch, channels, calls):
    stand_in = use_inria(monkeypatch, 8)
    assert_is_reference("inria", stacked(channels, batch=1), wide(batch=1), clip=True)
    assert stand_in.calls == calls


@pytest.mark.parametrize("principal", [(5.9, -4.0), (-3.3, 2.2), (0.5, -0.5)])
def test_inria_takes_a_principal_point_off_the_centre(monkeypatch, principal):
    use_inria(monkeypatch, 3)
    assert_is_reference("inria", inside(scattered(2)), wide(principal), clip=True)
    assert_is_reference("inria", inside(scattered(3)), wide(principal), clip=True)


def test_inria_draws_one_cloud_by_many_cameras(monkeypatch):
    use_inria(monkeypatch, 4)
    assert_is_reference("inria", scattered(3, batch=1), wide(), clip=True)


def test_inria_pixel_centres_are_ours(monkeypatch):
    use_inria(monkeypatch, 2)
    cloud, camera = on_axis([0.8], [0.05], [2.0])  # on the centre of pixel (4, 3)
    alpha = rasterize(*single(cloud, camera), torch.zeros(1), backend="inria").alpha[0, 0]
    assert float(alpha[3, 4]) == pytest.approx(0.8, rel=1e-5)
    torch.testing.assert_close(alpha[:, 1:8], alpha[:, 1:8].flip(1), rtol=1e-4, atol=1e-6)


def test_inria_is_probed_once(monkeypatch):
    stand_in = use_inria(monkeypatch, 5)
    cloud, camera = single(scattered(3, batch=1), wide(batch=1))
    for _ in range(3):
        rasterize(cloud, camera, torch.zeros(3), backend="inria")
    assert stand_in.calls == 4


def use(monkeypatch, backend):
    return use_gsplat(monkeypatch) if backend == "gsplat" else use_inria(monkeypatch, 8)


def refusal(backend, cloud, camera, background=None, **options):
    background = torch.zeros(cloud.features.shape[-1]) if background is None else background
    with pytest.raises(InputError) as error:
        rasterize(cloud, camera, background, backend=backend, options=RasterOptions(**options))
    sentence = str(error.value)
    assert f"'{backend}'" in sentence
    return sentence


both = pytest.mark.parametrize("backend", ["gsplat", "inria"])


@both
def test_image_dtype_is_converted(monkeypatch, backend):
    use(monkeypatch, backend)
    cloud, camera = single(scattered(3), wide())
    image = rasterize(cloud, camera, torch.zeros(3), backend=backend, options=RasterOptions(dtype=torch.float16, precision="highest", check=True))
    assert image.features.dtype == torch.float16
    assert image.alpha.dtype == torch.float32


@both
def test_no_gaussians_show_background(monkeypatch, backend):
    stand_in = use(monkeypatch, backend)
    cloud, camera = single(scattered(3), wide())
    background = some_background(3).float()
    image = rasterize(GaussianCloud(**{name: getattr(cloud, name)[:, :0] for name in FIELDS}), camera, background, backend=backend)
    assert stand_in.calls == 0
    assert torch.equal(image.features, background[:, None, None].expand(2, 3, 27, 40))
    assert torch.equal(image.alpha, torch.zeros(2, 1, 27, 40))
    assert image.radii.shape == (2, 0)


@both
def test_empty_view_shows_background(monkeypatch, backend):
    use(monkeypatch, backend)
    cloud, camera = single(scattered(3), wide())
    behind = dataclasses.replace(cloud, means=0.01 * cloud.means - 40.0 * camera.world_to_camera[:, None, 2, :3])
    image = rasterize(behind, camera, some_background(3).float(), backend=backend)
    assert torch.equal(image.features, some_background(3).float()[:, None, None].expand(2, 3, 27, 40))
    assert not image.alpha.any()
    assert not image.radii.any()


@both
def test_absent_package_is_refused(monkeypatch, backend):
    name = {"gsplat": "gsplat", "inria": "diff_gaussian_rasterization"}[backend]
    find = installed.importlib.util.find_spec
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda wanted, *rest: None if wanted == name else find(wanted, *rest))
    sentence = refusal(backend, *single(scattered(3), wide()))
    assert f"the package {name} is not installed; get it from" in sentence
    assert "use another backend" in sentence


@both
def test_other_types_are_refused(monkeypatch, backend):
    use(monkeypatch, backend)
    assert "it computes in float32, not float64; convert" in refusal(backend, scattered(3), wide(), some_background(3))


@both
def test_tensors_on_the_cpu_are_refused(monkeypatch, backend):
    device_obstacle = installed.device_obstacle
    use(monkeypatch, backend)
    monkeypatch.setattr(installed, "device_obstacle", device_obstacle)
    assert "it needs CUDA tensors, not cpu; move" in refusal(backend, *single(scattered(3), wide()))


@both
def test_deterministic_is_refused(monkeypatch, backend):
    use(monkeypatch, backend)
    sentence = refusal(backend, *single(scattered(3), wide()), deterministic=True)
    assert "atomic sums, not deterministic; leave options.deterministic False" in sentence


def test_gsplat_refuses_to_clip(monkeypatch):
    use_gsplat(monkeypatch)
    assert "it does not clip at three standard deviations; leave options.clip False" in refusal("gsplat", *single(scattered(3), wide()), clip=True)


def test_inria_clips_in_any_case(monkeypatch):
    use_inria(monkeypatch, 8)
    cloud, camera = single(scattered(3), wide())
    one, other = (rasterize(cloud, camera, torch.zeros(3), backend="inria", options=RasterOptions(clip=clip)) for clip in (False, True))
    assert torch.equal(one.features, other.features)


def test_gsplat_refuses_no_channels(monkeypatch):
    use_gsplat(monkeypatch)
    assert "at least one channel, found none" in refusal("gsplat", *single(scattered(0), wide()))


@both
def test_intrinsics_with_gradient_are_refused(monkeypatch, backend):
    use(monkeypatch, backend)
    cloud, camera = single(scattered(3), wide())
    camera = dataclasses.replace(camera, intrinsics=camera.intrinsics.requires_grad_())
    assert "it gives no gradient to intrinsics" in refusal(backend, cloud, camera)


def test_inria_refuses_gradients_that_it_does_not_give(monkeypatch):
    use_inria(monkeypatch, 8)
    cloud, camera = single(scattered(3), wide())
    moving = dataclasses.replace(camera, world_to_camera=camera.world_to_camera.clone().requires_grad_())
    background = torch.zeros(3, requires_grad=True)
    assert "it gives no gradient to world_to_camera, which require one; detach" in refusal("inria", cloud, moving)
    assert "it gives no gradient to background" in refusal("inria", cloud, camera, background)
    assert "it gives no gradient to world_to_camera and background" in refusal("inria", cloud, moving, background)
    with torch.no_grad():
        assert rasterize(cloud, moving, background, backend="inria").alpha.any()


def test_inria_refuses_more_channels_than_compiled(monkeypatch):
    use_inria(monkeypatch, 8)
    sentence = refusal("inria", *single(scattered(9), wide()))
    assert "cannot draw 9 channels: the installed diff_gaussian_rasterization is compiled for 8" in sentence
    assert "use another backend, or rebuild it with NUM_CHANNELS of at least 9" in sentence


def test_inria_refuses_a_background_of_other_length(monkeypatch):
    use_inria(monkeypatch, 8)
    assert "expects a background of 3 channels, as the features have; found 2" in refusal("inria", *single(scattered(3), wide()), torch.zeros(2))


def test_inria_refuses_skew(monkeypatch):
    use_inria(monkeypatch, 8)
    cloud, camera = single(scattered(3), wide())
    camera.intrinsics[1, 0, 1] = 0.5
    assert "pinhole cameras without skew; found intrinsics [[" in refusal("inria", cloud, camera)


@pytest.mark.parametrize("principal", [(6.1, 0.0), (-6.1, 0.0), (0.0, 4.1), (0.0, -4.1)])
def test_inria_refuses_a_far_off_principal_point(monkeypatch, principal):
    use_inria(monkeypatch, 8)
    sentence = refusal("inria", *single(scattered(3), wide(principal)))
    assert "off the middle of 40x27 px by more than 0.15 of the size" in sentence
    assert "crop from a larger picture, or use another backend" in sentence


@pytest.mark.parametrize(("form", "found"), [
    ("strange", "settings with kernel_size more and without nothing"), ("four", "found a result of float32 [8, 16, 16], int32 [1], float32"),
    ("swapped", "found a result of float32 [8, 16, 16], float32 [1, 16, 16], int32 [1]"),
])
def test_inria_refuses_other_forms(monkeypatch, form, found):
    use_inria(monkeypatch, 8, form)
    sentence = refusal("inria", *single(scattered(3), wide()))
    assert found in sentence
    assert "install that one, or use another backend" in sentence


def test_auto_never_picks_an_adapter(monkeypatch):
    one, two = use_gsplat(monkeypatch), use_inria(monkeypatch, 8)
    rasterize(*single(scattered(3), wide()), torch.zeros(3))
    assert one.calls == two.calls == 0
