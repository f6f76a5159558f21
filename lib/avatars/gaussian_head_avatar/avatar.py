"""The trained avatar: Gaussian head, rasterizer at a quarter of the resolution, super-resolution."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from lib.avatars.gaussian_head_avatar.gaussian_head import GaussianHead, GaussianHeadConfig
from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from lib.networks.precision import Precision
from lib.networks.upsampler import SCALE, Upsampler, UpsamplerConfig
from lib.render.gaussian.contract import FeatureImage, RasterOptions
from lib.render.gaussian.interface import rasterize
from lib.tensors import TensorBundle
from lib.training.checkpoint import Checkpoint, load_module

RGB = slice(0, 3)


@dataclass(frozen=True)
class AvatarImage(TensorBundle):
    """An avatar on white: the picture, and the feature image at a quarter of its size (channels 0:3 are RGB)."""

    image: Float[Tensor, "B 3 H W"]
    coarse: FeatureImage


class GaussianAvatar(nn.Module):
    """Everything that is needed to draw. `precision`: of blending on CUDA, as RasterOptions has it; head and upsampler have their own."""

    def __init__(self, head: GaussianHead, upsampler: Upsampler) -> None:
        super().__init__()
        self.precision: Precision = "highest"
        self.head, self.upsampler = head, upsampler

    def forward(self, expression: Float[Tensor, "B E"], pose_code: Float[Tensor, "B 6"], head: HeadPose, camera: Camera) -> AvatarImage:
        """Draws B heads, each by its own camera, at the cameras' size (divisible by 4)."""
        coarse = self.features(self.head(expression, pose_code, head), camera)
        return AvatarImage(self.upsampler(coarse.features), coarse)

    def features(self, cloud: GaussianCloud, camera: Camera) -> FeatureImage:
        """The feature image of posed Gaussians alone, over a background of 1 in every channel."""
        background = cloud.features.new_ones(cloud.features.shape[-1])
        coarse = camera.resized(camera.width // SCALE, camera.height // SCALE)
        return rasterize(cloud, coarse, background, options=RasterOptions(precision=self.precision))


def avatar_from(checkpoint: Checkpoint) -> GaussianAvatar:
    """The avatar of a stage-2 checkpoint, on the CPU."""
    state = checkpoint.module("gaussianhead")
    config = checkpoint.options("gaussianheadmodule", GaussianHeadConfig)
    head = GaussianHead(config, *(len(state.get(name, ())) for name in ("xyz", "landmarks_3d_neutral")))
    upsampler = Upsampler(checkpoint.options("supresmodule", UpsamplerConfig))
    load_module(head, state, f"{checkpoint.path}: module 'gaussianhead'")
    load_module(upsampler, checkpoint.module("supres"), f"{checkpoint.path}: module 'supres'")
    return GaussianAvatar(head, upsampler)


def check_resolution(resolution: int) -> None:
    """Raises InputError when a picture cannot be super-resolved to this size."""
    if resolution % SCALE or resolution < 4 * SCALE:
        raise InputError(f"dataset.resolution is {resolution}; expected a multiple of {SCALE} of at least {4 * SCALE}: "
                         f"features are rasterized at 1/{SCALE} of it")
