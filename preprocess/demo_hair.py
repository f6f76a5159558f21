"""Hair and eyebrows of the demo head: textured cards bound to the skin, composited front to back (assets/demo_head/hair).

A card vertex hangs on one skin triangle: sum_k bary_k · v_k + (a | n x a | n) · offset, with a the direction of the
triangle's first edge and n its unit normal. So hair follows every identity, expression and pose.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.trimesh import vertex_normals
from lib.render.mesh.reference import face_layers
from preprocess.demo_light import light_at

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "demo_head" / "hair"
# Average colour of tinted hair, before lighting.
HAIR_COLORS = {
    "black": (0.07, 0.06, 0.06), "brown": (0.22, 0.14, 0.09), "auburn": (0.36, 0.16, 0.08), "blond": (0.60, 0.47, 0.28), "grey": (0.50, 0.49, 0.48),
}
TINT_CONTRAST = (0.3, 2.2)  # how far tinted texels may leave that average; the darkest textures hold mostly coding noise
# Cards that dip under the skin by less than this fraction of their distance from the camera are still drawn (0.8 mm): more
# would let the hair behind an ear show through it, less lets the scalp through the hair.
DEPTH_BIAS = 0.0007
MIN_ALPHA = 0.02  # texels below are nothing
UINT16_MAX = 65535


def card_names(kind: str) -> tuple[str, ...]:
    """Known names: `kind` is hair or eyebrows."""
    names = sorted(path.stem for path in FOLDER.glob("*.npz"))
    return tuple(name for name in names if name.startswith("eyebrow") == (kind == "eyebrows"))


class Cards:
    """One set of cards with one RGBA texture, bound to the skin."""

    def __init__(self, name: str, texture_size: int, unit_per_cm: float, color: str | None, device: torch.device) -> None:
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
        bary = arrays["bind_bary_q"].astype(np.float32) / UINT16_MAX
        offset = arrays["offset_q"].astype(np.float32) * float(arrays["offset_scale"] * unit_per_cm)
        uvs = arrays["uvs_q"].astype(np.float32) / UINT16_MAX
        self.corners = torch.from_numpy(arrays["bind_vertices"].astype(np.int64)).to(device)  # (M, 3) rows of the skin
        self.bary = torch.from_numpy(bary / bary.sum(axis=1, keepdims=True)).to(device)
        self.offset = torch.from_numpy(offset).to(device)
        self.faces = torch.from_numpy(arrays["faces"].astype(np.int64)).to(device)
        self.face_uvs = torch.from_numpy(uvs[arrays["faces_uv"].astype(np.int64)]).to(device)
        self.texture = _texture(FOLDER / f"{name}.webp", texture_size, color).to(device)

    def vertices(self, skin: Float[Tensor, "N 3"]) -> Float[Tensor, "M 3"]:
        """Card vertices on a posed skin, in its units."""
        triangle = skin[self.corners]
        along = torch.nn.functional.normalize(triangle[:, 1] - triangle[:, 0], dim=1)
        normal = torch.nn.functional.normalize(torch.linalg.cross(along, triangle[:, 2] - triangle[:, 0]), dim=1)
        frame = torch.stack([along, torch.linalg.cross(normal, along), normal], dim=2)
        return torch.einsum("mk,mkc->mc", self.bary, triangle) + torch.einsum("mij,mj->mi", frame, self.offset)

    def over(
        self, image: Float[Tensor, "B H W 3"], cover: Float[Tensor, "B H W"], depth: Float[Tensor, "B H W"],
        vertices: Float[Tensor, "M 3"], camera: Camera,
    ) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W"]]:
        """Image and coverage with the cards drawn over what lies behind them; `depth` is infinite where nothing was drawn yet."""
        points = camera.to_camera(vertices.expand(len(image), -1, -1))
        layers = face_layers(camera.to_pixels(points), points[..., 2], self.faces, limit=depth * (1.0 + DEPTH_BIAS))
        uv = torch.einsum("kv,kvc->kc", layers.barycentrics, self.face_uvs[layers.face])
        grid = torch.stack([2.0 * uv[:, 0] - 1.0, 1.0 - 2.0 * uv[:, 1]], dim=-1)[None, None]
        rgba = torch.nn.functional.grid_sample(self.texture, grid, padding_mode="border", align_corners=False)[0, :, 0].T
        solid = (rgba[:, 3] > MIN_ALPHA).nonzero()[:, 0]
        # Positive floats order like their bits: by pixel, then front to back.
        order = ((layers.pixel[solid] << 32) | layers.depth[solid].view(torch.int32).long()).argsort(stable=True)
        rows = solid[order]

        corners, weights = self.faces[layers.face[rows]], layers.barycentrics[rows]
        normal = torch.nn.functional.normalize(torch.einsum("kv,kvc->kc", weights, vertex_normals(vertices, self.faces)[corners]), dim=1)
        image_of = torch.div(layers.pixel[rows], depth[0].numel(), rounding_mode="floor")
        seen_along = torch.einsum("kv,kvc->kc", weights, vertices[corners]) - _centers(camera)[image_of]
        normal = torch.where((normal * seen_along).sum(dim=1, keepdim=True) > 0, -normal, normal)  # a card has two front sides
        color, alpha = rgba[rows, :3] * light_at(normal), rgba[rows, 3:]

        pixel, count = torch.unique_consecutive(layers.pixel[rows], return_counts=True)
        first = count.cumsum(dim=0) - count
        total, through = color.new_zeros(len(pixel), 3), color.new_ones(len(pixel), 1)
        for layer in range(int(count.max()) if len(count) else 0):
            here = (count > layer).nonzero()[:, 0]
            source = first[here] + layer
            total[here] += through[here] * color[source]
            through[here] *= 1.0 - alpha[source]
        image, cover = image.clone().reshape(-1, 3), cover.clone().reshape(-1, 1)
        image[pixel] = total + through * image[pixel]
        cover[pixel] = 1.0 - through * (1.0 - cover[pixel])
        return image.reshape(*depth.shape, 3), cover.reshape(depth.shape)


def _centers(camera: Camera) -> Float[Tensor, "B 3"]:
    rotation, translation = camera.world_to_camera[..., :3], camera.world_to_camera[..., 3:]
    return -(rotation.transpose(1, 2) @ translation)[..., 0]


def _texture(path: Path, size: int, color: str | None) -> Float[Tensor, "1 4 H W"]:
    """RGBA in [0,1], colour multiplied by alpha, so that interpolation never mixes in what lies outside the hair."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
        raise InputError(f"{path}: cannot be read as an RGBA image; this OpenCV may lack WebP")
    rgba = pixels[..., [2, 1, 0, 3]].astype(np.float32) / 255.0
    if color is not None:
        grey = rgba[..., :3].mean(axis=2, keepdims=True)
        average = (grey * rgba[..., 3:]).sum() / rgba[..., 3:].sum()
        contrast = np.clip(grey / average, *TINT_CONTRAST) if average > 0 else 1.0  # two brows are painted in plain black
        rgba[..., :3] = contrast * np.array(HAIR_COLORS[color], dtype=np.float32)
    rgba[..., :3] *= rgba[..., 3:]
    if size < len(rgba):
        rgba = cv2.resize(rgba, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(rgba).permute(2, 0, 1)[None].contiguous()
