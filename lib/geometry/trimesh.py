"""Triangle meshes with shared faces: normals, areas, uniform Laplacian. Faces are counter-clockwise seen from outside."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def face_corners(vertices: Float[Tensor, "*B N 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "*B F 3 3"]:
    """The three corner positions of every face."""
    return vertices[..., faces, :]


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
    start = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1)
    end = faces[:, [1, 0, 2, 1, 0, 2]].reshape(-1)
    total = torch.zeros_like(vertices).index_add(-2, start, vertices[..., end, :])
    count = torch.bincount(start, minlength=vertices.shape[-2]).clamp(min=1)
    return vertices - total / count[:, None]
