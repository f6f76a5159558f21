"""The same numbers on CUDA as on the CPU, and both stages train there. Run with `python -m pytest -m gpu`."""

import dataclasses
import importlib.util
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import roma
import torch
import yaml

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at
from lib.geometry.tetmesh import body_centred_grid, marching_tetrahedra, subdivide
from lib.render.gaussian import interface, launch, tiled
from lib.render.gaussian.contract import DEFAULT, Capacity, RasterOptions
from lib.render.gaussian.interface import rasterize
from lib.render.mesh.reference import render_mesh
from tests.test_stages import config_of, run_script, runs, trained  # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def camera() -> Camera:
    centre = torch.tensor([[0.0, 0.0, 1.1], [0.4, 0.1, 1.0]])
    intrinsics = torch.tensor([[130.0, 0.0, 20.0], [0.0, 130.0, 15.0], [0.0, 0.0, 1.0]]).repeat(2, 1, 1)
    return Camera(look_at(centre, torch.zeros(2, 3)), intrinsics, 44, 33)


def test_gaussians_agree_with_the_cpu():
    random = torch.Generator().manual_seed(0)
    n = 400
    leaves = [
        0.1 * torch.randn(2, n, 3, generator=random), torch.nn.functional.normalize(torch.randn(2, n, 4, generator=random), dim=-1),
        torch.full((2, n, 3), 0.01), torch.rand(2, n, generator=random), torch.rand(2, n, 32, generator=random),
    ]
    weight = torch.rand(2, 32, 33, 44, generator=random)
    results = []
    for device in ("cpu", "cuda"):
        own = [leaf.to(device, torch.float64).requires_grad_() for leaf in leaves]
        where = camera()
        where = Camera(where.world_to_camera.to(device, torch.float64), where.intrinsics.to(device, torch.float64), where.width, where.height)
        image = rasterize(GaussianCloud(*own), where, torch.ones(32, device=device, dtype=torch.float64))
        (image.features * weight.to(device)).sum().backward()
        results.append([image.features, image.alpha, *(leaf.grad for leaf in own)])
    for on_cpu, on_cuda in zip(*results, strict=True):
        assert torch.allclose(on_cpu, on_cuda.cpu(), rtol=1e-8, atol=1e-9)


FIELDS = ("means", "quats_wxyz", "scales", "opacities", "features")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
kernels = pytest.mark.parametrize("backend", ["gluon", "triton"])
NAMES = ("image", "alpha", *FIELDS, "world_to_camera", "background")
# Relative L2 of all values. Rounded projections alone are about 1e-6 off; alphas of thresholds then fall on the other side at a pixel in
# some ten thousand, which is a step of 1/255 there: gradients, whose sums cancel, are given ten times as much as pictures.
LIMITS = {"high": (1e-3, 1e-3), "highest": (1e-5, 1e-4)}


def some_cloud(batch: int, count: int, channels: int, scale: float = 0.01) -> GaussianCloud:
    random = torch.Generator().manual_seed(batch + channels)
    return GaussianCloud(
        0.1 * torch.randn(batch, count, 3, generator=random), torch.nn.functional.normalize(torch.randn(batch, count, 4, generator=random), dim=-1),
        scale * (0.5 * torch.randn(batch, count, 3, generator=random)).exp(), 0.98 * torch.rand(batch, count, generator=random),
        torch.rand(batch, count, channels, generator=random),
    )


def drawn(cloud: GaussianCloud, where: Camera, backend: str, options: RasterOptions = DEFAULT, factor: float = 1.0,
          device: str = "cuda", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Picture, alpha and all gradients of a random linear function of both."""
    leaves = [getattr(cloud, name).to(device, dtype).requires_grad_() for name in FIELDS]
    pose = where.world_to_camera.to(device, dtype).requires_grad_()
    background = torch.linspace(-0.5, 1.5, cloud.features.shape[-1], device=device, dtype=dtype).requires_grad_()
    seen_by = Camera(pose, where.intrinsics.to(device, dtype), where.width, where.height)
    image = rasterize(GaussianCloud(*leaves), seen_by, background, backend=backend, options=options)
    weight = torch.randn(image.features.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    total = factor * ((image.features.to(dtype) * weight).sum() + (image.alpha * weight[:, :1]).sum())
    gradients = torch.autograd.grad(total, [*leaves, pose, background], allow_unused=True, materialize_grads=True)
    torch.cuda.synchronize(device)
    return [image.features.detach(), image.alpha.detach(), *gradients]


def assert_is_reference(cloud: GaussianCloud, where: Camera, backend: str, options: RasterOptions = DEFAULT) -> None:
    """Of the same float32 numbers, in float64."""
    exact = drawn(cloud, where, "reference", RasterOptions(clip=options.clip), dtype=torch.float64)
    for name, ours, right in zip(NAMES, drawn(cloud, where, backend, options), exact, strict=True):
        limit = LIMITS[options.precision][name not in ("image", "alpha")]
        limit = max(limit, 1e-3) if name == "image" and options.dtype == torch.float16 else limit
        assert ours.shape == right.shape, name
        assert torch.isfinite(ours).all(), name
        assert float((ours.double() - right).norm()) <= limit * float(right.norm()) + 1e-9, name


def one_camera(batch: int, width: int = 44, height: int = 33) -> Camera:
    where = camera()
    return Camera(where.world_to_camera[:batch], where.intrinsics[:batch], width, height)


@needs_triton
@kernels
@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels", [3, 32, 48, 64, 80])
def test_kernels_agree_with_reference(backend, precision, batch, channels):
    assert_is_reference(some_cloud(batch, 400, channels), one_camera(batch), backend, RasterOptions(precision=precision))


@needs_triton
@kernels
@pytest.mark.parametrize("options", [
    RasterOptions(clip=True), RasterOptions(dtype=torch.float16), RasterOptions(deterministic=True), RasterOptions(capacity=Capacity(100_000)),
    RasterOptions(clip=True, deterministic=True, precision="highest", capacity=Capacity(100_000)),
])
@pytest.mark.parametrize(("clouds", "channels"), [(1, 3), (1, 80), (2, 32)])
def test_options_agree_with_reference(backend, options, clouds, channels):
    assert_is_reference(some_cloud(clouds, 400, channels), one_camera(2), backend, options)  # one cloud: seen by both cameras


@needs_triton
@kernels
@pytest.mark.parametrize(("width", "height"), [(1, 1), (9, 17), (256, 100), (4097, 33)])
def test_kernels_draw_any_size(backend, width, height):
    assert_is_reference(some_cloud(2, 200, 3), one_camera(2, width, height), backend)


@needs_triton
@kernels
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", ["one over all", "thousands in a tile", "opaque", "equal depths", "strided", "thin", "huge"])
def test_kernels_draw_degenerate_clouds(backend, deterministic, case):
    where, cloud = camera(), some_cloud(2, 60, 3)
    many = some_cloud(2, 10_000, 3, scale=0.002)
    cloud = {
        "one over all": lambda: some_cloud(2, 1, 3, scale=2.0),
        "thousands in a tile": lambda: dataclasses.replace(many, means=0.001 * many.means, opacities=torch.full((2, 10_000), 0.005)),
        "opaque": lambda: dataclasses.replace(cloud, scales=cloud.scales + 0.05, opacities=torch.ones(2, 60)),
        "equal depths": lambda: dataclasses.replace(cloud, means=cloud.means[:, :1].expand(-1, 60, -1)),
        "strided": lambda: GaussianCloud(**{name: getattr(cloud, name).transpose(0, 1).contiguous().transpose(0, 1) for name in FIELDS}),
        "thin": lambda: dataclasses.replace(cloud, scales=cloud.scales * torch.tensor([10.0, 0.01, 0.01])),
        "huge": lambda: dataclasses.replace(cloud, scales=cloud.scales + 1.0),
    }[case]()
    # Gradients of one that covers everything nearly cancel: rounding to TF32 would show.
    assert_is_reference(cloud, where, backend, RasterOptions(deterministic=deterministic, precision="highest"))


@needs_triton
@kernels
@pytest.mark.parametrize("options", [DEFAULT, RasterOptions(deterministic=True), RasterOptions(capacity=Capacity(0))])
@pytest.mark.parametrize("count", [0, 60])
def test_background_shows_where_nothing_is_in_front(backend, options, count):
    where, cloud = camera(), some_cloud(2, count, 3)
    cloud = dataclasses.replace(cloud, means=cloud.means - 50.0 * where.world_to_camera[:, None, 2, :3])
    for _ in range(2):  # the second knows that no room is needed
        image, alpha, *gradients = drawn(cloud, where, backend, options)
        assert torch.equal(image, torch.linspace(-0.5, 1.5, 3, device="cuda")[:, None, None].expand_as(image))
        assert not alpha.any()
        assert not any(gradient.any() for gradient in gradients[:-1])


@needs_triton
@kernels
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_or_stays_alone(backend, name, value):
    where, cloud = camera(), some_cloud(2, 60, 3)
    wrong = getattr(cloud, name).clone()
    wrong.view(120, -1)[7, -1] = value
    broken = dataclasses.replace(cloud, **{name: wrong})
    with pytest.raises(InputError, match=f"1 of {wrong.numel()} values of {name} are NaN or infinite"):
        rasterize(broken.to("cuda"), where.to("cuda"), torch.ones(3, device="cuda"), backend=backend, options=RasterOptions(check=True))
    results = drawn(broken, where, backend)
    torch.cuda.synchronize()
    for part, result in zip(NAMES[:-1], results, strict=False):
        assert torch.isfinite(result[1]).all(), part  # the other image, cloud and camera
        if name != "features":  # such a Gaussian is not drawn; with such features it is
            assert torch.isfinite(result).all(), part
    assert_is_reference(cloud, where, backend)  # no error was left behind


@needs_triton
@kernels
def test_exploded_scales_are_refused_by_number(backend):
    count = 300_000
    cloud = dataclasses.replace(some_cloud(1, count, 3), scales=torch.full((1, count, 3), 100.0), opacities=torch.full((1, count), 0.5)).to("cuda")
    cloud = dataclasses.replace(cloud, means=0.1 * cloud.means)
    where, background = one_camera(1, 1024, 1024).to("cuda"), torch.ones(3, device="cuda")
    with pytest.raises(InputError, match=r"\d{10} pairs of Gaussians and tiles"):
        rasterize(cloud, where, background, backend=backend)
    capacity = Capacity(1000)
    with pytest.raises(InputError, match=r"\d{10} pairs of Gaussians and tiles"):
        capacity.drawn(lambda: rasterize(cloud, where, background, backend=backend, options=RasterOptions(capacity=capacity)))
    torch.cuda.synchronize()
    assert_is_reference(some_cloud(2, 60, 3), camera(), backend)


@needs_triton
@kernels
def test_too_little_room_gives_nan_then_more(backend, capsys):
    where, cloud, background = camera().to("cuda"), some_cloud(2, 400, 3).to("cuda"), torch.ones(3, device="cuda")
    expected = rasterize(cloud, where, background, backend=backend)
    capacity = Capacity(10)
    options = RasterOptions(capacity=capacity)
    assert torch.isnan(rasterize(cloud, where, background, backend=backend, options=options).features).all()
    image = capacity.drawn(lambda: rasterize(cloud, where, background, backend=backend, options=options))
    assert torch.equal(image.features, expected.features)
    assert capsys.readouterr().out.count("room for 10; drawing again with more") == 1
    assert not capacity.overflowed()


@needs_triton
@kernels
def test_more_or_fewer_pairs_than_the_last_call(backend):
    where, cloud, background = camera().to("cuda"), some_cloud(2, 400, 3).to("cuda"), torch.ones(3, device="cuda")
    for factor in (1.0, 6.0, 0.2, 1.0):  # guesses that are too small, and much too large
        scaled = dataclasses.replace(cloud, scales=factor * cloud.scales)
        image = rasterize(scaled, where, background, backend=backend)
        enough = rasterize(scaled, where, background, backend=backend, options=RasterOptions(capacity=Capacity(1_000_000)))
        assert torch.equal(image.features, enough.features)


@needs_triton
@kernels
def test_more_tiles_than_two_bytes_can_name(backend):
    where = one_camera(1, 2200, 2100)
    where.intrinsics[:, :2] *= 40.0
    assert_is_reference(some_cloud(1, 100, 3), where, backend)


@needs_triton
@kernels
def test_other_streams_draw_the_same(backend):
    where, cloud = camera(), some_cloud(2, 400, 32)
    expected = drawn(cloud, where, backend, RasterOptions(deterministic=True))
    with torch.cuda.stream(torch.cuda.Stream()):
        ours = drawn(cloud, where, backend, RasterOptions(deterministic=True))
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


@needs_triton
@kernels
def test_second_device_draws_the_same(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    where, cloud, options = camera(), some_cloud(2, 400, 32), RasterOptions(deterministic=True)
    results = [drawn(cloud, where, backend, options, device=device) for device in ("cuda:0", "cuda:1")]
    assert all(torch.equal(one, other.to("cuda:0")) for one, other in zip(*results, strict=True))


@needs_triton
@kernels
@pytest.mark.parametrize("clouds", [1, 2])
def test_deterministic_gives_the_same_bits_every_time(backend, clouds):
    where, cloud = camera(), some_cloud(clouds, 2000, 80, scale=0.03)
    first, *others = (drawn(cloud, where, backend, RasterOptions(deterministic=True)) for _ in range(4))
    for other in others:
        for name, one, same in zip(NAMES, first, other, strict=True):
            assert torch.equal(one, same), name
    for name, one, usual in zip(NAMES, first, drawn(cloud, where, backend), strict=True):
        assert float((one - usual).norm()) <= 1e-4 * float(one.norm()), name


@needs_triton
@kernels
@pytest.mark.parametrize("deterministic", [False, True])
def test_tiny_gradients_keep_their_digits(backend, deterministic):
    where, cloud, options = camera(), some_cloud(2, 400, 32), RasterOptions(deterministic=deterministic)
    usual, tiny = drawn(cloud, where, backend, options), drawn(cloud, where, backend, options, factor=1e-12)
    for name, one, small in zip(NAMES[2:], usual[2:], tiny[2:], strict=True):
        assert float((1e12 * small - one).norm()) <= 1e-3 * float(one.norm()), name


@needs_triton
@kernels
@pytest.mark.parametrize("backward", [False, True])
def test_graphs_replay_what_is_drawn(backend, backward):
    clouds = [some_cloud(2, 400, channels).to("cuda") for channels in (32, 32)]
    clouds[1] = dataclasses.replace(clouds[1], means=clouds[1].means.flip(1), scales=1.5 * clouds[1].scales)
    where, background = camera().to("cuda"), torch.ones(32, device="cuda")
    options = RasterOptions(capacity=Capacity(100_000), deterministic=True)

    def draw(leaves):
        image = rasterize(GaussianCloud(*leaves), where, background, backend=backend, options=options)
        return [image.features, *(torch.autograd.grad(image.features.square().sum(), leaves) if backward else ())]

    held = [getattr(clouds[0], name).clone().requires_grad_(backward) for name in FIELDS]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            draw(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = draw(held)
    for cloud in (clouds[1], clouds[0]):
        with torch.no_grad():
            for value, name in zip(held, FIELDS, strict=True):
                value.copy_(getattr(cloud, name))
        graph.replay()
        assert not options.capacity.overflowed()
        eager = draw([getattr(cloud, name).clone().requires_grad_(backward) for name in FIELDS])
        options.capacity.needed = None  # was that of the eager drawing
        assert all(torch.equal(one, other) for one, other in zip(recorded, eager, strict=True))


@needs_triton
@kernels
@pytest.mark.parametrize("deterministic", [False, True])
def test_loops_replay_what_they_launched_before(backend, deterministic, monkeypatch):
    recorded, recordings = launch._recorded, []
    monkeypatch.setattr(launch, "_recorded", lambda chain: recordings.append(1) or recorded(chain))
    clouds, options = [some_cloud(2, 410, 32, scale) for scale in (0.01, 0.015)], RasterOptions(deterministic=deterministic)
    where, background, upstream = camera().to("cuda"), torch.ones(32, device="cuda"), torch.ones(2, 32, 33, 44, device="cuda")
    held = [getattr(clouds[0], name).to("cuda").requires_grad_() for name in FIELDS]

    def draw(cloud, leaves):
        with torch.no_grad():
            for value, name in zip(leaves, FIELDS, strict=True):
                value.copy_(getattr(cloud, name))
        image = rasterize(GaussianCloud(*leaves), where, background, backend=backend, options=options)
        return [image.features.detach(), image.radii, *torch.autograd.grad(image.features, leaves, upstream)]

    fresh = [[value.cpu() for value in draw(cloud, [value.detach().clone().requires_grad_() for value in held])] for cloud in clouds]
    for step in range(12):
        for value, right in zip(draw(clouds[step % 2], held), fresh[step % 2], strict=True):
            if deterministic:
                assert torch.equal(value.cpu(), right), step
            else:
                assert float((value.cpu() - right).float().norm()) <= 1e-4 * float(right.float().norm()), step
    assert recordings


@needs_triton
@kernels
def test_room_of_any_size_at_the_same_addresses(backend):
    where, cloud = camera(), some_cloud(2, 430, 32)
    expected = drawn(cloud, where, backend, RasterOptions(deterministic=True))
    for _ in range(3):
        for pairs in (400_000, None, 100_000, 200_000, None):
            for _ in range(3):
                ours = drawn(cloud, where, backend, RasterOptions(deterministic=True, capacity=None if pairs is None else Capacity(pairs)))
                assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True)), pairs


@needs_triton
@kernels
def test_threads_draw_beside_each_other(backend):
    where, options = camera(), RasterOptions(deterministic=True)
    clouds = [some_cloud(2, 420, 32, scale) for scale in (0.008, 0.01, 0.012)]
    expected = [drawn(cloud, where, backend, options) for cloud in clouds]

    def draw(cloud):
        with torch.cuda.stream(torch.cuda.Stream()):
            return [drawn(cloud, where, backend, options) for _ in range(6)]

    with ThreadPoolExecutor(3) as threads:
        for results, right in zip(threads.map(draw, clouds), expected, strict=True):
            for result in results:
                assert all(torch.equal(one, other) for one, other in zip(result, right, strict=True))


@needs_triton
@kernels
def test_graphs_without_capacity_are_refused(backend):
    where, cloud, background = camera().to("cuda"), some_cloud(2, 20, 3).to("cuda"), torch.ones(3, device="cuda")
    rasterize(cloud, where, background, backend=backend)
    with pytest.raises(InputError, match="RasterOptions.capacity"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        rasterize(cloud, where, background, backend=backend)
    torch.cuda.synchronize()


@needs_triton
def test_float32_on_cuda_is_drawn_by_the_first_that_can(capsys):
    interface._say.cache_clear()
    cloud = some_cloud(2, 10, 3).to("cuda")
    rasterize(cloud, camera().to("cuda"), torch.ones(3, device="cuda"))
    said = capsys.readouterr().out
    assert said == "rasterizer: gluon\n" if tiled.gluon_obstacle(cloud) is None else said.startswith("rasterizer: triton (not gluon: ")


def test_grids_and_surfaces_agree_with_the_cpu():
    results = []
    for device in ("cpu", "cuda"):
        grid = subdivide(body_centred_grid([[-1.3, 1.3]] * 3, 8).to(device))
        surface = marching_tetrahedra(grid, grid.vertices, grid.vertices.norm(dim=1) - 1.0, grid.vertices)
        results.append([surface.vertices, surface.features, surface.faces])
    for on_cpu, on_cuda in zip(*results, strict=True):
        assert torch.allclose(on_cpu, on_cuda.cpu(), atol=1e-6)


def test_meshes_agree_with_the_cpu():
    grid = body_centred_grid([[-1.3, 1.3]] * 3, 12)
    surface = marching_tetrahedra(grid, grid.vertices, grid.vertices.norm(dim=1) - 1.0, grid.vertices)
    # Turned, so that no pixel centre lies exactly on an edge, where rounding decides.
    turn = roma.rotvec_to_rotmat(torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64))
    posed = (0.1 * surface.vertices.double() @ turn.T).expand(2, -1, -1)
    results = []
    for device in ("cpu", "cuda"):
        vertices = posed.to(device).clone().requires_grad_()
        where = camera()
        where = Camera(where.world_to_camera.to(device, torch.float64), where.intrinsics.to(device, torch.float64), where.width, where.height)
        image = render_mesh(vertices, surface.faces.to(device), posed.to(device), where)
        (image.attributes.sum() + image.mask.sum()).backward()
        results.append([image.attributes, image.mask, vertices.grad])
    for on_cpu, on_cuda in zip(*results, strict=True):
        assert torch.allclose(on_cpu, on_cuda.cpu(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("stage", ["meshhead", "gaussianhead"])
def test_stages_train(made, runs, stage, capsys):  # noqa: F811
    script, values = config_of(stage, made, runs, steps=3, name=f"cuda_{stage}")
    # Type checks of these tests cannot be compiled.
    run_script(script, values, runs, "trainer.device=cuda", *(["trainer.compile=False"] if stage == "gaussianhead" else []))
    assert "finished 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize("compiled", [True, False])
def test_both_precisions_learn_the_same(made, runs, compiled):  # noqa: F811
    """In processes of their own, without type checks."""
    losses = {}
    for precision in ("high", "highest"):
        name = f"cuda_{precision}_{compiled}"
        script, values = config_of("gaussianhead", made, runs, steps=6, name=name)
        path = runs / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        options = ["trainer.device=cuda", f"trainer.precision={precision}", f"trainer.compile={compiled}", "recorder.show_freq=1"]
        command = [sys.executable, f"{script}.py", "--config", str(path), *options]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "does not work here" not in result.stdout
        losses[precision] = [float(text) for text in re.findall(r"loss (\d+\.\d+)", result.stdout)]
    assert losses["high"] and losses["high"] == pytest.approx(losses["highest"], rel=0.02)
