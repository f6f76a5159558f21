"""Stage 1: a neutral surface on a tetrahedral grid with expression- and pose-conditioned colour and motion."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from lib.avatars.gaussian_head_avatar.control import control
from lib.config import Config
from lib.datasets.arrays import finite, numbers, parse_arrays, read_bytes
from lib.datasets.batches import HeadBatch
from lib.errors import InputError
from lib.geometry.head_pose import HeadPose
from lib.geometry.tetmesh import BoundingBox, IsoSurface, TetGrid, body_centred_grid, check_crossings, find_crossings, oriented, subdivide, zero_level
from lib.networks.mlp import MLP, mean_squared_norm, resolve_widths
from lib.networks.positional_encoding import encoded_width, positional_encoding
from lib.networks.precision import rough_products
from lib.tensors import TensorBundle, keyed_generator
from lib.training.distributed import is_first
from lib.training.runtime import is_terminal

# A vertex moves by at most tanh(1)/128 canonical units from its grid position; halved by each subdivision.
OFFSET_DIVISOR = 128.0
SPHERE_RADIUS, SPHERE_STEPS, SPHERE_LEARNING_RATE, SPHERE_POINTS, SPHERE_EXTENT = 1.0, 300, 1e-3, 8192, 1.5
POSE_WIDTH = 6
GEOMETRY_WIDTHS = (*(256,) * 5, 132)  # as published
# The sdf is in [-1, 1]. Emulated TF32 errs by 0.0003 at the start, by 0.0012 with weights grown by half; tests/gpu/test_mesh_cuda.py measures it.
SIGN_MARGIN = 0.05
SIGN_POINTS = 1 << 19  # evaluated at once


class MeshHeadConfig(Config):
    """Section `meshheadmodule`. Width lists left out are derived: that of the geometry from `pos_freq`, others from the data."""

    pos_freq: int = Field(4, ge=0, description="frequencies of the positional encoding")
    geo_mlp: tuple[int, ...] = Field((), description="widths: encoded position -> sdf + 3 offsets + features")
    exp_color_mlp: tuple[int, ...] = Field((), description="widths: feature + expression -> colour channels")
    pose_color_mlp: tuple[int, ...] = Field((), description="widths: feature + encoded pose -> colour channels")
    exp_deform_mlp: tuple[int, ...] = Field((), description="widths: encoded position + expression -> displacement")
    pose_deform_mlp: tuple[int, ...] = Field((), description="widths: encoded position + encoded pose -> displacement")
    model_bbox: BoundingBox = Field(((-1.6, 1.6), (-1.7, 1.8), (-2.5, 1.0)), description="canonical units: box of the tetrahedral grid")
    dist_threshold_near: float = Field(0.1, ge=0, description="squared canonical units: fully expression-driven inside")
    dist_threshold_far: float = Field(0.2, gt=0, description="squared canonical units: fully pose-driven outside")
    deform_scale: float = Field(0.3, gt=0, description="canonical units per unit of displacement output")
    subdivide: bool = Field(False, description="subdivide the tetrahedral grid once (8 times the tetrahedra)")
    grid_cells: int = Field(52, gt=1, description="cells of the generated grid along the longest side of model_bbox")
    grid_file: Path | None = Field(None, description="npz with tet_verts (N,3) and tets (T,4) instead of a generated grid")
    color_channels: int = Field(32, ge=3, description="colour channels; the first three are RGB")

    @field_validator("geo_mlp")
    @classmethod
    def _geometry(cls, given: tuple[int, ...], info: Any) -> tuple[int, ...]:
        return given or (encoded_width(3, info.data.get("pos_freq", 0)), *GEOMETRY_WIDTHS)

    @model_validator(mode="after")
    def _order(self) -> "MeshHeadConfig":
        if self.dist_threshold_far <= self.dist_threshold_near:
            raise ValueError(f"dist_threshold_far ({self.dist_threshold_far}) must be larger than dist_threshold_near ({self.dist_threshold_near})")
        if len(self.geo_mlp) < 3 or self.geo_mlp[0] != encoded_width(3, self.pos_freq) or self.geo_mlp[-1] < 5:
            raise ValueError(f"geo_mlp must go from {encoded_width(3, self.pos_freq)} (= 3 + 3·2·pos_freq {self.pos_freq}) over hidden widths "
                             f"to at least 5 (= 1 sdf + 3 offset + features), found {list(self.geo_mlp)}")
        return self

    @property
    def feature_width(self) -> int:
        """Per-vertex features: what geo_mlp puts out besides sdf and offset."""
        return self.geo_mlp[-1] - 4

    @property
    def expression_count(self) -> int:
        """Number of expression coefficients of a resolved configuration."""
        return self.exp_deform_mlp[0] - encoded_width(3, self.pos_freq)

    def resolved(self, expression_count: int) -> "MeshHeadConfig":
        """The configuration with every width list filled in for data with E expression coefficients.

        Raises InputError explaining by arithmetic a list that does not fit.
        """
        position, pose = encoded_width(3, self.pos_freq), encoded_width(POSE_WIDTH, self.pos_freq)
        feature = (self.feature_width, f"{self.feature_width} features")
        expression = (expression_count, f"{expression_count} expression coefficients of the data")
        place, turn = (position, f"{position} encoded position"), (pose, f"{pose} encoded pose")
        rows = {
            "exp_color_mlp": (self.exp_color_mlp, (256, 256), feature, expression, self.color_channels),
            "pose_color_mlp": (self.pose_color_mlp, (128,), feature, turn, self.color_channels),
            "exp_deform_mlp": (self.exp_deform_mlp, (256,) * 5, place, expression, 3),
            "pose_deform_mlp": (self.pose_deform_mlp, (256,) * 2, place, turn, 3),
        }
        return self.model_copy(update={
            key: resolve_widths(given, hidden, (first, second), last, f"meshheadmodule.{key}")
            for key, (given, hidden, first, second, last) in rows.items()
        })


@dataclass(frozen=True)
class HeadMesh(TensorBundle):
    """B posed heads of one topology."""

    vertices_world: Float[Tensor, "B N 3"]
    colors: Float[Tensor, "B N C"]
    faces: Int[Tensor, "F 3"]


@dataclass(frozen=True)
class DeformedHead(TensorBundle):
    """What stage 1 supervises."""

    mesh: HeadMesh
    landmarks_canonical: Float[Tensor, "B L 3"]
    landmark_sdf: Float[Tensor, "L"]
    deformation_magnitude: Float[Tensor, ""]


class MeshHead(nn.Module):
    """Deep marching tetrahedra head: geometry, colour and motion fields around learnable neutral landmarks."""

    tet_verts: Tensor
    tets: Tensor

    def __init__(self, config: MeshHeadConfig, landmark_count: int) -> None:
        """`config` must be resolved."""
        super().__init__()
        self.config = config
        grid = tetrahedral_grid(config)
        self.register_buffer("tet_verts", grid.vertices)
        self.register_buffer("tets", grid.tets)
        self._kept: tuple[TetGrid, tuple[int, ...], TetGrid] | None = None  # a grid, its state, and what it was subdivided into
        self.landmarks_3d_neutral = nn.Parameter(torch.zeros(landmark_count, 3))
        self.geometry = MLP(config.geo_mlp)
        self.exp_color = MLP(config.exp_color_mlp)
        self.pose_color = MLP(config.pose_color_mlp)
        self.exp_deform = MLP(config.exp_deform_mlp)
        self.pose_deform = MLP(config.pose_deform_mlp)

    def forward(self, batch: HeadBatch) -> DeformedHead:
        """The neutral surface, coloured and deformed by each frame's expression and pose."""
        return self.deform(batch.expression, batch.head.pose, batch.head)

    def deform(self, expression: Float[Tensor, "B E"], pose_code: Float[Tensor, "B 6"], head: HeadPose) -> DeformedHead:
        """As `forward`. `pose_code` is the pose the networks see, `head` the one that places the head."""
        neutral, landmark_count = self.landmarks_3d_neutral, len(self.landmarks_3d_neutral)
        surface, landmark_sdf, landmark_offset = self._neutral(int(self.config.subdivide), neutral)
        vertices, landmarks = surface.vertices, neutral + landmark_offset.tanh() / OFFSET_DIVISOR
        weights = control(vertices, self.landmarks_3d_neutral, self.config.dist_threshold_near, self.config.dist_threshold_far)
        near, far = weights.expression_rows, weights.pose_rows
        pose = self.encode(pose_code)

        # index_select: unlike that of indexing, its gradient needs no sorting.
        colors = weights.blend(
            self.exp_color(surface.features.index_select(0, near), expression).sigmoid(),
            self.pose_color(surface.features.index_select(0, far), pose).sigmoid(),
        )
        # Landmarks move with weight 1 under each expression, and not with the pose.
        places = torch.cat([vertices.index_select(0, near), landmarks])
        motion = self.exp_deform(self.encode(places), expression).tanh()
        by_expression, landmark_motion = motion.split([len(near), landmark_count], dim=1)
        moved = vertices + self.config.deform_scale * weights.expression_part(by_expression)
        by_pose = self.pose_deform(self.encode(moved.index_select(1, far)), pose).tanh()
        moved = moved + self.config.deform_scale * weights.pose_part(by_pose)

        return DeformedHead(
            mesh=HeadMesh(head.to_world(moved), colors, surface.faces),
            landmarks_canonical=landmarks + self.config.deform_scale * landmark_motion,
            landmark_sdf=landmark_sdf,
            deformation_magnitude=mean_squared_norm(by_expression) + mean_squared_norm(by_pose),
        )

    def neutral_surface(self, subdivisions: int | None = None) -> IsoSurface:
        """The expression-free surface with its features; `subdivisions` defaults to what the configuration says.

        Raises InputError when the field has no zero level.
        """
        return self._neutral(int(self.config.subdivide) if subdivisions is None else subdivisions, self.tet_verts[:0])[0]

    def encode(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        """Positional encoding with this head's number of frequencies."""
        return positional_encoding(x, self.config.pos_freq)

    def start_landmarks_at(self, control_points: Float[Tensor, "L 3"], head: HeadPose) -> None:
        """Neutral landmarks := one frame's landmarks in canonical units."""
        with torch.no_grad():
            self.landmarks_3d_neutral.copy_(head.to_canonical(control_points))

    def start_as_sphere(self, seed: int) -> None:
        """Fits the sdf to a unit sphere, so that marching tetrahedra finds a surface from the first step."""
        optimizer = torch.optim.Adam(self.geometry.parameters(), lr=SPHERE_LEARNING_RATE)
        for step in tqdm(range(SPHERE_STEPS), desc="sphere start", unit="step", mininterval=0.5 if is_terminal() else 15.0,
                         disable=not is_first()):
            points = (torch.rand(SPHERE_POINTS, 3, generator=keyed_generator(seed, step)) * 2.0 - 1.0) * SPHERE_EXTENT
            points = points.to(self.tet_verts.device)
            loss = (self._fields(points)[0] - (points.norm(dim=1) - SPHERE_RADIUS)).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def _neutral(
        self, subdivisions: int, others: Float[Tensor, "L 3"]
    ) -> tuple[IsoSurface, Float[Tensor, "L"], Float[Tensor, "L 3"]]:
        """The expression-free surface, and sdf and offset of other points.

        The surface depends on the signs of the sdf everywhere, which have no gradient, and on the fields at the ends of crossed edges,
        some hundredths of the grid, in float32.
        """
        grid = self._grid(subdivisions)
        with torch.no_grad():
            signs = self._signs(grid.vertices)
            crossings = find_crossings(grid.tets, signs > 0)
            check_crossings(crossings, signs)
        points = torch.cat([grid.vertices.index_select(0, crossings.ends), others])
        sdf, offset, feature = self._fields(points)
        count = len(crossings.ends)
        positions = points[:count] + offset[:count].tanh() / (OFFSET_DIVISOR * 2.0**subdivisions)
        return zero_level(crossings, positions, sdf[:count], feature[:count]), sdf[count:], offset[count:]

    def _grid(self, subdivisions: int) -> TetGrid:
        """The grid with every tetrahedron cut into eight so many times; what the configuration asks for is kept."""
        grid = TetGrid(self.tet_verts, self.tets)
        if subdivisions == 0:
            return grid
        versions = grid.vertices._version, grid.tets._version, subdivisions
        if self._kept is not None:
            source, of, kept = self._kept
            if source.vertices is grid.vertices and source.tets is grid.tets and of == versions:
                return kept
        fine = grid
        for _ in range(subdivisions):
            fine = subdivide(fine)
        if subdivisions == int(self.config.subdivide):
            self._kept = grid, versions, fine
        return fine

    def _signs(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """A field with the signs of the sdf: from rough products, except where these cannot tell."""
        def sdf(points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
            return torch.cat([self.geometry(self.encode(part), columns=1)[:, 0].tanh() for part in points.split(SIGN_POINTS)])

        with rough_products():
            rough = sdf(points)
        return with_exact_signs(rough, SIGN_MARGIN, lambda rows: sdf(points.index_select(0, rows)))

    def _fields(self, points: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"], Float[Tensor, "N F"]]:
        sdf, offset, feature = self.geometry(self.encode(points)).tanh().split([1, 3, self.config.feature_width], dim=1)
        return sdf[:, 0], offset, feature


def with_exact_signs(
    rough: Float[Tensor, "N"], margin: float, exact: Callable[[Int[Tensor, "K"]], Float[Tensor, "K"]]
) -> Float[Tensor, "N"]:
    """`rough` with exact values at all rows where it is below the margin: if it errs by less than that, all signs are exact."""
    rows = (rough.abs() < margin).nonzero()[:, 0]
    return rough.index_copy(0, rows, exact(rows))


def tetrahedral_grid(config: MeshHeadConfig) -> TetGrid:
    """The user's grid file, or a generated grid over `model_bbox`. Raises InputError for a file that holds no grid."""
    if config.grid_file is None:
        return body_centred_grid(config.model_bbox, config.grid_cells)
    path = config.grid_file
    try:
        arrays = parse_arrays(path, read_bytes(path))
        vertices, tets = numbers(path, arrays, (None, 3), "tet_verts"), finite(f"{path}: 'tets'", arrays.get("tets"), (None, 4), np.float64)
        if tets.min() < 0 or tets.max() >= len(vertices):
            raise InputError(f"{path}: 'tets': expected numbers below {len(vertices)}, how many tet_verts there are, found {tets.min():g} to "
                             f"{tets.max():g}")
    except InputError as error:
        raise InputError(f"meshheadmodule.grid_file: {error}. Expected an npz with tet_verts (N,3) and tets (T,4); leave the key out to have a grid "
                         "generated") from error
    return oriented(TetGrid(torch.from_numpy(vertices), torch.from_numpy(tets.astype(np.int64))))
