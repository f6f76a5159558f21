"""What mesh rasterization returns."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.tensors import TensorBundle


@dataclass(frozen=True)
class FaceBuffer(TensorBundle):
    """Nearest face per pixel, -1 where there is none, with its barycentric coordinates (zero where there is none)."""

    face: Int[Tensor, "B H W"]
    barycentrics: Float[Tensor, "B H W 3"]

    @property
    def covered(self) -> Bool[Tensor, "B H W"]:
        """True where a face was hit."""
        return self.face >= 0


@dataclass(frozen=True)
class FaceLayers(TensorBundle):
    """Every face over every pixel: K pairs of flat pixel (b * H + row) * W + column and face, with depth and barycentrics."""

    pixel: Int[Tensor, "K"]
    face: Int[Tensor, "K"]
    depth: Float[Tensor, "K"]
    barycentrics: Float[Tensor, "K 3"]


@dataclass(frozen=True)
class MeshImage(TensorBundle):
    """A rendered mesh: interpolated attributes on black, soft mask, depth (0 where empty), camera-space normals."""

    attributes: Float[Tensor, "B C H W"]
    mask: Float[Tensor, "B 1 H W"]
    depth: Float[Tensor, "B 1 H W"]
    normals: Float[Tensor, "B 3 H W"]
