"""The kernels that project, list and sum Gaussians against `project` in float64, brute force and torch.sort, under the interpreter."""

import contextlib
import dataclasses
import itertools
import math
import types

import pytest
import torch

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.render.gaussian import tiles
from lib.render.gaussian.contract import one_per_camera
from lib.render.gaussian.launch import Launch, aligned
from lib.render.gaussian.projection import ALPHA_MIN, CLIP_BLOCK, NEAR, project
from lib.render.gaussian.tiles import Lists, Rows, Scene, Scratch, scene_of
from tests.render.test_gaussian_reference import FIELDS, double, leaves, make_camera, on_axis, scattered, single, stacked, tied
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


def inputs_of(cloud, camera):
    """Of the projection."""
    return tuple(map(aligned, (*(getattr(cloud, name) for name in NAMES), camera.world_to_camera, camera.intrinsics)))


def sizes_of(cloud, camera, tile, clip=False):
    return scene_of(*cloud.means.shape[:2], len(camera.intrinsics), camera.width, camera.height, clip, tile)


def allocated(parts):
    """Tensors of these shapes and types, each by itself."""
    return {name: torch.zeros(0, dtype=dtype).new_empty(shape) for name, (shape, dtype) in parts.items()}


def members_of(scene, rows, counts, room):
    """Members and ranges; the room is that of pairs and of keys."""
    lists, scratch = Lists(**allocated(scene.list_parts(room))), Scratch(**allocated(scene.scratch_parts(room)))
    scene.fill_lists(rows, dataclasses.replace(scratch, counts=counts), lists)
    return lists.members, lists.ranges


def sums_of(scene, rows, ranges, stops, members, *pairs):
    """Sums of rows, of geometry and of features."""
    sums = torch.empty_like(rows.geometry), rows.geometry.new_empty(len(rows.radii), pairs[1].shape[1])
    scene.sum_pairs(rows, Lists(members, ranges), stops, pairs, sums)
    return sums


def gradients_of(scene, inputs, radii, moments, pose):
    """Of means, quats_wxyz, scales, opacities, and world_to_camera if asked for."""
    gradients = [value.new_empty(value.shape) for value in inputs[:4]]
    parts = [moments.new_empty(scene.images, scene.programs, 12)] if pose else []
    scene.project_backward(inputs, radii, moments, (*gradients, *parts))
    return *gradients, scene.pose_gradient(parts[0]) if pose else None


def projected(cloud, camera, tile, clip=False):
    """Sizes, rows, and counts."""
    scene, copy = sizes_of(cloud, camera, tile, clip), torch.tensor([-1, -1])
    rows = Rows(**allocated(scene.row_parts()), radii=torch.zeros(0, dtype=torch.int32).new_empty(scene.images * scene.count))
    scratch = Scratch(**allocated(scene.scratch_parts(0)))
    scene.project(inputs_of(cloud, camera), rows, scratch, copy)
    counts = scratch.counts
    assert copy[0] == counts[0]
    assert copy[1] == counts[-1]  # where the last list ends
    lengths, ends = split(counts, scene)
    assert counts[1] == 0
    assert torch.equal(ends, lengths.cumsum(dim=0))
    return scene, rows, counts


def split(counts, scene):
    """Lengths and ends of the lists of blocks."""
    assert counts.shape == (2 + 2 * scene.blocks,)
    return counts[2:2 + scene.blocks], counts[2 + scene.blocks:]


def columns_and_rows(scene):
    """Of the tiles of one image."""
    tile = torch.arange(scene.tiles_per_image)
    return tile % scene.tiles_x, torch.div(tile, scene.tiles_x, rounding_mode="floor")


def blocks_and_bits(scene):
    """Of every tile: its block, and its bit in the keys of the block."""
    across, down = CLIP_BLOCK // scene.tile[0], CLIP_BLOCK // scene.tile[1]
    column, row = columns_and_rows(scene)
    block = torch.div(row, down, rounding_mode="floor") * scene.blocks_x + torch.div(column, across, rounding_mode="floor")
    blocks = torch.arange(scene.images)[:, None] * scene.blocks_per_image + block
    return blocks.flatten(), (row % down * across + column % across).repeat(scene.images)


@contextlib.contextmanager
def guarded(monkeypatch):
    """Puts values before and behind everything that is allocated for kernels, and looks at them afterwards."""
    buffers, empty = [], torch.Tensor.new_empty

    def allocate(like, *shape, **options):
        if "device" in options:  # by the interpreter
            return empty(like, *shape, **options)
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        buffer = empty(like, 2 * GUARDED + math.prod(shape), **options).fill_(GUARD)
        buffers.append(buffer)
        return buffer[GUARDED:len(buffer) - GUARDED].view(shape)

    def zeros(like, *shape, **options):
        result = allocate(like, *shape, **options)
        return result.zero_()

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_empty", allocate)
        patched.setattr(torch.Tensor, "new_zeros", zeros)
        patched.setattr(torch, "empty_like", lambda like: allocate(like, like.shape))
        yield
    assert buffers
    for buffer in buffers:
        assert (buffer[:GUARDED] == GUARD).all()
        assert (buffer[len(buffer) - GUARDED:] == GUARD).all()


def thrown(rows, counts, scene, room):
    """Keys in the lists of all blocks, not sorted, and counts: what happens before `members` sorts them."""
    from lib.render.gaussian.binning_kernels import throw
    from lib.render.gaussian.projection_kernels import EXACTLY

    left = torch.full([len(counts) + 2 * GUARDED], GUARD)
    left[GUARDED:-GUARDED] = counts
    keys = torch.full([room + 2 * GUARDED], -1)
    throw[(-(-scene.count // tiles.PROJECT_BLOCK), scene.images)](
        rows.geometry, rows.radii, rows.depths, left[GUARDED:-GUARDED], keys[GUARDED:], scene.count, room, scene.width, scene.height,
        CLIP=scene.clip, TILE_X=scene.tile[0], TILE_Y=scene.tile[1], BLOCK=tiles.PROJECT_BLOCK, COLUMNS=tiles.COLUMNS,
        num_warps=tiles.PROJECT_WARPS, **dict(EXACTLY),
    )
    assert (torch.cat([left[:GUARDED], left[-GUARDED:]]) == GUARD).all()
    assert (torch.cat([keys[:GUARDED], keys[room + GUARDED:]]) == -1).all()
    return keys[GUARDED:room + GUARDED], left[GUARDED:-GUARDED]


def listed_pairs(rows, counts, scene):
    """(M, tiles of one image): which pairs are listed. Also checks everything that lists promise but for their order."""
    lengths, ends = split(counts, scene)
    total = int(ends[-1])
    keys, after = thrown(rows, counts, scene, total + 3)
    assert not split(after, scene)[0].any()  # counting and listing find the same tiles
    assert torch.equal(split(after, scene)[1], ends)
    assert (keys[total:] == -1).all()
    keys = keys[:total]
    block, member, bits = torch.arange(scene.blocks).repeat_interleave(lengths), keys >> 8 & 0xFFFFFF, keys & 0xFF
    assert (bits > 0).all()
    assert torch.equal(keys >> 32, rows.depths[member].view(torch.int32).long())
    assert torch.equal(torch.div(member, scene.count, rounding_mode="floor"), torch.div(block, scene.blocks_per_image, rounding_mode="floor"))
    table = torch.zeros(len(rows.radii), scene.blocks_per_image, dtype=torch.long)
    table.index_put_((member, block % scene.blocks_per_image), bits)
    assert int((table > 0).sum()) == total  # nobody twice
    blocks, bit = (value[:scene.tiles_per_image] for value in blocks_and_bits(scene))
    listed = (table[:, blocks] >> bit & 1).bool()
    everything = torch.zeros(scene.blocks_per_image, dtype=torch.long).index_add_(0, blocks, 1 << bit)
    assert not (table & ~everything).any()  # no tile beyond the picture
    assert int(listed.sum()) == counts[0]
    assert torch.equal(listed.any(dim=1), rows.radii > 0)
    return listed


def lists_of(members, ranges):
    """Of every tile. All of them lie in the room, and no two in the same place."""
    begin, count = ranges.long().unbind(dim=1)
    assert (count >= 0).all()
    assert ((begin >= 0) & (begin + count <= len(members))).all()
    order = (begin * (len(members) + 1) + count).argsort()
    assert (begin[order][1:] >= (begin + count)[order][:-1]).all()
    return [members[start:start + length] for start, length in zip(begin.tolist(), count.tolist(), strict=True)]


def expected_lists(rows, listed, scene):
    """The lists of a table, by depth, then index."""
    order = rows.depths.argsort(stable=True)
    image = torch.div(order, scene.count, rounding_mode="floor")
    return [order[(image == i)][listed[order[image == i]][:, t]].int() for i in range(scene.images) for t in range(scene.tiles_per_image)]


def is_part_of(some, whole):
    """Whether some of a list stands in the same order."""
    place = {member: rank for rank, member in enumerate(whole.tolist())}
    ranks = [place.get(member, -1) for member in some.tolist()]
    return ranks == sorted(set(ranks)) and -1 not in ranks


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
    sizes, rows, counts = projected(*single(cloud, camera), tile, clip)
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

    listed = listed_pairs(rows, counts, sizes)
    boxes = (expected.low, expected.extent)
    stored = rows.geometry.double()
    assert not (pixels_in_tiles(stored, boxes if clip else None, camera.width, camera.height, tile) & live[:, None] & ~listed).any()
    if not thin:
        assert not (needs & ~listed).any()
    assert not (listed & ~ellipses_in_tiles(stored, camera.width, camera.height, tile)).any()
    if clip:  # nothing beyond the blocks
        column, row = columns_and_rows(sizes)
        first, last = torch.div(expected.low, torch.tensor(tile), rounding_mode="floor"), expected.low + expected.extent - 1
        last = torch.div(last, torch.tensor(tile), rounding_mode="floor")
        inside = (column >= first[:, :1]) & (column <= last[:, :1]) & (row >= first[:, 1:]) & (row <= last[:, 1:])
        assert not (listed & ~inside).any()


@interpreted
@pytest.mark.parametrize(("make", "tile"), [(scattered, (8, 4)), (stacked, (16, 8)), (tied, (8, 8)), (scattered, (16, 16))])
def test_lists_are_ordered_by_depth_then_index(make, tile):
    scene, rows, counts = projected(*single(make(1, count=30), make_camera(37, 21)), tile)
    if make is tied:
        assert len(rows.depths[rows.radii > 0].unique()) <= 0.6 * (rows.radii > 0).sum()
    expected = expected_lists(rows, listed_pairs(rows, counts, scene), scene)
    total = int(counts[0])
    members, ranges = members_of(scene, rows, counts, total)
    for ours, right in zip(lists_of(members, ranges), expected, strict=True):
        assert torch.equal(ours, right)
    assert ranges[:, 1].sum() == counts[0] == total  # all of the room
    assert not split(counts, scene)[0].any()  # used up


@interpreted
@pytest.mark.parametrize("block", [4, 16])
def test_blocks_are_counted_in_several_steps(monkeypatch, block):
    monkeypatch.setattr(tiles, "SCAN_BLOCK", block)
    scene, copy = Scene(1, 1, 2, 161, 33, False, (8, 8)), torch.tensor([-1, -1])
    assert scene.blocks == 66
    lengths = torch.randint(1 << 32, (66,), generator=torch.Generator().manual_seed(0))
    counts = torch.cat([torch.tensor([1 << 40, 0]), lengths, torch.full([66], GUARD)])
    scene._scan((1,), (counts, copy), (66,))
    assert torch.equal(counts, torch.cat([torch.tensor([1 << 40, 0]), lengths, lengths.cumsum(dim=0)]))
    assert copy.tolist() == [1 << 40, int(lengths.sum())]


LENGTHS = (0, 1, 63, 64, 65, 127, 128, 129, 0, 255, 256, 257, 512, 513, 1024, 1025, 2049)


@interpreted
@pytest.mark.parametrize("missing", [0, 100])
def test_lists_of_any_length_are_sorted(missing):
    from lib.render.gaussian.binning_kernels import merge_runs, sort_lists

    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(LENGTHS if missing == 0 else (*LENGTHS[:13], 1 << 33, 7))
    ends = lengths.cumsum(dim=0)
    room = int(lengths[:13].sum()) - missing if missing else int(ends[-1])
    depths = torch.rand(room, generator=generator)
    depths[::2] = torch.randint(5, (len(depths[::2]),), generator=generator).float()  # many at the same depth
    index = (1 << 24) - room + torch.randperm(room, generator=generator)  # whose highest bit is the sign of a word
    keys = (depths.view(torch.int32).long() << 32) | index << 8 | torch.randint(1, 256, (room,), generator=generator)
    words, sorting = torch.full([room + 2 * GUARDED], GUARD, dtype=torch.int32), torch.full([room + 2 * GUARDED], GUARD)
    sorting[GUARDED:-GUARDED] = keys
    tensors = torch.cat([torch.zeros(2 + len(lengths), dtype=torch.long), ends]), sorting[GUARDED:], words[GUARDED:]
    sort_lists[(len(lengths), tiles.SORT_PROGRAMS)](*tensors, room, RUN=tiles.RUN, num_warps=tiles.SORT_WARPS)
    merge_runs[(len(lengths), tiles.MERGE_PROGRAMS)](
        *tensors, room, RUN=tiles.RUN, STEPS=tiles.RUN.bit_length(), BLOCK=tiles.MERGE_BLOCK, num_warps=tiles.MERGE_WARPS)
    for buffer in (words, sorting):
        assert (torch.cat([buffer[:GUARDED], buffer[-GUARDED:]]) == GUARD).all()
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        place = slice(min(end - length, room), min(end, room))
        assert torch.equal(words[GUARDED:-GUARDED][place], keys[place].sort().values.int())


@interpreted
@pytest.mark.parametrize(("tile", "missing"), [((8, 4), 0), ((16, 16), 0), ((8, 8), 300)])
def test_every_tile_takes_its_own(monkeypatch, tile, missing):
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(tiles, "TAKE_BLOCK", 64)
    scene = Scene(1, 1, 2, 37, 21, False, tile)  # blocks are not whole at two sides
    lengths = torch.randint(20, 200, (scene.blocks,), generator=generator)
    lengths[3], lengths[5], lengths[7] = 0, 64, 128
    ends, per_block = lengths.cumsum(dim=0), (CLIP_BLOCK // tile[0]) * (CLIP_BLOCK // tile[1])
    words = (torch.arange(1 << 24)[-int(ends[-1]):] << 8 | torch.randint(1, 1 << per_block, (int(ends[-1]),), generator=generator)).int()
    blocks, bits = blocks_and_bits(scene)
    expected = [words[ends[block] - lengths[block]:ends[block]] for block in blocks.tolist()]
    expected = [(word[(word >> bit & 1).bool()] >> 8) & 0xFFFFFF for word, bit in zip(expected, bits.tolist(), strict=True)]
    room = max(sum(map(len, expected)) - missing, int(ends[-1]))
    counts = torch.cat([torch.tensor([GUARD, 0]), torch.full([scene.blocks], GUARD), ends])
    members = torch.full([room + 2 * GUARDED], GUARD, dtype=torch.int32)
    ranges = torch.full([2 * scene.tiles + 2 * GUARDED], GUARD, dtype=torch.int32)
    sizes = (room, int(ends[-1]), scene.tiles_x, scene.tiles_per_image, scene.blocks_x, scene.blocks_per_image, scene.blocks)
    scene._list[3]((scene.tiles,), (counts, words, members[GUARDED:], ranges[GUARDED:]), sizes)
    for buffer in (members, ranges):
        assert (torch.cat([buffer[:GUARDED], buffer[-GUARDED:]]) == GUARD).all()
    lists = lists_of(members[GUARDED:-GUARDED], ranges[GUARDED:-GUARDED].view(-1, 2))
    whole = [torch.equal(ours, right) for ours, right in zip(lists, expected, strict=True)]
    assert all(torch.equal(ours, right[:len(ours)]) for ours, right in zip(lists, expected, strict=True))
    assert sum(map(len, lists)) == min(room, sum(map(len, expected)))
    assert all(whole) == (missing == 0)
    assert counts[1] == sum(map(len, expected))


@interpreted
def test_clipping_leaves_out_what_lies_beyond_three_deviations():
    cloud, camera = on_axis([0.99] * 3, [0.72, 0.5, 2.6], [2.0, 2.1, 2.2], width=90, height=70)
    (_, whole, whole_counts), (scene, cut, cut_counts) = (projected(*single(cloud, camera), (8, 8), clip) for clip in (False, True))
    boxes = exact(cloud, camera, clip=True)
    assert (cut_counts <= whole_counts).all()
    assert cut_counts[0] < whole_counts[0]
    assert torch.equal(cut.geometry, whole.geometry)
    pixels = pixels_in_tiles(as_rows(boxes), (boxes.low, boxes.extent), camera.width, camera.height, (8, 8))
    assert not (pixels & ~listed_pairs(cut, cut_counts, scene)).any()


@interpreted
def test_one_cloud_is_seen_by_all_cameras():
    cloud, camera = single(scattered(1, batch=1), make_camera(37, 21))
    _, one, one_counts = projected(cloud, camera, (8, 4))
    _, many, many_counts = projected(one_per_camera(cloud, camera), camera, (8, 4))
    assert torch.equal(one_counts, many_counts)
    for name in ("geometry", "depths", "radii"):
        assert torch.equal(getattr(one, name), getattr(many, name))


def draw_moments(image_plane, live, seed=9):
    """Moments of a few offsets around each mean, as blending would give, rounded to float32."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = image_plane.conics.detach().unbind(dim=1)
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
    scene, rows, _ = projected(cloud, camera, (8, 4))
    live = rows.radii > 0
    own, where = leaves(*double(cloud, camera))
    flat = project(one_per_camera(own, where), where)
    moments = draw_moments(flat, live)
    m0, sx, sy, sxx, sxy, syy, _, _ = moments[live].double().unbind(dim=1)
    a, b, c = flat.conics[live].detach().unbind(dim=1)
    total = (flat.means[live] * torch.stack([-(a * sx + b * sy), -(b * sx + c * sy)], dim=1)).sum()
    total = total + (flat.conics[live] * torch.stack([-0.5 * sxx, -sxy, -0.5 * syy], dim=1)).sum() + (flat.log_opacities[live] * m0).sum()
    expected = torch.autograd.grad(total, [*(getattr(own, name) for name in NAMES), where.world_to_camera])
    ours = gradients_of(scene, inputs_of(cloud, camera), rows.radii, moments, True)
    for name, gradient, right in zip((*NAMES, "world_to_camera"), ours, expected, strict=True):
        assert gradient.shape == right.shape
        assert torch.isfinite(gradient).all()
        assert relative(gradient, right) < limit, name
    without = gradients_of(scene, inputs_of(cloud, camera), rows.radii, moments, False)
    assert without[4] is None
    for gradient, same in zip(without[:4], ours[:4], strict=True):
        assert torch.equal(gradient, same)
    drawn = live.reshape(len(camera.intrinsics), -1)
    drawn = drawn if len(cloud.means) == len(drawn) else drawn.any(dim=0, keepdim=True)
    for gradient in ours[:4]:
        assert not gradient[~drawn].any()
    return rows


@interpreted
@pytest.mark.parametrize("scene", [name for name in SCENES if name not in ("long needles", "one pixel", "wide")])
def test_gradients_are_those_of_autograd(scene):
    assert_gradients(*SCENES[scene](), limit=2e-2 if scene == "needles" else 3e-6)


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
@pytest.mark.parametrize(("name", "value"), [
    *itertools.product([*NAMES, "world_to_camera", "intrinsics"], [math.nan, math.inf, 3e38]), ("means", -math.inf), ("world_to_camera", -math.inf),
])
def test_what_is_not_finite_is_not_drawn_and_changes_nothing(name, value):
    cloud, camera = single(stacked(1, count=8), make_camera(19, 13))
    _, clean, _ = projected(cloud, camera, (8, 8), True)
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
    scene, rows, counts = projected(broken, where, (8, 8), True)
    drawn_anyway = name == "opacities" and value == 3e38  # opacities above 1 are clamped where they are blended
    if not drawn_anyway:
        assert torch.isposinf(rows.depths[touched]).all()
        assert not rows.radii[touched].any()
    assert torch.isfinite(rows.geometry).all()
    for field in ("geometry", "depths", "radii"):
        assert torch.equal(getattr(rows, field)[~touched], getattr(clean, field)[~touched])
    listed_pairs(rows, counts, scene)  # also: nobody else is listed
    for seen in (broken, one_of(broken, 1)):
        scene, rows, _ = projected(seen, where, (8, 8), True)
        moments = torch.where((rows.radii > 0)[:, None], torch.ones(16, 8), torch.nan)
        for gradient in gradients_of(scene, inputs_of(seen, where), rows.radii, moments, True):
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
    with guarded(monkeypatch):
        scene, rows, counts = projected(cloud, camera, (16, 8))
        assert not counts.any()
        assert not rows.radii.any()
        for room in (0, 5):
            members, ranges = members_of(scene, rows, counts, room)
            assert len(members) == room
            assert ranges.shape == (scene.tiles, 2)
            assert not ranges.any()
        stops, members = torch.zeros(scene.tiles, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
        nothing = torch.full([5, 8], torch.nan), torch.full([5, 3], torch.nan)
        for sums in sums_of(scene, rows, ranges, stops, members, *nothing):
            assert not sums.any()
        for gradient in gradients_of(scene, inputs_of(cloud, camera), rows.radii, torch.full((len(rows.radii), 8), torch.nan), True):
            assert not gradient.any()


@interpreted
@pytest.mark.parametrize("tile", [(16, 8), (8, 4)])
def test_more_and_less_room_than_pairs(monkeypatch, tile):
    cloud, camera = single(scattered(1, count=16), make_camera(37, 21))
    with guarded(monkeypatch):
        scene, rows, counts = projected(cloud, camera, tile)
        whole = expected_lists(rows, listed_pairs(rows, counts, scene), scene)
        total, keys = int(counts[0]), int(counts[-1])
        assert keys < total
        members, ranges = members_of(scene, rows, counts.clone(), total + 100)
        for ours, right in zip(lists_of(members, ranges), whole, strict=True):
            assert torch.equal(ours, right)
        assert (members[total:] == GUARD).all()  # nothing beyond the last list
        for room in (0, 1, keys // 2, keys, total - 1):
            used = counts.clone()
            lists = lists_of(*members_of(scene, rows, used, room))
            assert len(lists) == scene.tiles
            for ours, right in zip(lists, whole, strict=True):
                assert is_part_of(ours, right)
            if room >= keys:  # blocks are whole: all of the room is used
                assert sum(map(len, lists)) == room
                assert used[1] == total


@interpreted
def test_more_tiles_than_two_bytes_can_name():
    width, height = 2056, 1024
    cloud, camera = on_axis([0.9, 0.5], [0.02, 0.02], [2.0, 2.1], width=width, height=height)
    corner = camera.intrinsics.clone()
    corner[:, 0, 2], corner[:, 1, 2] = width - 0.5, height - 0.5
    camera = dataclasses.replace(camera, intrinsics=corner)
    scene, rows, counts = projected(*single(cloud, camera), (8, 4))
    assert scene.tiles > 1 << 16
    assert scene.blocks > tiles.SCAN_BLOCK
    listed = listed_pairs(rows, counts, scene)
    assert listed[:, -1].all()
    assert not (pixels_in_tiles(rows.geometry.double(), None, width, height, (8, 4)) & ~listed).any()
    assert listed.sum() < 100


@interpreted
@pytest.mark.parametrize("clip", [False, True])
def test_rows_and_lengths_that_lie_write_nowhere_else(monkeypatch, clip):
    generator = torch.Generator().manual_seed(0)
    cloud, camera = single(stacked(1, count=16), make_camera(37, 21))
    scene, rows, _ = projected(cloud, camera, (8, 8), clip)
    geometry, radii, depths = rows.geometry.clone(), rows.radii.clone(), rows.depths.clone()
    strange = torch.tensor([math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, 1e9, -1e9])
    geometry[torch.arange(32), torch.randint(8, (32,), generator=generator)] = strange[torch.randint(8, (32,), generator=generator)]
    depths[::5], radii[::3] = torch.nan, 1 << 24
    lying = Rows(geometry, depths, radii)
    lengths = torch.randint(0, 40, (scene.blocks,), generator=generator)
    counts = torch.cat([torch.tensor([5, 0]), lengths, lengths.cumsum(dim=0)])
    for room in (30, 100, 3000):
        keys, _ = thrown(lying, counts, scene, room)
        members = keys[keys != -1] >> 8 & 0xFFFFFF
        assert ((members >= 0) & (members < 32)).all()
    with guarded(monkeypatch):
        room = int(lengths.sum()) - 7
        members, ranges = members_of(scene, lying, counts.clone(), room)
        lists_of(members, ranges)
        # Lists that are not full show what was in memory; sums must find their way all the same.
        members, stops = torch.where((members >= 0) & (members < 32), members, 0), ranges[:, 1].contiguous()
        sums_of(scene, lying, ranges, stops, members, torch.ones(room, 8), torch.ones(room, 3))


@interpreted
@pytest.mark.parametrize(("channels", "parts", "clip", "missing"), [(3, 1, False, 0), (70, 2, True, 0), (16, 1, False, 40)])
def test_sums_of_pairs_are_those_of_a_loop(monkeypatch, channels, parts, clip, missing):
    generator = torch.Generator().manual_seed(0)
    cloud, camera = single(tied(1, count=20), make_camera(37, 21))
    scene, rows, counts = projected(cloud, camera, (16, 8), clip)
    room = int(counts[0]) - missing
    members, ranges = members_of(scene, rows, counts, room)
    begins = ranges[:, 0].tolist()
    stops = (torch.rand(scene.tiles, generator=generator) * (1 + ranges[:, 1])).int()  # tiles stop anywhere
    # Whole numbers, so that no order of summation matters; what has no row is not to be read.
    geometry = torch.randint(-9, 9, (parts, room, 8), generator=generator).float()
    features = torch.randint(-9, 9, (room, channels), generator=generator).float()
    right_geometry, right_features = torch.zeros(40, 8), torch.zeros(40, channels)
    has_row = torch.zeros(room, dtype=torch.bool)
    for start, stop in zip(begins, stops.tolist(), strict=True):
        has_row[start:start + stop] = True
        for place in range(start, start + stop):
            right_geometry[members[place]] += geometry[:, place].sum(dim=0)
            right_features[members[place]] += features[place]
    geometry[:, ~has_row], features[~has_row] = torch.nan, torch.nan
    geometry[:, :, 6:], right_geometry[:, 6:] = torch.nan, 0.0  # there are six moments
    assert has_row.any()
    assert not has_row.all()
    with guarded(monkeypatch):
        ours = sums_of(scene, rows, ranges, stops, members, geometry.view(-1, 8), features)
    assert torch.equal(ours[0], right_geometry)
    assert torch.equal(ours[1], right_features)


def at_odd_offset(value):
    """The same numbers, where no vector may be loaded."""
    place = torch.empty(value.numel() + 1, dtype=value.dtype)[1:].view(value.shape).copy_(value)
    assert place.data_ptr() % 16
    return place


CHANGES = {
    "none": lambda value: value.clone(),
    "strides": lambda value: value.transpose(0, 1).contiguous().transpose(0, 1),
    "camera strides": lambda value: value.mT.contiguous().mT if value.dim() == 3 else value,
    "offsets": at_odd_offset,
}


@interpreted
@pytest.mark.parametrize("change", CHANGES)
def test_the_same_bits_wherever_inputs_lie(change):
    cloud, camera = single(scattered(1, count=20), make_camera())
    moments, results = torch.ones(40, 8), []
    for modify in (lambda value: value, CHANGES[change]):
        own = GaussianCloud(**{name: modify(getattr(cloud, name)) for name in FIELDS})
        where = Camera(modify(camera.world_to_camera), modify(camera.intrinsics), camera.width, camera.height)
        scene, rows, counts = projected(own, where, (8, 8))
        lists = lists_of(*members_of(scene, rows, counts.clone(), int(counts[0])))
        gradients = gradients_of(scene, inputs_of(own, where), rows.radii, moments, True)
        results.append([rows.geometry, rows.depths, rows.radii, counts, *lists, *gradients])
    for ours, other in zip(*results, strict=True):
        assert torch.equal(ours, other)


@interpreted
def test_aligned_copies_only_what_it_must():
    value = torch.arange(24.0).view(4, 6)
    assert aligned(value) is value
    for other in (at_odd_offset(value), value.mT.contiguous().mT, value[:, ::2]):
        ours = aligned(other)
        assert ours.is_contiguous()
        assert ours.data_ptr() % 16 == 0
        assert torch.equal(ours, other)


class Kernel:
    """What a launch needs of one, without a device: notes how it was asked for and started."""

    arg_names = ("tensor", "number", "FLAG", "SIZE")

    def __init__(self):
        self.calls, self.runs = [], []

    def __getitem__(self, grid):
        def call(*arguments, **constants):
            self.calls.append((grid, arguments[1:], constants))
            return types.SimpleNamespace(function="function", packed_metadata="metadata", run=lambda *given: self.runs.append(given))
        return call


def test_kernels_are_bound_once_for_every_set_of_numbers(monkeypatch):
    kernel, tensor = Kernel(), torch.zeros(1)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 7, raising=False)
    launch = Launch(kernel, 4, (("enable_fp_fusion", False),), SIZE=16, FLAG=True)
    for number in (5, 5, 6, 5):
        launch((3,), (tensor,), (number,))
    launch((3, 2), (tensor,), (5,))
    constants = {"SIZE": 16, "FLAG": True, "num_warps": 4, "enable_fp_fusion": False}
    assert kernel.calls == [((3,), (5,), constants), ((3,), (6,), constants), ((3, 2), (5,), constants)]
    # Constants in the order of the parameters.
    assert kernel.runs == [(3, 1, 1, 7, "function", "metadata", None, None, None, tensor.data_ptr(), 5, True, 16)] * 2
    for number in range(1100):
        launch((1,), (tensor,), (number,))
    assert len(launch.bound) <= 1024


@interpreted
def test_the_interpreter_binds_nothing():
    scene, _, _ = projected(*single(scattered(1, count=5), make_camera(9, 9)), (8, 8))
    assert not scene._project.bound
    assert not scene._scan.bound
