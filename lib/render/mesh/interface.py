"""The one way to draw meshes with gradients. Backends are chosen by name; all have the semantics of `reference`."""

import functools
from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.render.mesh import boxed, reference
from lib.render.mesh.contract import MeshImage

Backend = Callable[[Tensor, Tensor, Tensor, Camera], MeshImage]
BACKENDS: dict[str, Backend] = {"triton": boxed.render_mesh, "reference": reference.render_mesh}


def render_mesh(
    vertices: Float[Tensor, "B N 3"], faces: Int[Tensor, "F 3"], attributes: Float[Tensor, "B N C"], camera: Camera, backend: str = "auto"
) -> MeshImage:
    """Draws B meshes of shared topology, each by its own camera. Differentiable in vertices and attributes.

    Attributes and depth are interpolated on the screen; the mask is soft outside the silhouette (see `reference`). `auto` is triton where
    it can draw these tensors, else reference; on CUDA it says once which. Raises InputError for an unknown backend, and for one that cannot
    draw these tensors.
    """
    if backend == "auto":
        obstacle = boxed.obstacle(vertices, attributes)
        backend = "reference" if obstacle or not vertices.is_cuda else "triton"
        if vertices.is_cuda:
            _say(f"mesh rasterizer: {backend}" + (f" (not triton: {obstacle})" if obstacle else ""))
    if backend not in BACKENDS:
        raise InputError(f"mesh rasterizer backend '{backend}' is not known; expected auto or one of {sorted(BACKENDS)}")
    return BACKENDS[backend](vertices, faces, attributes, camera)


@functools.cache
def _say(line: str) -> None:
    print(line, flush=True)
