"""The animatable demo head (assets/demo_head): ICT-FaceKit topology, registered identities, photographic skins.

Model space is canonical: 0.1·(ICT cm - (0, 0, 2)), y up, face towards +z; one unit is a decimetre.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.layout import OUTER_MOUTH_CORNERS
from lib.errors import InputError
from lib.face_models.ict import CANONICAL_PER_CM, canonical, canonical_offsets, read_head_file, turn_eyes
from lib.geometry.camera import Camera
from lib.geometry.trimesh import vertex_normals
from lib.render.mesh.reference import visible_faces
from preprocess.demo_hair import HAIR_COLORS, Cards, card_names
from preprocess.demo_light import light_at

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "demo_head"
# Heads of the ICT model: weights of its first ten identity modes.
ICT_IDENTITIES = {
    "neutral": (), "ict_1": (1.3, -0.9, 0.6, 0.8, -0.7, 0.9, 0.4, -0.8, 0.6, -0.5), "ict_2": (-1.2, 0.8, -0.9, 0.5, 1.0, -0.6, 0.9, 0.5, -0.7, 0.8),
}
IDENTITIES = ("lee_perry_smith", "makehuman", *ICT_IDENTITIES)

# Vertex rows of the ICT topology.
MOUTH_SOCKET_ROWS, EYE_SOCKET_ROWS = slice(11248, 13294), slice(13294, 14062)
# Materials of its faces.
FACE, BACK_HEAD, GUMS, TEETH, SCLERA_L, IRIS_L, SCLERA_R, IRIS_R = range(8)
# Sclera triangles nearer to the pupil than this (in UV, about the centre) are the cornea and hide the iris.
CORNEA_UV_RADIUS = 0.175

GUMS_COLOR, TEETH_COLOR, SOCKET_COLOR = (0.62, 0.27, 0.26), (0.88, 0.85, 0.78), (0.32, 0.10, 0.09)
MOUTH_DEPTH = 0.75  # canonical units behind the lips at which hardly any light arrives
WALL = 0.94  # grey of the background
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Picture:
    """Rendered cameras: colour over the wall, exact coverage."""

    image: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]


class DemoHead:
    """A parametric head with one identity, skin and hair; draws itself with the project's mesh rasterizer on `device`."""

    def __init__(
        self, identity: str, skin: str, iris: str, texture_size: int, hair: str | None = None, eyebrows: str | None = None,
        hair_color: str | None = None, device: str | torch.device = "cpu",
    ) -> None:
        _expect("--identity", identity, IDENTITIES)
        if hair_color is not None:
            _expect("--hair-color", hair_color, HAIR_COLORS)
        arrays = read_head_file()
        self.device = torch.device(device)
        neutral, self.identity_coefficients = _identity(identity, arrays)
        self.neutral = canonical(neutral).to(self.device)
        self.deltas = canonical_offsets(arrays, "expression").to(self.device)  # (E, N, 3)
        self.expression_names = tuple(str(name) for name in arrays["expression_names"])
        self.landmark68_rows = torch.from_numpy(arrays["landmarks68"].astype(np.int64)).to(self.device)
        kept = [row for row in range(len(self.landmark68_rows)) if row not in OUTER_MOUTH_CORNERS]
        self.landmark_rows = self.landmark68_rows[kept]
        uvs = torch.from_numpy(arrays["uvs"].astype(np.float32)).to(self.device)
        faces, faces_uv = (torch.from_numpy(arrays[key]).long().to(self.device) for key in ("faces", "faces_uv"))
        material = torch.from_numpy(arrays["face_material"]).long().to(self.device)
        radius = (uvs[faces_uv].mean(dim=1) % 1.0 - 0.5).norm(dim=1)
        kept = ~(((material == SCLERA_L) | (material == SCLERA_R)) & (radius < CORNEA_UV_RADIUS))
        self.faces, self.material, self.face_uvs = faces[kept], material[kept], uvs[faces_uv[kept]] % 1.0
        textures = {
            FACE: _texture(f"{skin}_face.jpg", texture_size), BACK_HEAD: _texture(f"{skin}_backhead.jpg", texture_size),
            SCLERA_L: _texture("sclera.png", texture_size // 4), IRIS_L: _texture(f"{iris}.png", texture_size // 4),
        }
        self.textures = {number: texture.to(self.device) for number, texture in textures.items()}
        self.textures |= {SCLERA_R: self.textures[SCLERA_L], IRIS_R: self.textures[IRIS_L]}
        # Drawn in this order: a fringe hangs over the brows.
        self.cards: list[Cards] = []
        for kind, name, size in (("eyebrows", eyebrows, texture_size // 2), ("hair", hair, texture_size)):
            if name is not None:
                _expect(f"--{kind}", name, card_names(kind))
                self.cards.append(Cards(name, size, CANONICAL_PER_CM, hair_color, self.device))

    @property
    def expression_count(self) -> int:
        """Number of expression coefficients."""
        return len(self.expression_names)

    def coefficients(self, shapes: dict[str, float]) -> Float[Tensor, "E"]:
        """Expression vector from shape names; a name without _L/_R sets both sides."""
        vector = torch.zeros(self.expression_count)
        for name, value in shapes.items():
            rows = [row for row, known in enumerate(self.expression_names) if known == name or known[:-2] == name]
            if not rows:
                raise KeyError(name)
            vector[rows] += value
        return vector

    def vertices(self, expression: Float[Tensor, "E"]) -> Float[Tensor, "N 3"]:
        """Canonical vertices: neutral + expression shapes, eyeballs turned by the eyeLook coefficients; then those of the cards."""
        vertices = self.neutral + torch.einsum("e,env->nv", expression.to(self.device), self.deltas)
        vertices = turn_eyes(vertices, self.neutral, dict(zip(self.expression_names, expression.tolist(), strict=True)))
        return torch.cat([vertices, *(cards.vertices(vertices) for cards in self.cards)])

    @cached_property
    def _socket(self) -> tuple[Int[Tensor, "N"], Float[Tensor, "N 1"]]:
        """Per vertex: 1 inside the mouth or behind the eyes, and how much light arrives there."""
        inner = torch.zeros(len(self.neutral), dtype=torch.long, device=self.device)
        inner[MOUTH_SOCKET_ROWS] = inner[EYE_SOCKET_ROWS] = 1
        light = torch.ones(len(self.neutral), 1, device=self.device)
        lips = self.neutral[self.landmark_rows[48:66], 2].mean()
        mouth = torch.cat([torch.arange(len(self.neutral))[MOUTH_SOCKET_ROWS], torch.arange(14062, 21451)])
        light[mouth] = (1.0 - (lips - self.neutral[mouth, 2:]) / MOUTH_DEPTH).clamp(0.12, 1.0)
        light[EYE_SOCKET_ROWS] = 0.35
        return inner, light

    def draw(self, vertices_world: Float[Tensor, "N 3"], camera: Camera) -> Picture:
        """All cameras of a batch see one posed head; 2x2 supersampled, composited over a light grey wall."""
        camera = camera.to(self.device)
        skin, *cards = vertices_world.split([len(self.neutral), *(len(cards.corners) for cards in self.cards)])
        big = camera.resized(camera.width * SUPERSAMPLING, camera.height * SUPERSAMPLING)
        count = len(camera.intrinsics)
        points = big.to_camera(skin.expand(count, -1, -1))
        pixels = big.to_pixels(points)
        corners = pixels[:, self.faces]
        u, v = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
        facing = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0] < 0  # counter-clockwise faces turn clockwise with y down
        sclera = (self.material == SCLERA_L) | (self.material == SCLERA_R)
        buffer = visible_faces(pixels, points[..., 2], self.faces, big.height, big.width, keep=facing | sclera, perspective=True)
        where = buffer.covered.nonzero(as_tuple=True)
        face, weights = buffer.face[where], buffer.barycentrics[where]
        normals = vertex_normals(skin, self.faces)
        image = points.new_full((*buffer.face.shape, 3), WALL)
        image[where] = self._shade(normals, face, weights, facing[where[0], face])
        cover = buffer.covered.float()
        if self.cards:
            depth = torch.full_like(cover, torch.inf)
            depth[where] = (points[..., 2][where[0][:, None], self.faces[face]] * weights).sum(dim=1)
            for kind, vertices in zip(self.cards, cards, strict=True):
                image, cover = kind.over(image, cover, depth, vertices, big)
        pooled = torch.nn.functional.avg_pool2d(image.permute(0, 3, 1, 2), SUPERSAMPLING)
        mask = torch.nn.functional.avg_pool2d(cover[:, None], SUPERSAMPLING)
        return Picture(pooled.clamp(0.0, 1.0), mask)

    def _shade(
        self, normals: Float[Tensor, "N 3"], face: Int[Tensor, "K"], weights: Float[Tensor, "K 3"], facing: Tensor
    ) -> Float[Tensor, "K 3"]:
        corners, material = self.faces[face], self.material[face]
        uv = (self.face_uvs[face] * weights[..., None]).sum(dim=1)
        albedo = weights.new_zeros(len(face), 3)
        for number in material.unique().tolist():
            chosen = material == number
            if number in self.textures:
                grid = torch.stack([2.0 * uv[chosen, 0] - 1.0, 1.0 - 2.0 * uv[chosen, 1]], dim=-1)[None, None]
                sampled = torch.nn.functional.grid_sample(self.textures[number], grid, padding_mode="border", align_corners=False)
                albedo[chosen] = sampled[0, :, 0].T
            else:
                albedo[chosen] = albedo.new_tensor(GUMS_COLOR if number == GUMS else TEETH_COLOR)
        inner, arriving = self._socket
        albedo[inner[corners[:, 0]] > 0] = albedo.new_tensor(SOCKET_COLOR)
        albedo[~facing] = 0.02  # the back of the sclera, seen through the pupil
        normal = torch.nn.functional.normalize((normals[corners] * weights[..., None]).sum(dim=1), dim=-1)
        return albedo * light_at(normal) * (arriving[corners] * weights[..., None]).sum(dim=1)


def _expect(option: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise InputError(f"{option}: expected one of {', '.join(known)}, found '{name}'")


def _identity(name: str, arrays: dict[str, NDArray]) -> tuple[NDArray[np.floating], NDArray[np.float32]]:
    """Neutral vertices in cm and 60 identity coefficients."""
    if name not in ICT_IDENTITIES:
        return arrays[name], arrays[f"{name}_coeff"].astype(np.float32)
    weights = np.array(ICT_IDENTITIES[name], dtype=np.float32)
    modes = arrays["identity_q"][:len(weights)] * arrays["identity_scale"][:len(weights), None, None]
    return arrays["neutral"] + np.einsum("i,inc->nc", weights, modes), np.pad(weights, (0, 60 - len(weights)))


def _texture(name: str, size: int) -> Float[Tensor, "1 3 H W"]:
    path = ASSETS / "textures" / name
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        known = sorted(p.name for p in path.parent.glob("*"))
        raise InputError(f"{path}: no such texture; found {', '.join(known)}")
    if size < len(pixels):
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255.0
