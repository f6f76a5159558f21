"""An avatar drawn in the ways one can look at it, one picture at a time."""

import dataclasses

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lib.avatars.gaussian_head_avatar.avatar import RGB, GaussianAvatar
from lib.avatars.gaussian_head_avatar.renderer import AvatarRenderer
from lib.avatars.gaussian_head_avatar.viewer.wish import WHITE, Look
from lib.datasets.driving import DrivingFrame
from lib.datasets.images import to_uint8
from lib.errors import NumericalError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.networks.precision import Precision
from lib.networks.upsampler import SCALE
from lib.render.gaussian.interface import rasterize
from lib.render.gaussian.launch import on_device

OPAQUE = 0.5  # of its standard deviations: how large an opaque Gaussian is drawn, so that neighbours can be told apart
COVERED = 0.5  # of a pixel: from here on it has a normal


class AvatarViews:
    """Pictures of an avatar that does not change any more.

    Super-resolved and coarse pictures are those of AvatarRenderer. Both are drawn on white, as trained: with another background the white that
    shines through is replaced by it, for super-resolved pictures by the coarse opacity, enlarged. `Gaussians` are opaque and smaller than they
    are; `normals` are those of the surface at the mean depth of every pixel, in camera axes, nothing that training knew of.
    """

    def __init__(self, avatar: GaussianAvatar, precision: Precision) -> None:
        self.avatar, self.precision = avatar, precision
        self._made_for: tuple[int, bool] | None = None

    @torch.no_grad()
    def draw(self, frame: DrivingFrame, look: Look) -> UInt8[Tensor, "3 H W"]:
        """On the CPU, `look.resolution` pixels square, as `frame.camera` is. Raises NumericalError where the picture is not finite."""
        renderer = self._renderer(look.resolution, look.view == "coarse")
        with on_device(renderer.background):
            background = torch.tensor(look.background, device=renderer.device) / 255.0
            if look.view == "Gaussians":
                image = _opaque(self._cloud(renderer, frame), frame.camera.to(renderer.device), background)
            elif look.view == "normals":
                image = _normals(self._cloud(renderer, frame), frame.camera.to(renderer.device), background)
            else:
                image = self._trained(renderer, frame, look, background)
            pixels = to_uint8(image).cpu()
            if not bool(torch.isfinite(image.sum())):
                raise NumericalError("the avatar renders NaN here; is the checkpoint damaged, or an expression far out?")
        return pixels

    def _renderer(self, resolution: int, coarse: bool) -> AvatarRenderer:
        """The last one is kept: on CUDA it is a graph of one size."""
        if self._made_for != (resolution, coarse):
            self._kept = AvatarRenderer(self.avatar, resolution, resolution, self.precision, coarse_only=coarse)
            self._made_for = (resolution, coarse)
        return self._kept

    def _trained(self, renderer: AvatarRenderer, frame: DrivingFrame, look: Look, background: Float[Tensor, "3"]) -> Float[Tensor, "3 H W"]:
        drawing = renderer(frame)
        while int(drawing.needed[0]) > drawing.room:
            renderer.make_room(int(drawing.needed[0]))
            drawing = renderer(frame)
        image = drawing.image
        if look.background != WHITE:
            cloud = self._cloud(renderer, frame)
            cloud = dataclasses.replace(cloud, features=torch.zeros_like(cloud.means[..., :1]))
            size = look.resolution // SCALE
            through = 1.0 - rasterize(cloud, frame.camera.resized(size, size).to(renderer.device), background[:1]).alpha
            if not renderer.coarse_only:  # more than the least of red, green and blue cannot be white that shines through
                through = torch.minimum(_enlarged(through), image.amin(dim=1, keepdim=True).clamp_min(0.0))
            image = image - through * (1.0 - background[:, None, None])
        if renderer.coarse_only:
            image = torch.nn.functional.interpolate(image, scale_factor=float(SCALE), mode="nearest")
        return image[0]

    def _cloud(self, renderer: AvatarRenderer, frame: DrivingFrame) -> GaussianCloud:
        moved = frame.to(renderer.device)
        return renderer.head(moved.expression, renderer.head.encode(moved.pose_code), moved.head)


def _opaque(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "3"]) -> Float[Tensor, "3 H W"]:
    cloud = dataclasses.replace(cloud, opacities=torch.ones_like(cloud.opacities), scales=OPAQUE * cloud.scales,
                                features=cloud.features[..., RGB].contiguous())
    return rasterize(cloud, camera, background).features[0]


def _normals(cloud: GaussianCloud, camera: Camera, background: Float[Tensor, "3"]) -> Float[Tensor, "3 H W"]:
    """x right, y up, z towards the camera, from -1 to 1, as red, green, blue. Drawn as in training, at a quarter of the size, and enlarged."""
    points = camera.to_camera(cloud.means).contiguous()
    coarse = camera.resized(camera.width // SCALE, camera.height // SCALE)
    drawn = rasterize(dataclasses.replace(cloud, features=points), coarse, torch.zeros_like(background))
    surface = torch.nn.functional.pad(drawn.features / drawn.alpha.clamp_min(1e-6), (1, 1, 1, 1), mode="replicate")
    across, down = surface[..., 1:-1, 2:] - surface[..., 1:-1, :-2], surface[..., 2:, 1:-1] - surface[..., :-2, 1:-1]
    away = torch.nn.functional.normalize(torch.linalg.cross(across, down, dim=1), dim=1)  # from the camera: x right, y down, z forward
    color = 0.5 + 0.5 * away * away.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
    return torch.where(_enlarged(drawn.alpha) > COVERED, _enlarged(color), background[:, None, None])[0]


def _enlarged(image: Float[Tensor, "1 C h w"]) -> Float[Tensor, "1 C H W"]:
    return torch.nn.functional.interpolate(image, scale_factor=float(SCALE), mode="bilinear")
