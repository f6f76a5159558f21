"""Tetrahedral grids: generation, subdivision, differentiable marching tetrahedra.

Every tetrahedron (a, b, c, d) is positive, det[b-a, c-a, d-a] > 0, so extracted surfaces have outward normals.
"""

import functools
from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.errors import InputError
from lib.tensors import TensorBundle

BoundingBox = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # along x, y, z

# Local vertex pairs of a tetrahedron; the row is the local edge number used by the tables below.
EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
# A field counts as at least this outside: about the rounding of a float32 of size 1.
LEAST_OUTSIDE = 1e-7


@dataclass(frozen=True)
class TetGrid(TensorBundle):
    """Vertices (canonical units) and positively oriented tetrahedra."""

    vertices: Float[Tensor, "N 3"]
    tets: Int[Tensor, "T 4"]


@dataclass(frozen=True)
class IsoSurface(TensorBundle):
    """Zero level of a field on a tetrahedral grid: vertex positions, their interpolated features, triangles."""

    vertices: Float[Tensor, "M 3"]
    features: Float[Tensor, "M C"]
    faces: Int[Tensor, "F 3"]


def body_centred_grid(bbox: BoundingBox | list[list[float]], cells: int) -> TetGrid:
    """Body-centred cubic lattice filling the box [[x0,x1],[y0,y1],[z0,z1]] exactly, `cells` along its longest side.

    About 2·nx·ny·nz vertices and 12·nx·ny·nz tetrahedra.
    """
    low = torch.tensor([side[0] for side in bbox], dtype=torch.float64)
    high = torch.tensor([side[1] for side in bbox], dtype=torch.float64)
    if cells < 1 or (high <= low).any():
        raise InputError(f"meshheadmodule: cannot build a grid of {cells} cells over model_bbox {bbox}; "
                         "expected [[x0,x1],[y0,y1],[z0,z1]] with each second number larger")
    counts = torch.round((high - low) / ((high - low).max() / cells)).clamp(min=1).long()
    nx, ny, nz = (int(count) for count in counts)

    def lattice(*sizes: int) -> Int[Tensor, "K 3"]:
        return torch.stack(torch.meshgrid(*[torch.arange(size) for size in sizes], indexing="ij"), dim=-1).reshape(-1, 3)

    def corner(index: Int[Tensor, "K 3"]) -> Int[Tensor, "K"]:
        return (index[:, 0] * (ny + 1) + index[:, 1]) * (nz + 1) + index[:, 2]

    corners, cubes = lattice(nx + 1, ny + 1, nz + 1), lattice(nx, ny, nz)
    step = (high - low) / counts
    points = torch.cat([low + step * corners, low + step * (cubes + 0.5)])

    tets = []
    for axis in range(3):
        u, v = torch.eye(3, dtype=torch.long)[[(axis + 1) % 3, (axis + 2) % 3]]
        sizes = [nx, ny, nz]
        sizes[axis] += 1
        faces = lattice(*sizes)  # cell faces perpendicular to `axis`; their lower cube is one step down the axis
        centre_index = faces.clone()
        centre_index[:, axis] -= 1
        below = len(corners) + (centre_index[:, 0] * ny + centre_index[:, 1]) * nz + centre_index[:, 2]
        above = len(corners) + (faces[:, 0] * ny + faces[:, 1]) * nz + faces[:, 2]
        inside = (faces[:, axis] > 0) & (faces[:, axis] < [nx, ny, nz][axis])
        ring = [corner(faces), corner(faces + u), corner(faces + u + v), corner(faces + v)]
        for k in range(4):
            tets.append(torch.stack([below, ring[k], ring[(k + 1) % 4], above], dim=1)[inside])
        for apex, outer in ((above, faces[:, axis] == 0), (below, faces[:, axis] == sizes[axis] - 1)):
            for triangle in ((0, 1, 2), (0, 2, 3)):  # the boundary has half a double pyramid: split its square in two
                tets.append(torch.stack([apex, *(ring[k] for k in triangle)], dim=1)[outer])
    return oriented(TetGrid(points.float(), torch.cat(tets)))


def oriented(grid: TetGrid) -> TetGrid:
    """The same grid with two vertices of every negative tetrahedron exchanged."""
    a, b, c, d = grid.vertices.double()[grid.tets].unbind(dim=1)
    negative = (torch.linalg.cross(b - a, c - a) * (d - a)).sum(dim=-1) < 0
    return TetGrid(grid.vertices, torch.where(negative[:, None], grid.tets[:, [0, 1, 3, 2]], grid.tets))


def subdivide(grid: TetGrid) -> TetGrid:
    """Edge midpoints, 1 -> 8 tetrahedra. Original vertices keep their rows; orientation is kept."""
    edges = grid.tets[:, _tables(grid.tets.device)[0]]  # (T, 6, 2)
    unique, inverse = _unique_edges(edges.reshape(-1, 2), len(grid.vertices))
    middle = len(grid.vertices) + inverse.reshape(-1, 6)
    vertices = torch.cat([grid.vertices, grid.vertices[unique].mean(dim=1)])
    m01, m02, m03, m12, m13, m23 = middle.unbind(dim=1)
    a, b, c, d = grid.tets.unbind(dim=1)
    children = [
        (a, m01, m02, m03), (m01, b, m12, m13), (m02, m12, c, m23), (m03, m13, m23, d),
        # The inner octahedron, cut along its diagonal m02-m13.
        (m02, m13, m01, m12), (m02, m13, m03, m01), (m02, m13, m23, m03), (m02, m13, m12, m23),
    ]
    tets = torch.stack([torch.stack(child, dim=1) for child in children], dim=1).reshape(-1, 4)
    return TetGrid(vertices, tets)


@dataclass(frozen=True)
class Crossings(TensorBundle):
    """Where the zero level crosses a grid. It follows from the signs at the grid's vertices alone, so a field is needed at `ends` only."""

    ends: Int[Tensor, "K"]  # grid vertices at the ends of crossed edges, in order
    outside: Bool[Tensor, "K"]  # their signs
    edges: Int[Tensor, "M 2"]  # crossed edges as places in `ends`, lower vertex first; one vertex of the surface each
    faces: Int[Tensor, "F 3"]  # triangles of the surface


def find_crossings(tets: Int[Tensor, "T 4"], outside: Bool[Tensor, "N"]) -> Crossings:
    """The edges that the zero level crosses and its triangles; none where all signs are equal."""
    local_edges, triangles, counts, weights = _tables(tets.device)
    pattern = (outside[tets] * weights).sum(dim=1, dtype=torch.int8)
    crossed = ((pattern > 0) & (pattern < 15)).nonzero()[:, 0]
    pattern = pattern[crossed].long()
    ends = tets[crossed][:, local_edges]  # (K, 6, 2)
    low, high = ends.amin(dim=2), ends.amax(dim=2)
    # Every crossed tetrahedron also has edges that are not: one key behind all others, so that what is dropped needs no list of its own.
    none = len(outside) ** 2
    keys = torch.where(outside[low] != outside[high], low * len(outside) + high, none)
    unique, vertex_of_edge = torch.unique(keys, return_inverse=True)
    unique = unique[:-1]
    edges = torch.stack([unique // len(outside), unique % len(outside)], dim=1)

    used = torch.zeros_like(outside).index_fill(0, edges.reshape(-1), True)
    rows = used.nonzero()[:, 0]
    place = torch.cumsum(used, dim=0) - 1
    second = (counts[pattern] > 1).nonzero()[:, 0]
    faces = [torch.gather(vertex_of_edge[has], 1, triangles[pattern[has], k]) for k, has in ((0, slice(None)), (1, second))]
    return Crossings(rows, outside[rows], place[edges], torch.cat(faces))


def zero_level(
    crossings: Crossings, positions: Float[Tensor, "K 3"], sdf: Float[Tensor, "K"], features: Float[Tensor, "K C"]
) -> IsoSurface:
    """The surface of a field given at `crossings.ends`, linear on every edge; differentiable in positions, sdf and features.

    A value whose sign is not the one that the crossings were found with (by other rounding) counts as zero: the surface passes through
    that grid vertex, and nothing is divided by zero.
    """
    sdf = torch.where(crossings.outside, sdf.clamp(min=LEAST_OUTSIDE), sdf.clamp(max=0.0))
    start, end = crossings.edges.unbind(dim=1)

    def ends(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.index_select(0, start), values.index_select(0, end)  # unlike indexing, its gradient needs no sorting

    first, second = ends(sdf)
    weight = (first / (first - second))[:, None]  # of the end
    return IsoSurface(torch.lerp(*ends(positions), weight), torch.lerp(*ends(features), weight), crossings.faces)


def marching_tetrahedra(
    grid: TetGrid, positions: Float[Tensor, "N 3"], sdf: Float[Tensor, "N"], features: Float[Tensor, "N C"]
) -> IsoSurface:
    """Zero level of `sdf` (> 0 outside), linear on every edge; differentiable in positions, sdf and features.

    Raises InputError when the field has one sign everywhere: there is no surface.
    """
    crossings = find_crossings(grid.tets, sdf > 0)
    check_crossings(crossings, sdf)
    rows = crossings.ends
    return zero_level(crossings, positions.index_select(0, rows), sdf.index_select(0, rows), features.index_select(0, rows))


def check_crossings(crossings: Crossings, sdf: Float[Tensor, "N"]) -> None:
    """Raises InputError when there are none, as the field `sdf` has one sign everywhere."""
    if len(crossings.faces) == 0:
        low, high = (float(value) for value in torch.aminmax(sdf.detach()))
        raise InputError(
            f"marching tetrahedra: the sdf is {'positive' if low > 0 else 'negative'} at all {len(sdf)} grid "
            f"vertices (from {low:.3g} to {high:.3g}), so there is no surface. Does the head lie inside "
            "meshheadmodule.model_bbox, in canonical units of about 2 per head? Wrong scale or pose in params.npz is the usual cause."
        )


def _unique_edges(edges: Int[Tensor, "K 2"], vertex_count: int) -> tuple[Int[Tensor, "U 2"], Int[Tensor, "K"]]:
    """Unordered vertex pairs without repetition, lower index first, and the row of each input pair among them."""
    low, high = edges.min(dim=1).values, edges.max(dim=1).values
    keys, inverse = torch.unique(low * vertex_count + high, return_inverse=True)
    return torch.stack([keys // vertex_count, keys % vertex_count], dim=1), inverse


def _triangle_table() -> tuple[Int[Tensor, "16 2 3"], Int[Tensor, "16"]]:
    """Per sign pattern (bit k = vertex k outside): up to two outward triangles as local edge numbers, and their count."""
    number = {frozenset(pair): row for row, pair in enumerate(EDGES)}
    even = [p for p in permutations(range(4)) if sum(p[i] > p[j] for i in range(4) for j in range(i + 1, 4)) % 2 == 0]
    table, counts = torch.zeros(16, 2, 3, dtype=torch.long), torch.zeros(16, dtype=torch.long)
    for pattern in range(1, 15):
        inside = {vertex for vertex in range(4) if not pattern >> vertex & 1}
        # An even permutation (i, j, k, l) is again a positive tetrahedron, so one drawing per case fixes the orientation.
        i, j, k, l = next(p for p in even if set(p[:len(inside)]) == inside)  # noqa: E741

        def rows(*pairs: tuple[int, int]) -> Tensor:
            return torch.tensor([number[frozenset(pair)] for pair in pairs])

        if len(inside) == 1:
            table[pattern, 0], counts[pattern] = rows((i, j), (i, k), (i, l)), 1
        elif len(inside) == 3:
            table[pattern, 0], counts[pattern] = rows((l, i), (l, j), (l, k)), 1
        else:
            table[pattern, 0] = rows((i, k), (i, l), (j, l))
            table[pattern, 1], counts[pattern] = rows((i, k), (j, l), (j, k)), 2
    return table, counts


_TRIANGLES = _triangle_table()


@functools.cache
def _tables(device: torch.device) -> tuple[Int[Tensor, "6 2"], Int[Tensor, "16 2 3"], Int[Tensor, "16"], Int[Tensor, "4"]]:
    """EDGES, the triangles and their count per sign pattern, and the bits of a pattern. Kept: a copy to a GPU waits for it."""
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.int8)
    return torch.tensor(EDGES).to(device), *(table.to(device) for table in _TRIANGLES), bits.to(device)
