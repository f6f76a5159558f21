"""Triangle rasterization in plain torch, vectorised over (face, pixel) pairs; CPU and CUDA, bounded memory.

`render_mesh` has the semantics of DIB-R (Chen et al., NeurIPS 2019): a hard pass with screen-space barycentrics inside
the silhouette and, outside it, a soft mask from distances to projected triangles. `visible_faces` (and `face_layers`,
for what is transparent), with perspective-correct barycentrics, also draw the demo subject.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.geometry.camera import Camera
from lib.geometry.trimesh import face_normals
from lib.render.boxes import box_cells, split_by_total
from lib.render.mesh.contract import FaceBuffer, FaceLayers, MeshImage

# Sharpness of the soft mask per squared unit of [-1,1] image coordinates, and how far from a triangle's box it reaches.
SOFT_SHARPNESS = 7000.0
SOFT_MARGIN = 0.02
# 1 - probability is kept above this, so that a pixel on an edge has a finite gradient.
SOFT_EPSILON = 1e-8
# Faces with a corner nearer than this (world units) are not drawn.
NEAR = 1e-4
# (face, pixel) pairs processed at once: about 400 MB at the widest point.
CHUNK_PAIRS = 1 << 22


def render_mesh(
    vertices: Float[Tensor, "B N 3"], faces: Int[Tensor, "F 3"], attributes: Float[Tensor, "B N C"], camera: Camera
) -> MeshImage:
    """Draws B meshes of shared topology, each by its own camera. Differentiable in vertices and attributes.

    Attributes and depth are interpolated with screen-space barycentrics (no perspective correction); faces whose
    normal points away from the image plane are culled in the hard pass. The soft mask is 1 on covered pixels and
    1 - prod(1 - exp(-7000 d²)) elsewhere, over all faces whose box enlarged by 0.02 holds the pixel (published code
    stops at 30 of them); d is the distance to the triangle in [-1,1] image coordinates.
    """
    in_camera = camera.to_camera(vertices)
    pixels = camera.to_pixels(in_camera)
    normals = face_normals(in_camera, faces)
    with torch.no_grad():
        buffer = visible_faces(pixels, in_camera[..., 2], faces, camera.height, camera.width, keep=normals[..., 2] <= 0)
    batch, row, column = buffer.covered.nonzero(as_tuple=True)
    face = buffer.face[batch, row, column]
    corners = faces[face]  # (K, 3)
    point = torch.stack([column + 0.5, row + 0.5], dim=-1).to(vertices.dtype)
    weights = screen_barycentrics(pixels[batch[:, None], corners], point)
    unit_normals = torch.nn.functional.normalize(normals[batch, face], dim=-1)
    per_pixel = torch.cat([
        torch.einsum("kvc,kv->kc", attributes[batch[:, None], corners], weights),
        (in_camera[..., 2][batch[:, None], corners] * weights).sum(dim=1, keepdim=True),
        unit_normals * unit_normals.new_tensor([1.0, -1.0, -1.0]),
    ], dim=1)
    size = (len(vertices), camera.height, camera.width)
    image = per_pixel.new_zeros(*size, per_pixel.shape[1]).index_put((batch, row, column), per_pixel).permute(0, 3, 1, 2)
    channels = attributes.shape[-1]
    return MeshImage(
        attributes=image[:, :channels],
        mask=soft_mask(pixels, in_camera[..., 2], faces, buffer.covered)[:, None],
        depth=image[:, channels:channels + 1],
        normals=image[:, channels + 1:],
    )


def screen_barycentrics(triangles: Float[Tensor, "*K 3 2"], points: Float[Tensor, "*K 2"]) -> Float[Tensor, "*K 3"]:
    """Barycentric coordinates of points in image triangles; degenerate triangles give zeros for the last two."""
    a, b, c = triangles.unbind(dim=-2)
    u, v, p = b - a, c - a, points - a
    area = _cross(u, v)
    area = torch.where(area == 0, torch.full_like(area, torch.inf), area)
    second, third = _cross(p, v) / area, _cross(u, p) / area
    return torch.stack([1.0 - second - third, second, third], dim=-1)


def visible_faces(
    pixels: Float[Tensor, "B N 2"],
    depth: Float[Tensor, "B N"],
    faces: Int[Tensor, "F 3"],
    height: int,
    width: int,
    keep: Bool[Tensor, "B F"] | None = None,
    perspective: bool = False,
) -> FaceBuffer:
    """The z-buffer: which face covers each pixel centre nearest to the camera. Not differentiable.

    `perspective` interpolates in space instead of on the screen. Equal depths are won by the lower face index.
    """
    batch, face_count = len(pixels), len(faces)
    empty = torch.iinfo(torch.int64).max
    nearest = torch.full((batch * height * width,), empty, dtype=torch.int64, device=pixels.device)
    for pixel, source, z in _hits(pixels, depth, faces, height, width, keep, perspective):
        # Positive floats order like their bits: one integer minimum finds the nearest and then the lowest face.
        key = (z.float().view(torch.int32).long() << 32) | (source % face_count)
        nearest.scatter_reduce_(0, pixel, key, "amin")

    nearest = nearest.reshape(batch, height, width)
    face = torch.where(nearest == empty, torch.full_like(nearest, -1), nearest & 0xFFFFFFFF)
    barycentrics = pixels.new_zeros(batch, height, width, 3)
    where = (face >= 0).nonzero(as_tuple=True)
    corners = faces[face[where]]
    point = torch.stack([where[2] + 0.5, where[1] + 0.5], dim=-1).to(pixels.dtype)
    weights = screen_barycentrics(pixels[where[0][:, None], corners], point)
    if perspective:
        weights = weights / depth[where[0][:, None], corners]
        weights = weights / weights.sum(dim=1, keepdim=True)
    barycentrics[where] = weights
    return FaceBuffer(face, barycentrics)


def face_layers(
    pixels: Float[Tensor, "B N 2"],
    depth: Float[Tensor, "B N"],
    faces: Int[Tensor, "F 3"],
    limit: Float[Tensor, "B H W"],
) -> FaceLayers:
    """All faces over each pixel centre that are nearer than `limit` there, perspective-correct; in no order. Not differentiable."""
    batch, height, width = limit.shape
    parts = []
    for pixel, source, z in _hits(pixels, depth, faces, height, width, keep=None, perspective=True):
        near = z < limit.reshape(-1)[pixel]
        parts.append((pixel[near], source[near] % len(faces), z[near]))
    nothing = (faces.new_empty(0), faces.new_empty(0), depth.new_empty(0))
    pixel, face, z = (torch.cat(column) for column in zip(nothing, *parts, strict=True))
    image = torch.div(pixel, height * width, rounding_mode="floor")
    inside = pixel - image * (height * width)
    point = torch.stack([inside % width + 0.5, torch.div(inside, width, rounding_mode="floor") + 0.5], dim=-1).to(pixels.dtype)
    corners = faces[face]
    weights = screen_barycentrics(pixels[image[:, None], corners], point) / depth[image[:, None], corners]
    return FaceLayers(pixel, face, z, weights / weights.sum(dim=1, keepdim=True))


def _hits(
    pixels: Float[Tensor, "B N 2"],
    depth: Float[Tensor, "B N"],
    faces: Int[Tensor, "F 3"],
    height: int,
    width: int,
    keep: Bool[Tensor, "B F"] | None,
    perspective: bool,
) -> Iterator[tuple[Int[Tensor, "K"], Int[Tensor, "K"], Float[Tensor, "K"]]]:
    """Chunks of (pixel, b * F + face, depth there) for every pixel centre that a face covers; pixels count through the batch."""
    face_count = len(faces)
    triangles = pixels[:, faces].reshape(-1, 3, 2)
    depths = depth[:, faces].reshape(-1, 3)
    draw = (depths > NEAR).all(dim=1) & torch.isfinite(triangles).all(dim=2).all(dim=1)
    if keep is not None:
        draw &= keep.reshape(-1)
    rows = draw.nonzero()[:, 0]
    triangles, depths = triangles[rows], depths[rows]
    low = torch.ceil(triangles.amin(dim=1) - 0.5).clamp(min=0)
    high = torch.floor(triangles.amax(dim=1) - 0.5)
    high = torch.minimum(high, high.new_tensor([width - 1, height - 1]))
    extent = (high - low + 1).clamp(min=0).long()
    low = low.long()

    # Barycentrics as an affine map of (pixel - first corner), so that a pair gathers one short row.
    a, b, c = triangles.unbind(dim=1)
    u, v = b - a, c - a
    area = _cross(u, v)
    usable = area != 0
    inverse = torch.where(usable, 1.0 / torch.where(usable, area, torch.ones_like(area)), torch.zeros_like(area))
    plane = torch.stack([v[:, 1], -v[:, 0], -u[:, 1], u[:, 0]], dim=1) * inverse[:, None]
    numbers = torch.cat([a, plane, 1.0 / depths if perspective else depths], dim=1)

    counts = extent.prod(dim=1) * usable
    for chosen in split_by_total(counts, CHUNK_PAIRS):
        owner, column, row = box_cells(chosen, low, extent)
        number = numbers[owner]
        x, y = column + 0.5 - number[:, 0], row + 0.5 - number[:, 1]
        second, third = x * number[:, 2] + y * number[:, 3], x * number[:, 4] + y * number[:, 5]
        first = 1.0 - second - third
        hit = ((first >= 0) & (second >= 0) & (third >= 0)).nonzero()[:, 0]
        z = first[hit] * number[hit, 6] + second[hit] * number[hit, 7] + third[hit] * number[hit, 8]
        if perspective:
            z = 1.0 / z
        source = rows[owner[hit]]
        yield (source // face_count * height + row[hit]) * width + column[hit], source, z


def soft_mask(
    pixels: Float[Tensor, "B N 2"], depth: Float[Tensor, "B N"], faces: Int[Tensor, "F 3"], covered: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B H W"]:
    """1 on covered pixels, elsewhere 1 - prod over near triangles of (1 - exp(-7000 d²)); gradient to pixels outside only."""
    batch, height, width = covered.shape
    size = pixels.new_tensor([width, height])
    image = 2.0 * pixels / size - 1.0
    triangles = image[:, faces].reshape(-1, 3, 2)
    with torch.no_grad():
        drawn = (depth[:, faces] > NEAR).all(dim=2).reshape(-1) & torch.isfinite(triangles).all(dim=2).all(dim=1)
        # Pixel centres x = (2i+1)/W - 1 with low <= x < high.
        low = torch.ceil(((triangles.amin(dim=1) - SOFT_MARGIN + 1.0) * size - 1.0) / 2.0).clamp(min=0)
        high = torch.ceil(((triangles.amax(dim=1) + SOFT_MARGIN + 1.0) * size - 1.0) / 2.0)
        low, high = torch.minimum(low, size), torch.minimum(high, size)
        low = torch.where(drawn[:, None], low, torch.zeros_like(low)).long()
        extent = torch.where(drawn[:, None], high - low, torch.zeros_like(high)).clamp(min=0).long()
        # Faces whose whole box is covered contribute nothing: a summed-area table of free pixels tells.
        free = torch.nn.functional.pad((~covered).long().cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
        owner_image = torch.arange(batch, device=pixels.device).repeat_interleave(len(faces))
        (x0, y0), (x1, y1) = low.unbind(dim=1), (low + extent).unbind(dim=1)
        free_pixels = free[owner_image, y1, x1] - free[owner_image, y0, x1] - free[owner_image, y1, x0] + free[owner_image, y0, x0]
        counts = extent.prod(dim=1) * (free_pixels > 0)
    log_outside = image.new_zeros(batch * height * width)
    for chosen in split_by_total(counts, CHUNK_PAIRS):
        with torch.no_grad():
            owner, column, row = box_cells(chosen, low, extent)
            pixel = (owner_image[owner] * height + row) * width + column
            outside = ~covered.reshape(-1)[pixel]
            owner, column, row, pixel = owner[outside], column[outside], row[outside], pixel[outside]
            point = (2 * torch.stack([column, row], dim=1) + 1).to(image.dtype) / size - 1.0
        squared = _squared_distance_to_edges(triangles[owner], point)
        outside_probability = -torch.expm1(-SOFT_SHARPNESS * squared)
        log_outside = log_outside.index_add(0, pixel, outside_probability.clamp(min=SOFT_EPSILON).log())
    soft = -torch.expm1(log_outside).reshape(batch, height, width)
    return torch.where(covered, torch.ones_like(soft), soft)


def _squared_distance_to_edges(triangles: Float[Tensor, "K 3 2"], points: Float[Tensor, "K 2"]) -> Float[Tensor, "K"]:
    start, along = triangles, triangles.roll(-1, dims=1) - triangles
    offset = points[:, None] - start
    position = ((offset * along).sum(dim=2) / along.square().sum(dim=2).clamp(min=SOFT_EPSILON)).clamp(0.0, 1.0)
    return (offset - position[..., None] * along).square().sum(dim=2).amin(dim=1)


def _cross(a: Float[Tensor, "*K 2"], b: Float[Tensor, "*K 2"]) -> Float[Tensor, "*K"]:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
