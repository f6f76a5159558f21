"""The Triton backend against the float64 reference, on the CPU under Triton's interpreter, and its kernels compiled for sm_90."""

import dataclasses

import pytest
import torch

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import interface, tiled
from lib.render.gaussian.interface import rasterize
from tests.render.test_gaussian_reference import FIELDS, SCENES, leaves, make_camera, on_axis, scattered, some_background, stacked
from tests.render.triton_process import INTERPRETED, compiles, installed, interpreted, run_compiler, run_interpreted, starts_interpreter

LIMIT = 1e-4  # relative L2


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


def assert_is_reference(cloud, camera):
    """Picture, alpha and all gradients, from the same numbers rounded to float32."""
    background = some_background(cloud.features.shape[-1])
    results = []
    for name, scene in (("triton", single(cloud, camera)), ("reference", double(*single(cloud, camera)))):
        own, where = leaves(*scene)
        image = rasterize(own, where, background.to(own.means.dtype), backend=name)
        generator = torch.Generator().manual_seed(5)
        weight = torch.randn(image.features.shape, generator=generator, dtype=torch.float64).to(own.means.dtype)
        weight_alpha = torch.randn(image.alpha.shape, generator=generator, dtype=torch.float64).to(own.means.dtype)
        total = (image.features * weight).sum() + (image.alpha * weight_alpha).sum()
        gradient = torch.autograd.grad(total, [*(getattr(own, field) for field in FIELDS), where.world_to_camera])
        results.append([image.features.detach(), image.alpha.detach(), *gradient])
    for ours, exact in zip(*results, strict=True):
        assert ours.shape == exact.shape
        assert torch.isfinite(ours).all()
        assert float((ours.double() - exact).norm()) <= LIMIT * float(exact.norm()) + 1e-9
    return results[0]


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("channels", [3, 32, 48])
@pytest.mark.parametrize("scene", SCENES)
def test_picture_and_gradients_are_those_of_reference(scene, channels):
    assert_is_reference(SCENES[scene](channels, count=40), make_camera(37, 21))


@interpreted
def test_many_channels_take_several_programs():
    assert_is_reference(stacked(80, count=25), make_camera(19, 9))


@interpreted
@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 8), (16, 24), (33, 7), (9, 1), (1, 9)])
def test_any_size_is_reference(width, height):
    assert_is_reference(scattered(3, seed=6, count=20), make_camera(width, height))


@interpreted
def test_far_off_centre_principal_point_is_reference():
    assert_is_reference(scattered(3, seed=7), make_camera(principal=(14.0, -11.0)))


@interpreted
@pytest.mark.parametrize("count", [15, 16, 17, 300])
def test_long_lists_are_reference(count):
    # Faint ones on one pixel: whole chunks, one more, one less, and many.
    cloud, camera = on_axis([0.01] * count, [0.3] * count, [2.0 + 0.01 * k for k in range(count)])
    assert_is_reference(cloud, camera)


@interpreted
@pytest.mark.parametrize("opacities", [[0.995, 0.98, 0.49], [0.995, 0.98, 0.51, 0.3], [0.98] * 40, [1.0, 0.5]])
def test_stopping_and_clamping_are_those_of_reference(opacities):
    # Wide, so that many pixels are at the clamp, where alpha has no gradient. (Not 0.99, and not two at
    # the clamp, which leave 1e-4 exactly: there rounding decides.)
    count = len(opacities)
    assert_is_reference(*on_axis(opacities, [3.0] * count, [2.0 + 0.1 * k for k in range(count)]))


@interpreted
def test_one_gaussian_over_the_whole_picture():
    assert_is_reference(*on_axis([0.6], [50.0], [2.0], width=40, height=30))


@interpreted
def test_equal_depths_keep_the_order_of_indices():
    cloud, camera = on_axis([0.5] * 20, [1.0] * 20, [2.0] * 20)
    assert_is_reference(cloud, camera)


@interpreted
@pytest.mark.parametrize("case", ["none", "behind", "aside", "transparent"])
def test_nothing_to_draw_shows_background(case):
    cloud, camera = single(scattered(3), make_camera())
    cloud = {
        "none": lambda: GaussianCloud(**{name: getattr(cloud, name)[:, :0] for name in FIELDS}),
        "behind": lambda: dataclasses.replace(cloud, means=cloud.means - 50.0 * camera.world_to_camera[:, None, 2, :3]),
        "aside": lambda: dataclasses.replace(cloud, means=0.01 * cloud.means + 40.0 * camera.world_to_camera[:, None, 0, :3]),
        "transparent": lambda: dataclasses.replace(cloud, opacities=torch.full_like(cloud.opacities, 0.0039)),
    }[case]()
    own, where = leaves(cloud, camera)
    background = some_background(3).float()
    image = rasterize(own, where, background, backend="triton")
    assert torch.equal(image.alpha, torch.zeros_like(image.alpha))
    assert torch.equal(image.features, background[:, None, None].expand_as(image.features))
    for value in torch.autograd.grad(image.features.sum(), [getattr(own, name) for name in FIELDS], allow_unused=True):
        assert value is None or torch.equal(value, torch.zeros_like(value))


@interpreted
def test_strides_change_nothing():
    cloud, camera = single(scattered(3, count=20), make_camera())
    strided = GaussianCloud(**{name: getattr(cloud, name).transpose(0, 1).contiguous().transpose(0, 1) for name in FIELDS})
    assert not strided.features.is_contiguous()
    plain, other = (rasterize(c, camera, some_background(3).float(), backend="triton") for c in (cloud, strided))
    assert torch.equal(plain.features, other.features)
    own, _ = leaves(strided, camera)
    image = rasterize(own, camera, some_background(3).float(), backend="triton")
    assert torch.isfinite(torch.autograd.grad(image.features.transpose(2, 3).sum(), own.features)[0]).all()  # an expanded gradient


@interpreted
@pytest.mark.parametrize("wanted", FIELDS)
def test_single_gradients_are_those_of_all(wanted):
    cloud, camera = single(scattered(3, count=20), make_camera())
    whole, _ = leaves(cloud, camera)
    alone = dataclasses.replace(cloud, **{wanted: getattr(cloud, wanted).clone().requires_grad_()})
    background = some_background(3).float()
    ours, expected = (
        torch.autograd.grad(rasterize(c, camera, background, backend="triton").features.square().sum(), getattr(c, wanted))[0] for c in (alone, whole)
    )
    assert torch.equal(ours, expected)  # also: the same bits every time


@interpreted
def test_without_gradients_nothing_is_kept(monkeypatch):
    saves, original = [], tiled.Draw.apply
    monkeypatch.setattr(tiled.Draw, "apply", lambda *arguments: saves.append(arguments[-1]) or original(*arguments))
    cloud, camera = single(scattered(3, count=20), make_camera())
    own, where = leaves(cloud, camera)
    background = some_background(3).float()
    with_gradients = rasterize(own, where, background, backend="triton")
    with torch.no_grad():
        without = rasterize(own, where, background, backend="triton")
    detached = rasterize(cloud, camera, background, backend="triton")
    assert saves == [True, False, False]
    assert not without.features.requires_grad
    assert torch.equal(with_gradients.features, without.features)
    assert torch.equal(with_gradients.features, detached.features)


@interpreted
def test_background_has_a_gradient():
    cloud, camera = single(scattered(3, count=20), make_camera())
    background = some_background(3).float().requires_grad_()
    image = rasterize(cloud, camera, background, backend="triton")
    gradient = torch.autograd.grad(image.features.sum(), background)[0]
    torch.testing.assert_close(gradient, (1.0 - image.alpha).sum().expand(3))


def test_double_precision_is_refused():
    with pytest.raises(InputError, match="float32, not float64"):
        rasterize(scattered(3), make_camera(), some_background(3), backend="triton")


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused():
    cloud, camera = single(scattered(3), make_camera())
    with pytest.raises(InputError, match="CUDA tensors, not cpu"):
        rasterize(cloud, camera, some_background(3).float(), backend="triton")


def test_missing_package_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(tiled.importlib.util, "find_spec", lambda name: None)
    tiled._missing.cache_clear()
    assert "not installed" in tiled._missing(True)
    tiled._missing.cache_clear()


def test_choice_is_said_once(capsys):
    interface._say.cache_clear()
    cloud, camera = single(scattered(1, count=3), make_camera())
    images = [rasterize(cloud, camera, torch.zeros(1)) for _ in range(2)]
    assert capsys.readouterr().out == "rasterizer: reference (tensors on cpu)\n"
    assert torch.equal(images[0].features, rasterize(cloud, camera, torch.zeros(1), backend="reference").features)


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lib.render.gaussian import triton_kernels
from lib.render.gaussian.triton import BACKWARD_WARPS, CHUNK, FORWARD_WARPS, PRECISION, SIDE

INTEGERS = {"starts", "chunk_starts", "gaussians", "slots", "stops"}
SCALARS = {"pairs", "tiles_x", "tiles_per_image", "width", "height", "channels"}
forward, backward = triton_kernels.blend_forward, triton_kernels.blend_backward
for block in (16, 32, 64):
    shapes = dict(SIDE=SIDE, CHUNK=CHUNK, BLOCK=block, PRECISION=PRECISION)
    for kernel, warps, constants in (
        (forward, FORWARD_WARPS, {**shapes, "SAVE": False}), (forward, FORWARD_WARPS, {**shapes, "SAVE": True}), (backward, BACKWARD_WARPS, shapes),
    ):
        signature = {
            name: "constexpr" if name in constants else "i32" if name in SCALARS else "*i32" if name in INTEGERS else "*fp32"
            for name in kernel.arg_names
        }
        compiled = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        # The least that any GPU since sm_80 offers one program, without asking for more.
        assert compiled.asm["cubin"] and compiled.metadata.shared <= 48 * 1024, (block, constants, compiled.metadata.shared)
"""


@installed
@compiles
def test_kernels_compile_for_sm_90_without_a_gpu(tmp_path):
    run_compiler(COMPILE, tmp_path)
