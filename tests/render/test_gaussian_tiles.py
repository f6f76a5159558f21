"""The kernels that project, list and sum Gaussians against `project` in float64, brute force and torch.sort, under the interpreter."""

import contextlib
import dataclasses
import math

import pytest
import torch

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import tiles
from lib.render.gaussian.contract import one_per_camera
from lib.render.gaussian.projection import ALPHA_MIN, NEAR, project
from lib.render.gaussian.tiles import Picture, Rows, project_cloud, project_cloud_backward, sum_pairs, tile_members
from tests.render.test_gaussian_reference import FIELDS, leaves, make_camera, on_axis, scattered, stacked, tied
from tests.render.test_gaussian_triton import double, single
from tests.render.triton_process import installed, interpreted, run_interpreted, starts_interpreter

LOG2_E = math.log2(math.e)
ROOM = 0.03  # of the squared Mahalanobis distance: more than the slack of the kernels
SHAPES = [(8, 4), (8, 8), (16, 16)]
NAMES = ("means", "quats_wxyz", "scales", "opacities")
GUARD, GUARDED = 0x5A5A5A, 64  # a value that nobody writes, and how many of them


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


def picture_of(camera, tile, clip=False):
    return Picture(len(camera.intrinsics), camera.width, camera.height, clip, tile)


def columns_and_rows(picture):
    """Of the tiles of one image."""
    return torch.arange(picture.tiles_x).repeat(picture.tiles_y), torch.arange(picture.tiles_y).repeat_interleave(picture.tiles_x)


@contextlib.contextmanager
def guarded(monkeypatch):
    """Puts values before and behind everything that is allocated for kernels, and looks at them afterwards."""
    buffers, empty, zeros = [], torch.Tensor.new_empty, torch.Tensor.new_zeros

    def allocate(like, *shape, **options):
        if "device" in options:  # by the interpreter
            return empty(like, *shape, **options)
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        buffer = empty(like, 2 * GUARDED + math.prod(shape), **options).fill_(GUARD)
        buffers.append(buffer)
        return buffer[GUARDED:len(buffer) - GUARDED].view(shape)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_empty", allocate)
        patched.setattr(torch.Tensor, "new_zeros", lambda like, *shape, **options: (
            zeros(like, *shape, **options) if "device" in options else allocate(like, *shape, **options).zero_()))
        yield
    assert buffers
    for buffer in buffers:
        assert (buffer[:GUARDED] == GUARD).all()
        assert (buffer[len(buffer) - GUARDED:] == GUARD).all()


def thrown(rows, lengths, picture, room):
    """Keys in the lists of all tiles, not sorted: what happens before `tile_members` sorts them."""
    from lib.render.gaussian.binning_kernels import throw
    from lib.render.gaussian.projection_kernels import LAUNCH

    ends, left = lengths.cumsum(dim=0), torch.full([len(lengths) + 2 * GUARDED], GUARD, dtype=torch.int32)
    left[GUARDED:-GUARDED] = lengths
    keys = torch.full([room + 2 * GUARDED], -1)
    count = len(rows.radii) // picture.images
    throw[(-(-count // tiles.PROJECT_BLOCK), picture.images)](
        rows.geometry, rows.radii, rows.depths, left[GUARDED:-GUARDED], ends, keys[GUARDED:], count, room, picture.width, picture.height,
        BLOCK=tiles.PROJECT_BLOCK, COLUMNS=tiles.COLUMNS, num_warps=tiles.PROJECT_WARPS, **picture.constants(), **LAUNCH,
    )
    assert (torch.cat([left[:GUARDED], left[-GUARDED:]]) == GUARD).all()
    assert (torch.cat([keys[:GUARDED], keys[room + GUARDED:]]) == -1).all()
    return keys[GUARDED:room + GUARDED], left[GUARDED:-GUARDED]


def listed_pairs(rows, lengths, picture):
    """(M, tiles of one image): which pairs are listed. Also checks everything that lists promise but for their order."""
    total, per_image, per_picture = int(lengths.sum()), len(rows.radii) // picture.images, picture.tiles_x * picture.tiles_y
    assert len(lengths) == picture.tiles
    keys, left = thrown(rows, lengths, picture, total + 3)
    assert not left.any()  # counting and listing find the same tiles
    assert (keys[total:] == -1).all()
    tile = torch.arange(picture.tiles).repeat_interleave(lengths.long())
    member = keys[:total] & 0xFFFFFFFF
    assert torch.equal(keys[:total] >> 32, rows.depths[member].view(torch.int32).long())
    assert torch.equal(torch.div(member, per_image, rounding_mode="floor"), torch.div(tile, per_picture, rounding_mode="floor"))
    listed = torch.zeros(len(rows.radii), per_picture, dtype=torch.bool)
    listed[member, tile % per_picture] = True
    assert int(listed.sum()) == total  # nobody twice
    assert torch.equal(listed.any(dim=1), rows.radii > 0)
    return listed


def expected_members(rows, lengths, listed, picture):
    """The lists of a table, by depth, then index."""
    per_image, order = len(rows.radii) // picture.images, rows.depths.argsort(stable=True)
    image = torch.div(order, per_image, rounding_mode="floor")
    whole = torch.cat([order[(image == i)][listed[order[image == i]][:, t]] for i in range(picture.images) for t in range(listed.shape[1])])
    assert len(whole) == int(lengths.sum())
    return whole.int()


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
    picture = picture_of(camera, tile, clip)
    expected = exact(cloud, camera, clip)
    rows, lengths = project_cloud(*single(cloud, camera), picture)
    live = rows.radii > 0
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

    listed = listed_pairs(rows, lengths, picture)
    boxes = (expected.low, expected.extent)
    stored = rows.geometry.double()
    assert not (pixels_in_tiles(stored, boxes if clip else None, camera.width, camera.height, tile) & live[:, None] & ~listed).any()
    if not thin:
        assert not (needs & ~listed).any()
    assert not (listed & ~ellipses_in_tiles(stored, camera.width, camera.height, tile)).any()
    if clip:  # nothing beyond the blocks
        column, row = columns_and_rows(picture)
        first, last = torch.div(expected.low, torch.tensor(tile), rounding_mode="floor"), expected.low + expected.extent - 1
        last = torch.div(last, torch.tensor(tile), rounding_mode="floor")
        inside = (column >= first[:, :1]) & (column <= last[:, :1]) & (row >= first[:, 1:]) & (row <= last[:, 1:])
        assert not (listed & ~inside).any()


@interpreted
@pytest.mark.parametrize("make", [scattered, stacked, tied])
def test_lists_are_ordered_by_depth_then_index(make):
    cloud, camera = single(make(1, count=30), make_camera(37, 21))
    picture = picture_of(camera, (16, 8))
    rows, lengths = project_cloud(cloud, camera, picture)
    expected = expected_members(rows, lengths, listed_pairs(rows, lengths, picture), picture)
    if make is tied:
        assert len(rows.depths[rows.radii > 0].unique()) <= 0.6 * (rows.radii > 0).sum()
    ends = lengths.cumsum(dim=0)
    assert torch.equal(tile_members(rows, lengths, ends, picture, len(expected)), expected)
    assert not lengths.any()  # used up


LENGTHS = (0, 1, 63, 64, 65, 128, 129, 0, 256, 257, 512, 513, 1024, 1025, 2048, 2049)


@interpreted
@pytest.mark.parametrize("missing", [0, 100])
def test_lists_of_any_length_are_sorted(missing):
    from lib.render.gaussian.binning_kernels import sort_long, sort_short

    generator = torch.Generator().manual_seed(0)
    lengths = LENGTHS if missing == 0 else LENGTHS[:10]
    ends = torch.tensor(lengths).cumsum(dim=0)
    total = int(ends[-1])
    room = total - missing
    depths = torch.rand(total, generator=generator)
    depths[::2] = torch.randint(5, (len(depths[::2]),), generator=generator).float()  # many at the same depth
    keys = (depths.view(torch.int32).long() << 32) | torch.randperm(total, generator=generator)
    members = torch.full([total + GUARDED], -1, dtype=torch.int32)
    for kernel, warps in ((sort_short, tiles.SHORT_WARPS), (sort_long, tiles.LONG_WARPS)):
        kernel[(len(lengths),)](ends, keys, members, room, LIMIT=tiles.SORT_LIMIT, num_warps=warps)
    for end, length in zip(ends.tolist(), lengths, strict=True):
        place = slice(end - length, min(end, room))
        assert torch.equal(members[place], keys[place].sort().values.int())
    assert (members[room:] == -1).all()


@interpreted
def test_clipping_leaves_out_what_lies_beyond_three_deviations():
    cloud, camera = on_axis([0.99] * 3, [0.72, 0.5, 2.6], [2.0, 2.1, 2.2], width=90, height=70)
    (whole, whole_lengths), (cut, cut_lengths) = (project_cloud(*single(cloud, camera), picture_of(camera, (8, 8), clip)) for clip in (False, True))
    boxes = exact(cloud, camera, clip=True)
    assert (cut_lengths <= whole_lengths).all()
    assert (cut_lengths < whole_lengths).any()
    assert torch.equal(cut.geometry, whole.geometry)
    pixels = pixels_in_tiles(as_rows(boxes), (boxes.low, boxes.extent), camera.width, camera.height, (8, 8))
    assert not (pixels & ~listed_pairs(cut, cut_lengths, picture_of(camera, (8, 8), True))).any()


@interpreted
def test_one_cloud_is_seen_by_all_cameras():
    cloud, camera = single(scattered(1, batch=1), make_camera(37, 21))
    one, one_lengths = project_cloud(cloud, camera, picture_of(camera, (8, 4)))
    many, many_lengths = project_cloud(one_per_camera(cloud, camera), camera, picture_of(camera, (8, 4)))
    assert torch.equal(one_lengths, many_lengths)
    for name in ("geometry", "depths", "radii"):
        assert torch.equal(getattr(one, name), getattr(many, name))


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
    rows, _ = project_cloud(cloud, camera, picture_of(camera, (8, 4)))
    live = rows.radii > 0
    own, where = leaves(*double(cloud, camera))
    projected = project(one_per_camera(own, where), where)
    moments = draw_moments(projected, live)
    m0, sx, sy, sxx, sxy, syy, _, _ = moments[live].double().unbind(dim=1)
    a, b, c = projected.conics[live].detach().unbind(dim=1)
    total = (projected.means[live] * torch.stack([-(a * sx + b * sy), -(b * sx + c * sy)], dim=1)).sum()
    total = total + (projected.conics[live] * torch.stack([-0.5 * sxx, -sxy, -0.5 * syy], dim=1)).sum() + (projected.log_opacities[live] * m0).sum()
    expected = torch.autograd.grad(total, [*(getattr(own, name) for name in NAMES), where.world_to_camera])
    ours = project_cloud_backward(cloud, camera, rows.radii, moments, True)
    for name, gradient, right in zip((*NAMES, "world_to_camera"), ours, expected, strict=True):
        assert gradient.shape == right.shape
        assert torch.isfinite(gradient).all()
        assert relative(gradient, right) < limit, name
    without = project_cloud_backward(cloud, camera, rows.radii, moments, False)
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
    beyond = ((slope < (-0.15 * 37 - cx) / fx) | (slope > (1.15 * 37 - cx) / fx)).flatten() & (rows.radii > 0)
    assert 3 <= beyond.sum() < (rows.radii > 0).sum()


@interpreted
@pytest.mark.parametrize("name", [*NAMES, "world_to_camera", "intrinsics"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_is_not_drawn_and_changes_nothing(name, value):
    cloud, camera = single(stacked(1, count=8), make_camera(19, 13))
    picture = picture_of(camera, (8, 8), clip=True)
    clean, _ = project_cloud(cloud, camera, picture)
    assert clean.radii[11] > 0
    broken, where = cloud, camera
    if name in NAMES:
        tensor = getattr(cloud, name).clone()
        tensor.view(16, -1)[11, -1] = value
        broken, touched = dataclasses.replace(cloud, **{name: tensor}), torch.arange(16) == 11
    else:
        tensor = getattr(camera, name).clone()
        tensor[1, 1, 1] = value
        where, touched = dataclasses.replace(camera, **{name: tensor}), torch.arange(16) >= 8
    rows, lengths = project_cloud(broken, where, picture)
    drawn_anyway = name == "opacities" and value == 3e38  # opacities above 1 are clamped where they are blended
    if not drawn_anyway:
        assert torch.isposinf(rows.depths[touched]).all()
        assert not rows.radii[touched].any()
    assert torch.isfinite(rows.geometry).all()
    for field in ("geometry", "depths", "radii"):
        assert torch.equal(getattr(rows, field)[~touched], getattr(clean, field)[~touched])
    listed_pairs(rows, lengths, picture)  # also: nobody else is listed
    for seen in (broken, one_of(broken, 1)):
        radii = project_cloud(seen, where, picture)[0].radii
        moments = torch.where((radii > 0)[:, None], torch.ones(16, 8), torch.nan)
        for gradient in project_cloud_backward(seen, where, radii, moments, True):
            assert torch.isfinite(gradient).all() or drawn_anyway


def one_of(cloud, index):
    return GaussianCloud(**{name: getattr(cloud, name)[index:index + 1] for name in FIELDS})


@interpreted
@pytest.mark.parametrize("case", ["none", "behind", "near", "transparent", "beyond all measure"])
def test_nothing_to_list(monkeypatch, case):
    cloud, camera = single(scattered(1, count=20), make_camera())
    cloud = {
        "none": lambda: GaussianCloud(**{name: getattr(cloud, name)[:, :0] for name in FIELDS}),
        "behind": lambda: dataclasses.replace(cloud, means=cloud.means - 50.0 * camera.world_to_camera[:, None, 2, :3]),
        "near": lambda: dataclasses.replace(
            cloud, means=(camera.centers() + 0.99 * NEAR * camera.world_to_camera[:, 2, :3])[:, None].expand_as(cloud.means)),
        "transparent": lambda: dataclasses.replace(cloud, opacities=torch.full_like(cloud.opacities, 0.0039)),
        "beyond all measure": lambda: dataclasses.replace(cloud, scales=cloud.scales * 1e25),
    }[case]()
    picture = picture_of(camera, (16, 8))
    with guarded(monkeypatch):
        rows, lengths = project_cloud(cloud, camera, picture)
        assert not lengths.any()
        assert not rows.radii.any()
        for room in (0, 5):
            assert len(tile_members(rows, lengths, lengths.cumsum(dim=0), picture, room)) == room
        stops, members = torch.zeros_like(lengths), torch.zeros(5, dtype=torch.int32)
        nothing = torch.full([5, 8], torch.nan), torch.full([5, 3], torch.nan)
        for sums in sum_pairs(rows, lengths.cumsum(dim=0), stops, members, picture, *nothing):
            assert not sums.any()
        for gradient in project_cloud_backward(cloud, camera, rows.radii, torch.full((len(rows.radii), 8), torch.nan), True):
            assert not gradient.any()


@interpreted
def test_more_and_less_room_than_pairs(monkeypatch):
    cloud, camera = single(scattered(1, count=30), make_camera(37, 21))
    picture = picture_of(camera, (16, 8))
    with guarded(monkeypatch):
        rows, lengths = project_cloud(cloud, camera, picture)
        total, ends = int(lengths.sum()), lengths.cumsum(dim=0)
        whole = tile_members(rows, lengths.clone(), ends, picture, total)
        wide = tile_members(rows, lengths.clone(), ends, picture, total + 100)
        assert torch.equal(wide[:total], whole)
        assert (wide[total:] == GUARD).all()  # nothing beyond the last list
        tile = torch.arange(picture.tiles).repeat_interleave(lengths.long())
        for room in (0, 1, total // 2, total - 1):
            cut = tile_members(rows, lengths.clone(), ends, picture, room)
            broken = int(tile[room]) if room else 0  # the list that the end of the room goes through: some of it, in order
            start = int(ends[broken] - lengths[broken])
            assert torch.equal(cut[:start], whole[:start])
            place = {member: rank for rank, member in enumerate(whole[start:int(ends[broken])].tolist())}
            ranks = [place[member] for member in cut[start:].tolist()]
            assert ranks == sorted(set(ranks))


@interpreted
def test_more_tiles_than_two_bytes_can_name():
    width, height = 257, 256
    cloud, camera = on_axis([0.9, 0.5], [0.02, 0.02], [2.0, 2.1], width=width, height=height)
    corner = camera.intrinsics.clone()
    corner[:, 0, 2], corner[:, 1, 2] = width - 0.5, height - 0.5
    camera = dataclasses.replace(camera, intrinsics=corner)
    picture = picture_of(camera, (1, 1))
    rows, lengths = project_cloud(*single(cloud, camera), picture)
    assert picture.tiles > 1 << 16
    listed = listed_pairs(rows, lengths, picture)
    assert listed[:, -1].all()
    assert torch.equal(listed, pixels_in_tiles(rows.geometry.double(), None, width, height, (1, 1)))


@interpreted
@pytest.mark.parametrize("clip", [False, True])
def test_rows_and_lengths_that_lie_write_nowhere_else(monkeypatch, clip):
    generator = torch.Generator().manual_seed(0)
    cloud, camera = single(stacked(1, count=16), make_camera(37, 21))
    picture = picture_of(camera, (8, 8), clip)
    rows, _ = project_cloud(cloud, camera, picture)
    geometry, radii, depths = rows.geometry.clone(), rows.radii.clone(), rows.depths.clone()
    strange = torch.tensor([math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, 1e9, -1e9])
    geometry[torch.arange(32), torch.randint(8, (32,), generator=generator)] = strange[torch.randint(8, (32,), generator=generator)]
    depths[::5], radii[::3] = torch.nan, 1 << 24
    lying = Rows(geometry, depths, radii)
    lengths = torch.randint(0, 40, (picture.tiles,), generator=generator, dtype=torch.int32)
    for room in (100, 500, 3000):
        keys, _ = thrown(lying, lengths, picture, room)
        members = keys[keys != -1] & 0xFFFFFFFF
        assert ((members >= 0) & (members < 32)).all()
    with guarded(monkeypatch):
        room = int(lengths.sum()) - 7
        members = tile_members(lying, lengths.clone(), lengths.cumsum(dim=0), picture, room)
        # Lists that are not full show what was in memory; sums must find their way all the same.
        members, stops = torch.where((members >= 0) & (members < 32), members, 0), lengths.clone()
        stops[-1] -= 7
        sum_pairs(lying, lengths.cumsum(dim=0), stops.clamp(min=0), members, picture, torch.ones(room, 8), torch.ones(room, 3))


@interpreted
@pytest.mark.parametrize(("channels", "parts", "clip", "missing"), [(3, 1, False, 0), (70, 2, True, 0), (16, 1, False, 40)])
def test_sums_of_pairs_are_those_of_a_loop(monkeypatch, channels, parts, clip, missing):
    generator = torch.Generator().manual_seed(0)
    cloud, camera = single(tied(1, count=20), make_camera(37, 21))
    picture = picture_of(camera, (16, 8), clip)
    rows, lengths = project_cloud(cloud, camera, picture)
    ends, room = lengths.cumsum(dim=0), int(lengths.sum()) - missing
    starts = torch.cat([ends.new_zeros(1), ends[:-1]]).clamp(max=room)
    members = tile_members(rows, lengths.clone(), ends, picture, room)
    stops = (torch.rand(picture.tiles, generator=generator) * (1 + ends.clamp(max=room) - starts)).int()  # tiles stop anywhere
    # Whole numbers, so that no order of summation matters; what has no row is not to be read.
    geometry = torch.randint(-9, 9, (parts, room, 8), generator=generator).float()
    features = torch.randint(-9, 9, (room, channels), generator=generator).float()
    right_geometry, right_features = torch.zeros(40, 8), torch.zeros(40, channels)
    has_row = torch.zeros(room, dtype=torch.bool)
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        has_row[start:start + stop] = True
        for place in range(start, start + stop):
            right_geometry[members[place]] += geometry[:, place].sum(dim=0)
            right_features[members[place]] += features[place]
    geometry[:, ~has_row], features[~has_row] = torch.nan, torch.nan
    assert has_row.any()
    assert not has_row.all()
    with guarded(monkeypatch):
        ours = sum_pairs(rows, ends, stops, members, picture, geometry.view(-1, 8), features)
    assert torch.equal(ours[0], right_geometry)
    assert torch.equal(ours[1], right_features)


@interpreted
def test_the_same_bits_and_any_strides():
    cloud, camera = single(scattered(1, count=20), make_camera())
    strided = GaussianCloud(**{name: getattr(cloud, name).transpose(0, 1).contiguous().transpose(0, 1) for name in FIELDS})
    turned = Camera(*(value.mT.contiguous().mT for value in (camera.world_to_camera, camera.intrinsics)), camera.width, camera.height)
    picture, moments = picture_of(camera, (8, 4)), torch.ones(40, 8)
    (first, first_lengths), (second, second_lengths) = (project_cloud(*scene, picture) for scene in ((cloud, camera), (strided, turned)))
    assert torch.equal(first.geometry, second.geometry)
    assert torch.equal(first_lengths, second_lengths)
    ends = first_lengths.cumsum(dim=0)
    assert torch.equal(*(tile_members(first, lengths, ends, picture, int(ends[-1])) for lengths in (first_lengths, second_lengths)))
    results = [project_cloud_backward(*scene, first.radii, moments, True) for scene in ((cloud, camera), (strided, turned))]
    for ours, other in zip(*results, strict=True):
        assert torch.equal(ours, other)
