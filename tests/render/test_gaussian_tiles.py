"""The kernels that project and list Gaussians against `project` in float64 and brute force, under the interpreter, and compiled for sm_90."""

import dataclasses
import math

import pytest
import torch

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import tiles
from lib.render.gaussian.contract import one_per_camera
from lib.render.gaussian.projection import ALPHA_MIN, NEAR, project
from lib.render.gaussian.tiles import project_cloud, project_cloud_backward, recount, tile_lists
from tests.render.test_gaussian_reference import FIELDS, leaves, make_camera, on_axis, scattered, stacked
from tests.render.test_gaussian_triton import double, single
from tests.render.triton_process import compiles, installed, interpreted, run_compiler, run_interpreted, starts_interpreter

LOG2_E = math.log2(math.e)
ROOM = 0.03  # of the squared Mahalanobis distance: more than the slack of the kernels
SHAPES = [(8, 4), (8, 8), (16, 16)]
NAMES = ("means", "quats_wxyz", "scales", "opacities")


def needles(count=12, length=3.0, seed=3):
    """Long and thin, at 45 degrees to the axes of the pictures and near it."""
    cloud = scattered(1, count=count, seed=seed)
    angle = math.pi / 4 + torch.linspace(-0.02, 0.02, count, dtype=torch.float64)
    angle[: count // 2] = math.pi / 4
    quats = torch.stack([(angle / 2).cos(), 0 * angle, 0 * angle, (angle / 2).sin()], dim=-1).expand(2, -1, -1)
    scales = torch.tensor([length, 1e-4, 1e-4], dtype=torch.float64).expand(2, count, 3)
    return dataclasses.replace(cloud, means=0.3 * cloud.means, quats_wxyz=quats, scales=scales, opacities=cloud.opacities.clamp(min=0.2))


def upright(width, height, focal=16.0):
    """Two cameras whose axes are the world's, at z = -4 and -5."""
    camera = make_camera(width, height, focal)
    pose = torch.eye(3, 4, dtype=torch.float64).repeat(2, 1, 1)
    pose[:, 2, 3] = torch.tensor([4.0, 5.0], dtype=torch.float64)
    return dataclasses.replace(camera, world_to_camera=pose)


def aside(count=60, seed=8):
    """Many so far at the side that the Jacobian is taken at the limit, and large enough to be seen."""
    cloud = scattered(1, count=count, seed=seed)
    return dataclasses.replace(cloud, means=cloud.means * torch.tensor([3.0, 3.0, 1.0], dtype=torch.float64), scales=cloud.scales + 0.4)


def huge(count=8):
    cloud = scattered(1, count=count, seed=4)
    return dataclasses.replace(cloud, means=0.2 * cloud.means, scales=cloud.scales + 30.0, opacities=cloud.opacities.clamp(min=0.1))


SCENES = {
    "scattered": lambda: (scattered(1), make_camera(37, 21)),
    "stacked": lambda: (stacked(1, count=20), make_camera(33, 18)),
    "aside": lambda: (aside(), make_camera(37, 21)),
    "off centre": lambda: (scattered(1, count=90, seed=7), make_camera(37, 21, principal=(24.0, -18.0))),
    "needles": lambda: (needles(), upright(75, 61, focal=60.0)),
    "long needles": lambda: (needles(length=60.0), upright(75, 61, focal=60.0)),
    "huge": lambda: (huge(), make_camera(40, 29)),
    "one pixel": lambda: (scattered(1), make_camera(1, 1)),
    "small": lambda: (scattered(1, seed=5), make_camera(9, 17)),
    "wide": lambda: (needles(count=5, length=2.0), upright(4097, 33, focal=900.0)),
}


def exact(cloud, camera, clip=False):
    """`project` in float64 of the numbers that the kernels get."""
    cloud, camera = double(*single(cloud, camera))
    return project(one_per_camera(cloud, camera), camera, clip)


def relative(ours, expected):
    return float((ours.double() - expected).norm() / expected.norm().clamp(min=1e-12))


def as_rows(projected):
    """Means, coefficients of the exponent, and its constant of `project`."""
    a, b, c = projected.conics.unbind(dim=1)
    return torch.stack([*projected.means.unbind(dim=1), -0.5 * LOG2_E * a, -LOG2_E * b, -0.5 * LOG2_E * c, LOG2_E * projected.log_opacities], dim=1)


def pixels_in_tiles(rows, boxes, width, height, tile):
    """(M, tiles of one image): whether alpha reaches 1/255 at the centre of a pixel of the tile that is in the Gaussian's box."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    tiles_x, tiles_y = -(-width // tile[0]), -(-height // tile[1])
    index = (torch.div(y, tile[1], rounding_mode="floor") * tiles_x + torch.div(x, tile[0], rounding_mode="floor")).flatten()
    hits = torch.zeros(len(rows), tiles_x * tiles_y, dtype=torch.bool)
    for m, (mx, my, qa, qb, qc, lo) in enumerate(rows[:, :6].tolist()):
        dx, dy = x + 0.5 - mx, y + 0.5 - my
        seen = lo + qa * dx * dx + qb * dx * dy + qc * dy * dy >= math.log2(ALPHA_MIN)
        if boxes is not None:
            (left, top), (right, bottom) = boxes[0][m].tolist(), (boxes[0][m] + boxes[1][m]).tolist()
            seen &= (x >= left) & (x < right) & (y >= top) & (y < bottom)
        hits[m, index[seen.flatten()]] = True
    return hits


def ellipses_in_tiles(rows, width, height, tile):
    """(M, tiles of one image): whether an ellipse slightly larger meets the rectangle of the tile's pixel centres."""
    tiles_x, tiles_y = -(-width // tile[0]), -(-height // tile[1])
    column, row = torch.arange(tiles_x).repeat(tiles_y), torch.arange(tiles_y).repeat_interleave(tiles_x)
    x, y, qa, qb, qc, lo = (value[:, None] for value in rows[:, :6].double().unbind(dim=1))
    left, top = column * tile[0] + 0.5 - x, row * tile[1] + 0.5 - y
    right, bottom = ((column + 1) * tile[0]).clamp(max=width) - 0.5 - x, ((row + 1) * tile[1]).clamp(max=height) - 0.5 - y

    def form(u, v):
        return -2.0 / LOG2_E * (qa * u * u + qb * u * v + qc * v * v)

    least = torch.where((left <= 0) & (right >= 0) & (top <= 0) & (bottom >= 0), torch.zeros_like(left), torch.inf)
    for u in (left, right):
        least = torch.minimum(least, form(u, torch.minimum(torch.maximum(-0.5 * qb * u / qc, top), bottom)))
    for v in (top, bottom):
        least = torch.minimum(least, form(torch.minimum(torch.maximum(-0.5 * qb * v / qa, left), right), v))
    return least <= 2.0 / LOG2_E * (lo - math.log2(ALPHA_MIN)) + ROOM


def table(lists, per_image):
    """(M, tiles of one image): which pairs are listed. Also checks everything that lists promise."""
    tiles_per_image = lists.tiles_x * lists.tiles_y
    listed = torch.zeros(lists.images * per_image, tiles_per_image, dtype=torch.bool)
    rank = torch.empty(len(lists.order), dtype=torch.long)
    rank[lists.order] = torch.arange(len(rank))
    assert lists.ranges.shape == (lists.images * tiles_per_image, 2)
    covered = 0
    for tile, (start, end) in enumerate(lists.ranges.tolist()):
        assert (start, end) == (0, 0) or (start == covered and end > start)
        covered = max(covered, end)
        members = lists.members[start:end].long()
        assert (members // per_image == tile // tiles_per_image).all()
        assert (rank[members].diff() > 0).all()  # by depth, then index, and nobody twice
        assert torch.equal(lists.order[torch.searchsorted(lists.ends, lists.slots[start:end], right=True)], members)
        listed[members, tile % tiles_per_image] = True
    assert covered == min(int(lists.ends[-1]), len(lists.members)) == int(listed.sum())
    assert torch.equal(lists.slots.sort().values, torch.arange(len(lists.slots)))
    return listed


def listed_pairs(rows, camera, tile, clip=False):
    """The lists of rows, as a table, with the counts checked."""
    images = len(camera.intrinsics)
    lists = tile_lists(rows, images, camera.width, camera.height, tile, clip, int(rows.counts.sum()) + 3)
    listed = table(lists, len(rows.counts) // images)
    assert torch.equal(listed.sum(dim=1).int(), rows.counts)  # counting and listing find the same tiles
    return listed


@installed
@starts_interpreter
def test_under_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_rows_and_lists_are_those_of_float64(scene, clip):
    cloud, camera = SCENES[scene]()
    tile = SHAPES[len(scene) % 3]
    expected = exact(cloud, camera, clip)
    rows = project_cloud(*single(cloud, camera), clip, tile)
    live = rows.counts > 0
    assert live.sum() >= 5
    assert torch.isfinite(rows.geometry).all()
    reference = as_rows(expected)
    needs = pixels_in_tiles(reference, (expected.low, expected.extent), camera.width, camera.height, tile)
    assert not (needs.any(dim=1) & ~live).any()
    assert not (live & (expected.extent == 0).any(dim=1)).any()
    thin = "needles" in scene or scene == "wide"  # where conics are known from rounded inputs to fewer digits
    for columns in ([0], [1], [2], [3], [4], [5], [0, 1, 2, 3, 4, 5]):
        assert relative(rows.geometry[live][:, columns], reference[live][:, columns]) < (3e-4 if thin else 1e-5), columns
    assert relative(rows.depths[live], expected.depths[live]) < 1e-6
    assert torch.isposinf(rows.depths[~live]).all()
    assert torch.equal(rows.radii[live], expected.radii[live])
    assert not rows.radii[~live].any()
    opacities = single(cloud, camera)[0].opacities.double().flatten()
    reach = 2.0 * (opacities / ALPHA_MIN).log()[live] + 0.01
    determinant = 1.0 / (expected.conics[:, 0] * expected.conics[:, 2] - expected.conics[:, 1].square())[live]
    half = (reach * determinant)[:, None].sqrt() * expected.conics[live][:, [2, 0]].sqrt()
    assert relative(rows.geometry[live, 6:], half) < 1e-4

    listed = listed_pairs(rows, camera, tile, clip)
    boxes = (expected.low, expected.extent)
    stored = rows.geometry.double()
    assert not (pixels_in_tiles(stored, boxes if clip else None, camera.width, camera.height, tile) & live[:, None] & ~listed).any()
    if not thin:
        assert not (needs & ~listed).any()
    assert not (listed & ~ellipses_in_tiles(stored, camera.width, camera.height, tile)).any()
    if clip:  # nothing beyond the blocks
        tiles_x, tiles_y = -(-camera.width // tile[0]), -(-camera.height // tile[1])
        column, row = torch.arange(tiles_x).repeat(tiles_y), torch.arange(tiles_y).repeat_interleave(tiles_x)
        first, last = torch.div(expected.low, torch.tensor(tile), rounding_mode="floor"), expected.low + expected.extent - 1
        last = torch.div(last, torch.tensor(tile), rounding_mode="floor")
        inside = (column >= first[:, :1]) & (column <= last[:, :1]) & (row >= first[:, 1:]) & (row <= last[:, 1:])
        assert not (listed & ~inside).any()


@interpreted
def test_clipping_leaves_out_what_lies_beyond_three_deviations():
    cloud, camera = on_axis([0.99] * 3, [0.72, 0.5, 2.6], [2.0, 2.1, 2.2], width=90, height=70)
    whole, cut = (project_cloud(*single(cloud, camera), clip, (8, 8)) for clip in (False, True))
    boxes = exact(cloud, camera, clip=True)
    assert (cut.counts < whole.counts).any()
    assert torch.equal(cut.geometry, whole.geometry)
    pixels = pixels_in_tiles(as_rows(boxes), (boxes.low, boxes.extent), camera.width, camera.height, (8, 8))
    assert not (pixels & ~listed_pairs(cut, camera, (8, 8), clip=True)).any()


@interpreted
def test_one_cloud_is_seen_by_all_cameras():
    cloud, camera = single(scattered(1, batch=1), make_camera(37, 21))
    one = project_cloud(cloud, camera, False, (8, 4))
    many = project_cloud(one_per_camera(cloud, camera), camera, False, (8, 4))
    for name in ("geometry", "depths", "counts", "radii"):
        assert torch.equal(getattr(one, name), getattr(many, name))


@interpreted
@pytest.mark.parametrize("clip", [False, True])
def test_recounting_is_counting(clip):
    cloud, camera = single(aside(), make_camera(37, 21))
    rows = project_cloud(cloud, camera, clip, (8, 4))
    other = project_cloud(cloud, camera, clip, (16, 8))
    both = (rows.counts > 0) & (other.counts > 0)
    assert torch.equal(recount(rows, 37, 21, clip, (8, 4)).counts, rows.counts)
    assert torch.equal(recount(rows, 37, 21, clip, (16, 8)).counts[both], other.counts[both])
    listed_pairs(recount(rows, 37, 21, clip, (16, 8)), camera, (16, 8), clip)


def draw_moments(projected, live, seed=9):
    """Moments of a few offsets around each mean, as blending would give, rounded to float32."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = projected.conics.detach().unbind(dim=1)
    root = torch.linalg.cholesky(torch.linalg.inv(torch.stack([a, b, b, c], dim=1).reshape(-1, 2, 2)))
    offsets = (root[:, None] @ torch.randn(len(a), 6, 2, 1, generator=generator, dtype=torch.float64))[..., 0]
    v = torch.randn(len(a), 6, generator=generator, dtype=torch.float64)
    dx, dy = offsets.unbind(dim=-1)
    zero = torch.zeros_like(v)
    moments = torch.stack([(v * f).sum(dim=1) for f in (zero + 1, dx, dy, dx * dx, dx * dy, dy * dy, zero, zero)], dim=1).float()
    moments[~live] = torch.nan  # not to be read
    return moments


def assert_gradients(cloud, camera, limit=3e-6):
    cloud, camera = single(cloud, camera)
    rows = project_cloud(cloud, camera, False, (8, 4))
    live = rows.counts > 0
    own, where = leaves(*double(cloud, camera))
    projected = project(one_per_camera(own, where), where)
    moments = draw_moments(projected, live)
    m0, sx, sy, sxx, sxy, syy, _, _ = moments[live].double().unbind(dim=1)
    a, b, c = projected.conics[live].detach().unbind(dim=1)
    total = (projected.means[live] * torch.stack([-(a * sx + b * sy), -(b * sx + c * sy)], dim=1)).sum()
    total = total + (projected.conics[live] * torch.stack([-0.5 * sxx, -sxy, -0.5 * syy], dim=1)).sum() + (projected.log_opacities[live] * m0).sum()
    expected = torch.autograd.grad(total, [*(getattr(own, name) for name in NAMES), where.world_to_camera])
    ours = project_cloud_backward(cloud, camera, rows.counts, moments, True)
    for name, gradient, right in zip((*NAMES, "world_to_camera"), ours, expected, strict=True):
        assert gradient.shape == right.shape
        assert torch.isfinite(gradient).all()
        assert relative(gradient, right) < limit, name
    without = project_cloud_backward(cloud, camera, rows.counts, moments, False)
    assert without[4] is None
    for gradient, same in zip(without[:4], ours[:4], strict=True):
        assert torch.equal(gradient, same)
    drawn = live.reshape(len(camera.intrinsics), -1)
    drawn = drawn if len(cloud.means) == len(drawn) else drawn.any(dim=0, keepdim=True)
    for gradient in ours[:4]:
        assert not gradient[~drawn].any()
    return rows


@interpreted
@pytest.mark.parametrize("scene", [name for name in SCENES if name not in ("long needles", "one pixel")])
def test_gradients_are_those_of_autograd(scene):
    assert_gradients(*SCENES[scene](), limit=2e-2 if scene in ("needles", "wide") else 3e-6)


@interpreted
@pytest.mark.parametrize("make", [scattered, stacked])
def test_gradients_of_one_cloud_are_summed_over_cameras(make):
    assert_gradients(make(1, batch=1, count=150), make_camera(37, 21))  # several programs


@interpreted
def test_gradients_where_the_jacobian_is_limited():
    cloud, camera = single(aside(), make_camera(37, 21))
    rows = assert_gradients(cloud, camera)
    points = camera.to_camera(cloud.means)
    slope = points[..., 0] / points[..., 2]
    fx, cx = camera.intrinsics[:, 0, 0, None], camera.intrinsics[:, 0, 2, None]
    beyond = ((slope < (-0.15 * 37 - cx) / fx) | (slope > (1.15 * 37 - cx) / fx)).flatten() & (rows.counts > 0)
    assert 3 <= beyond.sum() < (rows.counts > 0).sum()


@interpreted
@pytest.mark.parametrize("name", [*NAMES, "world_to_camera", "intrinsics"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_is_not_drawn_and_changes_nothing(name, value):
    cloud, camera = single(stacked(1, count=8), make_camera(19, 13))
    clean = project_cloud(cloud, camera, True, (8, 8))
    assert clean.counts[11] > 0
    broken, where = cloud, camera
    if name in NAMES:
        tensor = getattr(cloud, name).clone()
        tensor.view(16, -1)[11, -1] = value
        broken, touched = dataclasses.replace(cloud, **{name: tensor}), torch.arange(16) == 11
    else:
        tensor = getattr(camera, name).clone()
        tensor[1, 1, 1] = value
        where, touched = dataclasses.replace(camera, **{name: tensor}), torch.arange(16) >= 8
    rows = project_cloud(broken, where, True, (8, 8))
    drawn_anyway = name == "opacities" and value == 3e38  # opacities above 1 are clamped where they are blended
    if not drawn_anyway:
        assert not rows.counts[touched].any()
        assert torch.isposinf(rows.depths[touched]).all()
        assert not rows.radii[touched].any()
    assert torch.isfinite(rows.geometry).all()
    for field in ("geometry", "depths", "counts", "radii"):
        assert torch.equal(getattr(rows, field)[~touched], getattr(clean, field)[~touched])
    listed_pairs(rows, where, (8, 8), clip=True)
    for seen in (broken, one_of(broken, 1)):
        counts = project_cloud(seen, where, True, (8, 8)).counts
        moments = torch.where((counts > 0)[:, None], torch.ones(16, 8), torch.nan)
        for gradient in project_cloud_backward(seen, where, counts, moments, True):
            assert torch.isfinite(gradient).all() or drawn_anyway


def one_of(cloud, index):
    return GaussianCloud(**{name: getattr(cloud, name)[index:index + 1] for name in FIELDS})


@interpreted
@pytest.mark.parametrize("case", ["none", "behind", "near", "transparent", "beyond all measure"])
def test_nothing_to_list(case):
    cloud, camera = single(scattered(1, count=20), make_camera())
    cloud = {
        "none": lambda: GaussianCloud(**{name: getattr(cloud, name)[:, :0] for name in FIELDS}),
        "behind": lambda: dataclasses.replace(cloud, means=cloud.means - 50.0 * camera.world_to_camera[:, None, 2, :3]),
        "near": lambda: dataclasses.replace(
            cloud, means=(camera.centers() + 0.99 * NEAR * camera.world_to_camera[:, 2, :3])[:, None].expand_as(cloud.means)),
        "transparent": lambda: dataclasses.replace(cloud, opacities=torch.full_like(cloud.opacities, 0.0039)),
        "beyond all measure": lambda: dataclasses.replace(cloud, scales=cloud.scales * 1e25),
    }[case]()
    rows = project_cloud(cloud, camera, False, (8, 4))
    assert not rows.counts.any()
    for room in (0, 5):
        lists = tile_lists(rows, 2, camera.width, camera.height, (8, 4), False, room)
        assert len(lists.members) == len(lists.slots) == room
        assert not lists.ranges.any()
        assert not lists.members.any()
    for gradient in project_cloud_backward(cloud, camera, rows.counts, torch.full((len(rows.counts), 8), torch.nan), True):
        assert not gradient.any()
    assert len(recount(rows, camera.width, camera.height, False, (4, 4)).counts) == len(rows.counts)


@interpreted
def test_more_and_less_room_than_pairs():
    cloud, camera = single(scattered(1, count=30), make_camera(37, 21))
    rows = project_cloud(cloud, camera, False, (8, 4))
    total = int(rows.counts.sum())
    whole = tile_lists(rows, 2, 37, 21, (8, 4), False, total)
    table(whole, 30)
    wide = tile_lists(rows, 2, 37, 21, (8, 4), False, total + 100)
    assert torch.equal(wide.ranges, whole.ranges)
    assert torch.equal(wide.members[:total], whole.members)
    assert torch.equal(wide.slots[:total], whole.slots)
    for room in (1, total // 2, total - 1):
        cut = tile_lists(rows, 2, 37, 21, (8, 4), False, room)
        table(cut, 30)
        assert int(cut.ends[-1]) == total  # how much is missing is known
        kept = whole.slots < room
        assert torch.equal(cut.members, whole.members[kept])
        assert torch.equal(cut.slots, whole.slots[kept])


@interpreted
def test_long_keys_give_the_same_lists(monkeypatch):
    cloud, camera = single(stacked(1, count=10), make_camera(37, 21))
    rows = project_cloud(cloud, camera, False, (8, 8))
    short = tile_lists(rows, 2, 37, 21, (8, 8), False, 1000)
    monkeypatch.setattr(tiles, "SHORT_TILES", 29)
    long = tile_lists(rows, 2, 37, 21, (8, 8), False, 1000)
    for name in ("members", "ranges", "slots"):
        assert torch.equal(getattr(short, name), getattr(long, name))


@interpreted
@pytest.mark.parametrize(("width", "height"), [(257, 255), (256, 256)])  # as many tiles as short keys, and one more
def test_as_many_tiles_as_keys(width, height):
    cloud, camera = on_axis([0.9, 0.5], [0.02, 0.02], [2.0, 2.1], width=width, height=height)
    corner = camera.intrinsics.clone()
    corner[:, 0, 2], corner[:, 1, 2] = width - 0.5, height - 0.5
    camera = dataclasses.replace(camera, intrinsics=corner)
    rows = project_cloud(*single(cloud, camera), False, (1, 1))
    lists = tile_lists(rows, 1, width, height, (1, 1), False, int(rows.counts.sum()) + 2)
    listed = torch.zeros(2, width * height, dtype=torch.bool)
    for tile in lists.ranges.diff(dim=1)[:, 0].nonzero()[:, 0].tolist():
        start, end = lists.ranges[tile].tolist()
        listed[lists.members[start:end].long(), tile] = True
    assert int(lists.ranges.diff(dim=1).sum()) == int(rows.counts.sum())  # the key of no tile is not that of the last
    assert listed[:, -1].all()
    assert torch.equal(listed, pixels_in_tiles(rows.geometry.double(), None, width, height, (1, 1)))


@interpreted
def test_rows_and_counts_that_lie_write_nowhere_else():
    generator = torch.Generator().manual_seed(0)
    cloud, camera = single(stacked(1, count=16), make_camera(37, 21))
    rows = project_cloud(cloud, camera, True, (8, 8))
    geometry = rows.geometry.clone()
    strange = torch.tensor([math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, 1e9, -1e9])
    geometry[torch.arange(32), torch.randint(8, (32,), generator=generator)] = strange[torch.randint(8, (32,), generator=generator)]
    counts = torch.randint(0, 40, (32,), generator=generator, dtype=torch.int32)
    lists = tile_lists(dataclasses.replace(rows, geometry=geometry, counts=counts), 2, 37, 21, (8, 8), True, 500)
    assert ((lists.members >= 0) & (lists.members < 32)).all()
    tile = torch.full((500,), -1)
    for index, (start, end) in enumerate(lists.ranges.tolist()):
        assert 0 <= start <= end <= 500
        tile[start:end] = index
    assert torch.equal(lists.members[tile >= 0] // 16, (tile // 15)[tile >= 0].int())
    counted = recount(dataclasses.replace(rows, geometry=geometry), 37, 21, True, (8, 8)).counts
    assert ((counted >= 0) & (counted <= 15)).all()


@interpreted
def test_the_same_bits_and_any_strides():
    cloud, camera = single(scattered(1, count=20), make_camera())
    strided = GaussianCloud(**{name: getattr(cloud, name).transpose(0, 1).contiguous().transpose(0, 1) for name in FIELDS})
    turned = Camera(*(value.mT.contiguous().mT for value in (camera.world_to_camera, camera.intrinsics)), camera.width, camera.height)
    first, second = project_cloud(cloud, camera, False, (8, 4)), project_cloud(strided, turned, False, (8, 4))
    assert torch.equal(first.geometry, second.geometry)
    moments = torch.ones(40, 8)
    results = [project_cloud_backward(*scene, first.counts, moments, True) for scene in ((cloud, camera), (strided, turned))]
    for ours, other in zip(*results, strict=True):
        assert torch.equal(ours, other)


COMPILE = """
import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lib.render.gaussian import binning_kernels, projection_kernels
from lib.render.gaussian.tiles import BACKWARD_BLOCK, BACKWARD_WARPS, EMIT_BLOCK, EMIT_WARPS, FORWARD_BLOCK, FORWARD_WARPS, GATHER_BLOCK, GATHER_WARPS

BOTH = (False, True)
SCALARS = {"count", "images", "width", "height", "rows", "gaussians", "per_image", "pairs", "steps", "tiles"}
INTEGERS = {"counts", "radii", "ends", "members", "ranges"}
shape = dict(TILE_X=8, TILE_Y=4)
forward, backward, count = projection_kernels.project_forward, projection_kernels.project_backward, projection_kernels.count_tiles
emit, gather = binning_kernels.emit, binning_kernels.gather_ranges
variants = [(forward, FORWARD_WARPS, dict(SHARED=s, CLIP=c, BLOCK=FORWARD_BLOCK, **shape)) for s in BOTH for c in BOTH]
variants += [(count, FORWARD_WARPS, dict(CLIP=c, BLOCK=FORWARD_BLOCK, **shape)) for c in BOTH]
variants += [(backward, BACKWARD_WARPS, dict(SHARED=s, POSE=p, BLOCK=BACKWARD_BLOCK)) for s in BOTH for p in BOTH]
variants += [(emit, EMIT_WARPS, dict(SHORT=s, CLIP=c, BLOCK=EMIT_BLOCK, **shape)) for s in BOTH for c in BOTH]
variants += [(gather, GATHER_WARPS, dict(SHORT=s, BLOCK=GATHER_BLOCK)) for s in BOTH]


def kind(name, kernel, constants):
    if name in constants:
        return "constexpr"
    if name == "gaussians" and kernel is gather:
        return "*i32"
    if name in SCALARS:
        return "i32"
    if name == "members" or name in INTEGERS:
        return "*i32"
    if name in ("order", "slots"):
        return "*i64"
    return ("*i16" if constants["SHORT"] else "*i32") if name == "keys" else "*fp32"


ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
for kernel, warps, constants in variants:
    signature = {name: kind(name, kernel, constants) for name in kernel.arg_names}
    options = {"num_warps": warps, **projection_kernels.LAUNCH}
    compiled = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    command = [ptxas, "-v", "--gpu-name=sm_90a", "--fmad=false", "-o", "/dev/null", "-"]
    listing = subprocess.run(command, input=compiled.asm["ptx"], capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\\d+) bytes stack frame, (\\d+) bytes spill stores, (\\d+) bytes spill loads", listing)
    registers = int(re.search(r"Used (\\d+) registers", listing)[1])
    flags = {name: value for name, value in constants.items() if isinstance(value, bool)}
    print(kernel.__name__, flags, "registers", registers, "shared", compiled.metadata.shared)
    assert spills.groups() == ("0", "0", "0"), (kernel.__name__, flags, listing)
    assert registers <= 168 and compiled.metadata.shared <= 4096, (kernel.__name__, flags, registers, compiled.metadata.shared)
"""


@installed
@compiles
def test_kernels_compile_for_sm_90_without_a_gpu(tmp_path):
    print(run_compiler(COMPILE, tmp_path))
