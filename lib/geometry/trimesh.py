"""Triangle meshes with shared faces: normals, areas, uniform Laplacian. Faces are counter-clockwise seen from outside."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def face_corners(vertices: Float[Tensor, "*B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B F 3 3"]:
    """The three corner positions of every face."""
    # Unlike indexing, its gradient needs no sorting.
    return vertices.index_select(-2, faces.reshape(-1)).unflatten(-2, faces.shape)


def face_normals(vertices: Float[Tensor, "*B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B F 3"]:
    """Normals of length twice the face area, pointing out of a counter-clockwise face."""
    a, b, c = face_corners(vertices, faces).unbind(dim=-2)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(vertices: Float[Tensor, "*B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B N 3"]:
    """Unit vertex normals: area-weighted means of the adjacent faces."""
    normals = face_normals(vertices, faces)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(-2, faces[:, corner], normals)
    return torch.nn.functional.normalize(total, dim=-1)


def surface_area(vertices: Float[Tensor, "*B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B"]:
    """Total area."""
    return 0.5 * face_normals(vertices, faces).norm(dim=-1).sum(dim=-1)


def enclosed_volume(vertices: Float[Tensor, "*B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B"]:
    """Signed volume of a closed mesh, positive when normals point outward (divergence theorem)."""
    a, b, c = face_corners(vertices, faces).unbind(dim=-2)
    return (a * torch.linalg.cross(b, c)).sum(dim=(-1, -2)) / 6.0


def uniform_laplacian(vertices: Float[Tensor, "*B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B N 3"]:
    """Vertex minus the mean of its one-ring over face edges; an edge shared by two faces counts twice."""
    own, corners = faces.reshape(-1), face_corners(vertices, faces)
    others = corners.roll(1, dims=-2) + corners.roll(-1, dims=-2)
    total = torch.zeros_like(vertices).index_add(-2, own, others.flatten(-3, -2))
    # Not bincount, which waits for the device.
    count = vertices.new_zeros(vertices.shape[-2]).index_add(0, own, vertices.new_full(own.shape, 2.0)).clamp(min=1.0)
    return vertices - total / count[:, None]
