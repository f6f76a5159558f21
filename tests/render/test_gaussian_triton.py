"""The Triton backend against the float64 reference, on the CPU under Triton's interpreter."""

import dataclasses

import pytest
import torch

from lib import kernels
from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import contract, interface, launch, tiled
from lib.render.gaussian.contract import DEFAULT, Capacity, RasterOptions
from lib.render.gaussian.interface import rasterize
from tests.render.test_gaussian_reference import FIELDS, SCENES, double, leaves, make_camera, on_axis, scattered, single, some_background, stacked
from tests.render.triton_process import INTERPRETED, installed, interpreted, run_interpreted, starts_interpreter

LIMIT = 1e-4  # relative L2


def random_like(value, seed):
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighted(image):
    """A random linear function of picture and alpha."""
    return sum((part * random_like(part, seed).to(part.dtype)).sum() for seed, part in ((5, image.features), (6, image.alpha)))


def drawn(backend, cloud, camera, options=DEFAULT, loss=weighted, background=None):
    """Picture, alpha, radii and all gradients, the last of them that of the background."""
    own, where = leaves(cloud, camera)
    background = some_background(cloud.features.shape[-1]) if background is None else background
    background = background.to(own.means.dtype).clone().requires_grad_()
    image = rasterize(own, where, background, backend=backend, options=options)
    sources = [*(getattr(own, field) for field in FIELDS), where.world_to_camera, background]
    gradients = torch.autograd.grad(loss(image), sources, allow_unused=True, materialize_grads=True)
    return [image.features.detach(), image.alpha.detach(), image.radii, *gradients]


def assert_is_reference(cloud, camera, options=DEFAULT, loss=weighted):
    """Picture, alpha, radii and all gradients, from the same numbers rounded to float32."""
    ours = drawn("triton", *single(cloud, camera), options, loss)
    exact = drawn("reference", *double(*single(cloud, camera)), RasterOptions(clip=options.clip), loss)
    for name, value, right in zip(("picture", "alpha", "radii", *FIELDS, "pose", "background"), ours, exact, strict=True):
        assert value.shape == right.shape, name
        if name == "radii":
            # The kernels also cull ellipses that pass between pixel centres within their box; nobody sees those.
            assert torch.equal(value, torch.where(value > 0, right, 0))
            assert len(cloud.means) != len(value) or not exact[6][value != right].any()
            continue
        assert torch.isfinite(value).all(), name
        assert float((value.double() - right).norm()) <= LIMIT * float(right.norm()) + 1e-9, name
    return ours


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize(("scene", "channels"), [("scattered", 3), ("stacked", 48), ("tied", 32)])
def test_picture_and_gradients_are_those_of_reference(scene, channels):
    assert_is_reference(SCENES[scene](channels, count=30), make_camera(29, 19))


@interpreted
@pytest.mark.parametrize("options", [DEFAULT, RasterOptions(deterministic=True)])
def test_many_channels_take_several_programs(options):
    assert_is_reference(stacked(80, count=17), make_camera(13, 9), options)


@interpreted
def test_deterministic_gradients_are_those_of_reference():
    assert_is_reference(stacked(48, count=20), make_camera(19, 13), RasterOptions(deterministic=True))


@interpreted
@pytest.mark.parametrize("options", [DEFAULT, RasterOptions(deterministic=True)])
def test_gradients_of_one_cloud_are_summed_over_cameras(options):
    ours = assert_is_reference(stacked(3, batch=1, count=20), make_camera(19, 13), options)
    assert ours[3].shape == (1, 20, 3)


@interpreted
@pytest.mark.parametrize("options", [RasterOptions(clip=True), RasterOptions(clip=True, deterministic=True)])
def test_clipped_picture_is_that_of_reference(options):
    # Opaque ones reach further than three deviations: at 16 px from the mean something is left out.
    cloud, camera = on_axis([0.985, 0.9, 0.97], [0.72, 0.5, 1.1], [2.0, 2.1, 2.2], width=60, height=40)
    clipped = assert_is_reference(cloud, camera, options)
    if not options.deterministic:
        assert not torch.equal(clipped[0], drawn("triton", *single(cloud, camera))[0])


@interpreted
def test_half_precision_is_that_of_the_picture_only():
    scene = single(stacked(3, count=12), make_camera(13, 9))
    whole = drawn("triton", *scene, loss=lambda image: image.features.float().sum())
    half = drawn("triton", *scene, RasterOptions(dtype=torch.float16), loss=lambda image: image.features.float().sum())
    assert half[0].dtype == torch.float16
    assert torch.equal(half[0], whole[0].half())
    assert half[1].dtype == torch.float32
    for ours, expected in zip(half[1:], whole[1:], strict=True):  # gradients too: those of ones
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)


LOSSES = {
    "picture alone": lambda image: (image.features * random_like(image.features, 5).to(image.features.dtype)).sum(),
    "alpha alone": lambda image: (image.alpha * random_like(image.alpha, 6).to(image.alpha.dtype)).sum(),
    "expanded gradient": lambda image: image.features.sum() + 2.0 * image.alpha.sum(),
    "channels last": lambda image: (
        image.features.permute(0, 2, 3, 1).contiguous() * random_like(image.features.permute(0, 2, 3, 1), 7).to(image.features.dtype)).sum(),
    "transposed": lambda image: (image.features.mT.contiguous() * random_like(image.features.mT, 8).to(image.features.dtype)).sum(),
}


@interpreted
@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_has_the_gradients_of_reference(loss):
    assert_is_reference(stacked(3, count=15), make_camera(13, 9), loss=LOSSES[loss])


@interpreted
def test_depth_is_a_channel_like_any_other():
    cloud, camera = stacked(3, count=20), make_camera(19, 13)
    results = []
    for name, (own, where) in (("triton", single(cloud, camera)), ("reference", double(*single(cloud, camera)))):
        own, where = leaves(own, where)
        depth = where.to_camera(own.means)[..., 2:]
        both = dataclasses.replace(own, features=torch.cat([own.features, depth], dim=-1))
        image = rasterize(both, where, torch.zeros(4, dtype=own.means.dtype), backend=name)
        results.append([image.features.detach(), *torch.autograd.grad(weighted(image), [own.means, own.features, where.world_to_camera])])
    for ours, exact in zip(*results, strict=True):
        assert float((ours.double() - exact).norm()) <= LIMIT * float(exact.norm())


@interpreted
@pytest.mark.parametrize("options", [DEFAULT, RasterOptions(deterministic=True)])
def test_tiny_gradients_keep_their_digits(options):
    scene = single(stacked(3, count=15), make_camera(13, 9))
    usual = drawn("triton", *scene, options)
    tiny = drawn("triton", *scene, options, loss=lambda image: 1e-12 * weighted(image))
    for ours, expected in zip(tiny[3:], usual[3:], strict=True):
        assert float((1e12 * ours - expected).norm()) <= 1e-5 * float(expected.norm())


@interpreted
def test_too_little_room_is_noticed_and_made(capsys):
    scene, background = single(stacked(3, count=15), make_camera(13, 9)), some_background(3).float()
    expected = drawn("triton", *scene)
    enough = Capacity(10_000)
    for ours, right in zip(drawn("triton", *scene, RasterOptions(capacity=enough)), expected, strict=True):
        assert torch.equal(ours, right)
    assert not enough.overflowed()
    total = int(enough.needed[0])
    assert not Capacity(0).overflowed()  # before any drawing

    capacity = Capacity(total - 1)
    options = RasterOptions(capacity=capacity)
    cut = rasterize(*scene, background, backend="triton", options=options)
    assert torch.isnan(cut.features).all()
    assert torch.isnan(cut.alpha).all()
    assert capsys.readouterr().out == ""
    assert capacity.overflowed()
    assert capsys.readouterr().out == f"rasterizer: {total} pairs of tiles and Gaussians, room for {total - 1}; drawing again with more\n"
    assert total < capacity.pairs <= 1.25 * total
    assert torch.equal(rasterize(*scene, background, backend="triton", options=options).features, expected[0])
    assert not capacity.overflowed()

    for room in (0, total // 2):
        capacity, calls = Capacity(room), []
        options = RasterOptions(capacity=capacity, deterministic=True)

        def draw(options=options, calls=calls):
            calls.append(options)
            return rasterize(*scene, background, backend="triton", options=options)

        image = capacity.drawn(draw)
        assert len(calls) == 2
        assert torch.equal(image.features, expected[0])
        assert capsys.readouterr().out.count("\n") == 1


@interpreted
def test_more_room_than_can_be_named_is_refused():
    needed = torch.tensor([1 << 31, 1])
    with pytest.raises(InputError, match="2147483648 pairs"):
        Capacity(5, needed).overflowed()
    scene = single(stacked(3, count=3), make_camera(13, 9))
    with pytest.raises(InputError, match="2147483648"):
        rasterize(*scene, some_background(3).float(), backend="triton", options=RasterOptions(capacity=Capacity(1 << 31)))


@interpreted
def test_gradients_of_a_drawing_without_room_are_made_up_but_stay_inside():
    # Nobody uses them; but a graph may run the backward pass before anybody looks.
    scene = single(stacked(3, count=15), make_camera(13, 9))
    for deterministic in (False, True):
        for room in (0, 40):
            results = drawn("triton", *scene, RasterOptions(capacity=Capacity(room), deterministic=deterministic))
            assert torch.isnan(results[0]).all()


@interpreted
@pytest.mark.parametrize("deterministic", [False, True])
def test_no_channels_leave_alpha(deterministic):
    cloud, camera = single(stacked(3, count=6), make_camera(13, 9))
    expected = rasterize(cloud, camera, some_background(3).float(), backend="triton").alpha
    own, where = leaves(dataclasses.replace(cloud, features=cloud.features[..., :0]), camera)
    image = rasterize(own, where, torch.zeros(0), backend="triton", options=RasterOptions(deterministic=deterministic))
    assert image.features.shape == (2, 0, 9, 13)
    assert torch.equal(image.alpha, expected)
    assert torch.autograd.grad(image.alpha.sum(), own.opacities)[0].any()


@interpreted
@pytest.mark.parametrize(("what", "message"), [
    ("background", r"background is \(3,\) torch.float64 on cpu; expected \(3,\) torch.float32"),
    ("pose", r"world_to_camera is \(2, 3, 4\) torch.float64"), ("short", r"background is \(1,\)"),
    ("intrinsics", "no gradient to intrinsics"),
])
def test_what_kernels_would_misread_is_refused(what, message):
    cloud, camera = single(stacked(3, count=6), make_camera(13, 9))
    background = some_background(3).float()
    camera = dataclasses.replace(camera, world_to_camera=camera.world_to_camera.double()) if what == "pose" else camera
    camera = dataclasses.replace(camera, intrinsics=camera.intrinsics.clone().requires_grad_()) if what == "intrinsics" else camera
    background = {"background": background.double(), "short": background[:1]}.get(what, background)
    with pytest.raises(InputError, match=message):
        rasterize(cloud, camera, background, backend="triton")


def test_an_interrupted_drawing_does_not_answer_for_the_next(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    monkeypatch.setattr(launch.torch, "empty", lambda *shape, **options: torch.zeros(*shape, dtype=torch.int64))
    words = launch.HostWords(2)
    words.clear()
    assert words.tensor.tolist() == [-1, -1]
    words.tensor.copy_(torch.tensor([5, 3]))
    assert words.wait() == (5, 3)
    words.clear()
    assert not waited
    words.clear()  # nobody has waited
    assert waited == [1]
    monkeypatch.setattr(launch, "HANG", 0.0)
    with pytest.raises(RuntimeError, match="not started"):
        words.wait()


class Recording:
    """What stands for a CUDA graph of a chain."""

    made = 0

    def __init__(self, chain):
        type(self).made += 1
        self.replay = chain


def test_chains_are_recorded_when_they_come_again_and_only_while_that_pays(monkeypatch):
    monkeypatch.setattr(launch, "_recorded", Recording)
    monkeypatch.setattr(Recording, "made", 0)
    capturing = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    replays, started = launch.Replays(), []

    def start(key):
        replays.start((key,), lambda: started.append(key))

    for _ in range(4):
        start("a")
    assert started == ["a"] * 4
    assert (Recording.made, replays.replayed) == (1, 3)  # the first time it was only launched
    capturing.append(True)
    start("a")
    assert (len(started), replays.replayed) == (5, 3)  # launched into the graph that is being recorded
    capturing.clear()
    for number in range(10 * launch.SEEN):  # addresses that never come again
        start(number)
    assert Recording.made == 1
    assert len(replays.seen) <= launch.SEEN
    for _ in range(2):  # more than are kept, all of which come again, but seldom
        for number in range(launch.GRAPHS + 5):
            start(-1 - number)
    assert Recording.made == launch.GRAPHS
    for _ in range(launch.GAIN * launch.GRAPHS):
        start("a")
    for _ in range(2):
        start("b")
    assert Recording.made == launch.GRAPHS + 1  # others may come now
    assert len(replays.graphs) == 1
    assert started[-2:] == ["b"] * 2


@interpreted
def test_room_on_the_cpu_is_what_is_needed(monkeypatch):
    with torch.no_grad():
        asked, drawn = [], tiled._drawn
        monkeypatch.setattr(tiled, "_drawn", lambda *arguments: asked.append(arguments[5]) or drawn(*arguments))
        scene, capacity = single(stacked(3, count=15), make_camera(13, 9)), Capacity(1000)
        plain = rasterize(*scene, some_background(3).float(), backend="triton")
        rasterize(*scene, some_background(3).float(), backend="triton", options=RasterOptions(capacity=capacity))
    assert torch.isfinite(plain.features).all()
    assert asked == [tuple(capacity.needed.tolist()), (1000, 1000)]


@interpreted
def test_what_decides_about_launches_is_named(monkeypatch):
    """Addresses come again with other sizes, so everything else that launches depend on must be told apart."""
    decided, start = [], tiled.Blender.start

    def noted(blender, chain, named, tensors):
        decided.append((id(blender), named))
        start(blender, chain, named, tensors)

    monkeypatch.setattr(tiled.Blender, "start", noted)
    scene, background = single(stacked(3, count=6), make_camera(13, 9)), some_background(3).float()

    def draw(pairs=1000, strides="planar", alpha=False, pose=False, dtype=None):
        leaves = GaussianCloud(*(value.clone().requires_grad_() for value in vars(scene[0]).values()))
        where = dataclasses.replace(scene[1], world_to_camera=scene[1].world_to_camera.clone().requires_grad_(pose))
        image = rasterize(leaves, where, background, backend="triton", options=RasterOptions(capacity=Capacity(pairs), dtype=dtype))
        upstream = torch.ones_like(image.features)
        upstream = upstream.contiguous(memory_format=torch.channels_last) if strides == "channels last" else upstream
        torch.autograd.backward([image.features, *([image.alpha] if alpha else [])], [upstream, *([torch.ones_like(image.alpha)] if alpha else [])])
        return decided[-2:]

    usual = draw()
    assert draw() == usual
    for change in ({"pairs": 2000}, {"dtype": torch.float16}):
        assert all(one != other for one, other in zip(draw(**change), usual, strict=True)), change
    for change in ({"strides": "channels last"}, {"alpha": True}, {"pose": True}):
        assert draw(**change)[1] != usual[1], change


class LateWord:
    """What stands for a word that a device writes."""

    def __init__(self):
        self.tensor = torch.tensor([-1, -1])

    def clear(self):
        self.tensor.fill_(-1)

    def wait(self):
        assert self.tensor.min() >= 0
        return tuple(self.tensor.tolist())


class LateFeatures(torch.Tensor):
    """Features that say that they are on a device."""

    is_cuda = True

    def get_device(self):
        return 0


@interpreted
def test_devices_that_answer_late_draw_into_the_room_of_the_last_call(monkeypatch):
    cloud, camera = single(stacked(3, count=6), make_camera(13, 9))
    background, drawn, rooms = some_background(3).float(), tiled._drawn, []
    blender = tiled.blender_of(tiled.TRITON, 2, 6, 2, 3, 13, 9, False, False, False, False, 0)

    def drawn_and_noted(inputs, features, *rest):
        rooms.append(rest[3])
        return drawn(inputs, cloud.features, *rest)

    def image_of(scales):
        rooms.clear()
        inputs = (cloud.means, cloud.quats_wxyz, scales, cloud.opacities, camera.world_to_camera, camera.intrinsics)
        return tiled._in_enough_room(inputs, cloud.features.as_subclass(LateFeatures), background, blender, None).image

    def image_that_is_right(scales):
        return rasterize(dataclasses.replace(cloud, scales=scales), camera, background, backend="triton").features

    few, many, fewest = 0.3 * cloud.scales, 2.0 * cloud.scales, 1e-3 * cloud.scales
    right = [image_that_is_right(scales) for scales in (few, many, fewest)]
    monkeypatch.setattr(tiled, "_drawn", drawn_and_noted)
    monkeypatch.setattr(tiled, "LEAST_ROOM", 3)
    blender.room = (3, 3)
    monkeypatch.setattr(tiled._local, "total", LateWord(), raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def needed():
        return tuple(contract.room_for(count, tiled.SPARE) for count in tiled._local.total.tensor.tolist())

    assert torch.equal(image_of(few), right[0])
    first = needed()
    assert rooms == [(3, 3), first]  # no room was known
    assert torch.equal(image_of(few), right[0])
    assert rooms == [first]
    assert torch.equal(image_of(many), right[1])
    assert rooms == [first, needed()]  # once more, with enough
    wide = rooms[1]
    assert torch.equal(image_of(fewest), right[2])
    assert rooms == [wide]
    assert 0 < 2 * needed()[0] < wide[0]
    assert torch.equal(image_of(fewest), right[2])
    assert rooms == [needed()]  # far too much room is given back
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(InputError, match="CUDA graph"):
        image_of(few)


@interpreted
@pytest.mark.parametrize("options", [DEFAULT, RasterOptions(deterministic=True)])
def test_odd_offsets_change_nothing(options):
    def odd(value):
        place = torch.empty(value.numel() + 1, dtype=value.dtype)[1:].view(value.shape).copy_(value)
        assert place.data_ptr() % 16
        return place

    cloud, camera = single(stacked(3, count=15), make_camera(13, 9))
    moved = GaussianCloud(**{name: odd(getattr(cloud, name)) for name in FIELDS})
    where = Camera(odd(camera.world_to_camera), odd(camera.intrinsics), camera.width, camera.height)
    results = []
    for own, seen, modify in ((cloud, camera, torch.clone), (moved, where, odd)):
        sources = [getattr(own, name).requires_grad_() for name in FIELDS]
        background = modify(some_background(3).float()).requires_grad_()
        image = rasterize(own, seen, background, backend="triton", options=options)
        d_image, d_alpha = (modify(random_like(part, 5).float()) for part in (image.features, image.alpha))
        gradients = torch.autograd.grad([image.features, image.alpha], [*sources, background], [d_image, d_alpha])
        results.append([image.features, image.alpha, image.radii, *gradients])
    for ours, right in zip(*results, strict=True):
        assert torch.equal(ours, right)


@interpreted
def test_beyond_what_kernels_can_number_is_refused():
    cloud, camera = single(scattered(1, count=3), make_camera(1 << 16, 1 << 15))
    with pytest.raises(InputError, match="65536 x 32768 pixels at once"):
        rasterize(cloud, camera, torch.zeros(1), backend="triton")


@interpreted
@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 12), (33, 7), (1, 9)])
def test_any_size_is_reference(width, height):
    assert_is_reference(scattered(3, seed=6, count=20), make_camera(width, height))


@interpreted
def test_far_off_centre_principal_point_is_reference():
    assert_is_reference(scattered(3, seed=7), make_camera(19, 13, principal=(14.0, -11.0)))


@interpreted
@pytest.mark.parametrize("count", [15, 16, 17, 100])
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
    assert_is_reference(*on_axis([0.6], [50.0], [2.0], width=28, height=20))


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
    background = some_background(3).float()
    for options in (DEFAULT, RasterOptions(deterministic=True), RasterOptions(capacity=Capacity(7)), RasterOptions(capacity=Capacity(0))):
        picture, alpha, radii, *gradients = drawn("triton", cloud, camera, options)
        assert not alpha.any()
        assert not radii.any()
        assert torch.equal(picture, background[:, None, None].expand_as(picture))
        assert not any(gradient.any() for gradient in gradients[:-1])


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
def test_single_gradients_are_those_of_all():
    cloud, camera = single(scattered(3, count=10), make_camera(13, 9))
    whole, _ = leaves(cloud, camera)
    background = some_background(3).float()
    loss = rasterize(whole, camera, background, backend="triton").features.square().sum()
    expected = torch.autograd.grad(loss, [getattr(whole, name) for name in FIELDS])
    for wanted, right in zip(FIELDS, expected, strict=True):
        alone = dataclasses.replace(cloud, **{wanted: getattr(cloud, wanted).clone().requires_grad_()})
        loss = rasterize(alone, camera, background, backend="triton").features.square().sum()
        assert torch.equal(torch.autograd.grad(loss, getattr(alone, wanted))[0], right)  # also: the same bits every time


@interpreted
def test_without_gradients_nothing_is_kept(monkeypatch):
    saves, original = [], tiled.Draw.apply
    monkeypatch.setattr(tiled.Draw, "apply", lambda *arguments: saves.append(arguments[9].save) or original(*arguments))
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
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    kernels.triton_missing.cache_clear()
    assert "not installed" in kernels.triton_missing(True)
    kernels.triton_missing.cache_clear()


def test_choice_is_said_once(capsys):
    interface._say.cache_clear()
    cloud, camera = single(scattered(1, count=3), make_camera())
    images = [rasterize(cloud, camera, torch.zeros(1)) for _ in range(2)]
    assert capsys.readouterr().out == "rasterizer: reference (tensors on cpu)\n"
    assert torch.equal(images[0].features, rasterize(cloud, camera, torch.zeros(1), backend="reference").features)
