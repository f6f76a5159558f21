"""Stage 2: a cloud of Gaussians whose colour, place and shape follow expression and head pose."""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from lib.avatars.gaussian_head_avatar.control import Control, control
from lib.avatars.gaussian_head_avatar.mesh_head import POSE_WIDTH, MeshHeadConfig
from lib.config import Config
from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.head_pose import HeadPose
from lib.networks.frozen_mlp import FrozenMLP
from lib.networks.mlp import MLP, resolve_widths
from lib.networks.positional_encoding import encoded_width, positional_encoding

# Attribute offsets: 3 log-scales, 4 quaternion components, 1 opacity logit.
ATTRIBUTES = (3, 4, 1)
# The networks that stage 1 hands over, and the configuration lists of their widths.
SHARED_NETWORKS = ("exp_color", "pose_color", "exp_deform", "pose_deform")

BoundMLP = Callable[[Float[Tensor, "B K"]], Float[Tensor, "B N O"]]


class GaussianHeadConfig(Config):
    """Section `gaussianheadmodule`. Widths of the four shared networks are those of stage 1."""

    num_add_mouth_points: int = Field(0, ge=0, description="Gaussians added around the mouth, where the mesh has no inside")
    exp_color_mlp: tuple[int, ...] = Field((), description="widths: feature + expression -> colour channels")
    pose_color_mlp: tuple[int, ...] = Field((), description="widths: feature + encoded pose -> colour channels")
    exp_attributes_mlp: tuple[int, ...] = Field((), description="widths: feature + expression -> 8 attribute offsets")
    pose_attributes_mlp: tuple[int, ...] = Field((), description="widths: feature + encoded pose -> 8 attribute offsets")
    exp_deform_mlp: tuple[int, ...] = Field((), description="widths: encoded position + expression -> displacement")
    pose_deform_mlp: tuple[int, ...] = Field((), description="widths: encoded position + encoded pose -> displacement")
    exp_coeffs_dim: int | None = Field(None, gt=0, description="expression coefficients; derived from the data")
    pos_freq: int = Field(4, ge=0, description="frequencies of the positional encoding")
    dist_threshold_near: float = Field(0.1, ge=0, description="squared canonical units: fully expression-driven inside")
    dist_threshold_far: float = Field(0.2, gt=0, description="squared canonical units: fully pose-driven outside")
    deform_scale: float = Field(0.3, gt=0, description="canonical units per unit of displacement output")
    pose_deform_at: Literal["undeformed", "deformed"] = Field(
        "undeformed", description="where the pose deformation is evaluated: at the neutral point (published) or after the expression, as in stage 1")
    attributes_scale: float = Field(0.05, gt=0, description="log-scale, quaternion or logit units per unit of attribute output")

    @model_validator(mode="after")
    def _order(self) -> "GaussianHeadConfig":
        if self.dist_threshold_far <= self.dist_threshold_near:
            raise ValueError(f"dist_threshold_far ({self.dist_threshold_far}) must be larger than dist_threshold_near ({self.dist_threshold_near})")
        return self

    @property
    def feature_width(self) -> int:
        """Features per Gaussian, of a resolved configuration."""
        return self.pose_color_mlp[0] - encoded_width(POSE_WIDTH, self.pos_freq)

    @property
    def color_channels(self) -> int:
        """Channels of the rendered feature image, of a resolved configuration."""
        return self.exp_color_mlp[-1]

    def resolved(self, mesh_head: MeshHeadConfig, expression_count: int) -> "GaussianHeadConfig":
        """Fills in every width from a resolved stage-1 configuration.

        Raises InputError when a given list differs from stage 1 or does not fit the data.
        """
        if self.exp_coeffs_dim not in (None, expression_count):
            raise InputError(f"gaussianheadmodule.exp_coeffs_dim is {self.exp_coeffs_dim}, but the data has {expression_count} coefficients")
        if self.pos_freq != mesh_head.pos_freq:
            raise InputError(f"gaussianheadmodule.pos_freq is {self.pos_freq}, but stage 1 was trained with {mesh_head.pos_freq}")
        if mesh_head.expression_count != expression_count:
            raise InputError(f"load_meshhead_checkpoint: stage 1 was trained with {mesh_head.expression_count} expression coefficients, "
                             f"the data has {expression_count}; both stages need one subject")
        widths: dict[str, object] = {"exp_coeffs_dim": expression_count}
        for network in SHARED_NETWORKS:
            key = f"{network}_mlp"
            given, trained = getattr(self, key), getattr(mesh_head, key)
            if given and given != trained:
                raise InputError(f"gaussianheadmodule.{key} is {list(given)}, but stage 1 was trained with {list(trained)}; "
                                 "its weights are handed over, so the lists must be equal (or leave this one out)")
            widths[key] = trained
        feature = (mesh_head.feature_width, f"{mesh_head.feature_width} features")
        pose = encoded_width(POSE_WIDTH, self.pos_freq)
        expression = (expression_count, f"{expression_count} expression coefficients of the data")
        for key, given, hidden, part in (
            ("exp_attributes_mlp", self.exp_attributes_mlp, (256,) * 3, expression),
            ("pose_attributes_mlp", self.pose_attributes_mlp, (128,) * 2, (pose, f"{pose} encoded pose")),
        ):
            widths[key] = resolve_widths(given, hidden, (feature, part), sum(ATTRIBUTES), f"gaussianheadmodule.{key}")
        return self.model_copy(update=widths)


class GaussianHead(nn.Module):
    """Gaussian Head Avatar, section 3.2: neutral Gaussians in canonical units and six networks that move them."""

    landmarks_3d_neutral: Tensor
    own_pose: Tensor

    def __init__(self, config: GaussianHeadConfig, point_count: int, landmark_count: int) -> None:
        """`config` must be resolved. Points and landmarks are zero until a handover or a checkpoint fills them."""
        super().__init__()
        self.config = config
        self.xyz = nn.Parameter(torch.zeros(point_count, 3))
        self.feature = nn.Parameter(torch.zeros(point_count, config.feature_width))  # before tanh
        self.scales = nn.Parameter(torch.zeros(point_count, 3))  # log
        self.rotation = nn.Parameter(torch.zeros(point_count, 4))  # quaternion wxyz, normalised when used
        self.opacity = nn.Parameter(torch.zeros(point_count, 1))  # logit
        self.register_buffer("landmarks_3d_neutral", torch.zeros(landmark_count, 3))
        self.register_buffer("own_pose", torch.zeros(6))  # a typical tracked pose of the training, for reenactment
        self.exp_color = MLP(config.exp_color_mlp, rounded=True)
        self.pose_color = MLP(config.pose_color_mlp, rounded=True)
        self.exp_deform = MLP(config.exp_deform_mlp)
        self.pose_deform = MLP(config.pose_deform_mlp)
        self.exp_attributes = MLP(config.exp_attributes_mlp, rounded=True)
        self.pose_attributes = MLP(config.pose_attributes_mlp, rounded=True)

    def forward(self, expression: Float[Tensor, "B E"], pose_code: Float[Tensor, "B 6"], head: HeadPose) -> GaussianCloud:
        """The cloud in the world. `pose_code` is the pose the networks see, `head` the one that places the head."""
        return self.cloud(self.control(), expression, pose_code, head)

    def control(self, margin: float = 0.0, kept: Control | None = None) -> Control:
        """Who moves which Gaussian; `margin` and `kept` as in `control`."""
        return control(self.xyz, self.landmarks_3d_neutral, self.config.dist_threshold_near, self.config.dist_threshold_far, margin, kept)

    def cloud(self, weights: Control, expression: Float[Tensor, "B E"], pose_code: Float[Tensor, "B 6"], head: HeadPose) -> GaussianCloud:
        """As `forward`, with `control` computed before: all that is left has fixed operations and can be compiled."""
        bound = BoundHead(self, functools.partial, weights)
        return bound(expression, bound.encode(pose_code), head)

    def bound(self) -> "BoundHead":
        """The head as it is in training."""
        return BoundHead(self, functools.partial, self.control())

    @torch.no_grad()
    def frozen(self, dtype: torch.dtype) -> "BoundHead":
        """For drawing only: all that does not depend on the frame is computed now. `dtype`: of the networks' matrix products."""
        return BoundHead(self, functools.partial(FrozenMLP, dtype=dtype), self.control())


class BoundHead:
    """A head whose networks are bound to the Gaussians that each of them moves."""

    def __init__(self, head: GaussianHead, bind: Callable[[MLP, Tensor], BoundMLP], weights: Control) -> None:
        """`bind` gives a network at some points, as a function of the code that these share."""
        config = head.config
        self.head, self._bind, self.weights = head, bind, weights
        # index_select: unlike that of indexing, its gradient needs no sorting.
        near, far, feature = self.weights.expression_rows, self.weights.pose_rows, head.feature.tanh()
        near_feature, far_feature = feature.index_select(0, near), feature.index_select(0, far)
        self.exp_color, self.pose_color = bind(head.exp_color, near_feature), bind(head.pose_color, far_feature)
        self.exp_deform = bind(head.exp_deform, self.encode(head.xyz.index_select(0, near)))
        # Unlike stage 1, the published stage 2 evaluates the pose deformation at the undeformed point.
        self.pose_deform = bind(head.pose_deform, self.encode(head.xyz.index_select(0, far))) if config.pose_deform_at == "undeformed" else None
        self.exp_attributes, self.pose_attributes = bind(head.exp_attributes, near_feature), bind(head.pose_attributes, far_feature)

    def __call__(self, expression: Float[Tensor, "B E"], pose: Float[Tensor, "B K"], head: HeadPose) -> GaussianCloud:
        """As GaussianHead.forward, with the pose that the networks see encoded."""
        neutral, config, weights = self.head, self.head.config, self.weights

        colors = weights.blend(self.exp_color(expression), self.pose_color(pose))
        by_expression = config.deform_scale * weights.expression_part(self.exp_deform(expression).tanh())
        moved = self.pose_deform
        if moved is None:  # not `or`: what is bound has no truth that compilers know, and torch 2.11 would compile nine pieces
            moved = self._bind(neutral.pose_deform, self.encode((neutral.xyz + by_expression).index_select(1, weights.pose_rows)))
        by_pose = config.deform_scale * weights.pose_part(moved(pose).tanh())
        change = weights.blend(self.exp_attributes(expression), self.pose_attributes(pose))
        scale, turn, opacity = (config.attributes_scale * change).split(ATTRIBUTES, dim=-1)

        quats = nn.functional.normalize(neutral.rotation + turn, dim=-1)
        return GaussianCloud(
            means=head.to_world(neutral.xyz + by_expression + by_pose),
            quats_wxyz=head.rotate_quaternions(quats),
            scales=(neutral.scales + scale).exp() * head.scale[:, None],
            opacities=(neutral.opacity + opacity).sigmoid()[..., 0],
            features=colors,
        )

    def encode(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        """A position or a pose as networks see it."""
        return positional_encoding(x, self.head.config.pos_freq)
