"""Seeded scenes for benchmarks of the rasterizer: clouds, cameras and the gradient that comes back from a loss."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera, look_at

DISTANCE, FOCAL = 8.0, 3.15  # of the cameras, in world units; of the lens, in widths of the picture
BASE_SIZE = 512  # px: scenes whose Gaussians are given in px, or in world units of this picture
UPSTREAM = 1e-3  # standard deviation of the gradient of the image: a mean loss over millions of values is small


@dataclass(frozen=True)
class Scene:
    """What to draw. `images` are cameras around the origin; each has a cloud of its own unless one is `shared`.

    Families: `head`: an ellipsoidal shell whose Gaussians cover it about once; `large`: a ball of Gaussians of about 6 px; `random`: the whole
    picture, 2 px; `wide`: the same, 12 px and fainter; `pile`: all in one tile.
    """

    name: str
    family: str
    count: int
    opacity: float
    channels: int = 32
    images: int = 1
    shared: bool = False
    size: int = BASE_SIZE

    def reduced(self, factor: int) -> "Scene":
        """A picture smaller by `factor` with as many Gaussians per pixel, of the same sizes in pixels: lists are as long as in the whole.

        Counts stay multiples of 16, so that kernels specialised for that are the same ones.
        """
        count = self.count // factor ** (1 if self.family == "pile" else 2)
        return dataclasses.replace(self, count=max(-(-count // 16), 4) * 16, images=min(self.images, 2), size=self.size // factor)


@dataclass(frozen=True)
class Drawing:
    """Tensors of a scene. `upstream`: dL/dimage."""

    cloud: GaussianCloud
    camera: Camera
    background: Float[Tensor, "C"]
    upstream: Float[Tensor, "B C H W"]

    def to(self, device: str, dtype: torch.dtype = torch.float32) -> "Drawing":
        """The same numbers elsewhere."""
        cloud = GaussianCloud(*(getattr(self.cloud, field.name).to(device, dtype) for field in dataclasses.fields(self.cloud)))
        camera = dataclasses.replace(
            self.camera, world_to_camera=self.camera.world_to_camera.to(device, dtype), intrinsics=self.camera.intrinsics.to(device, dtype))
        return Drawing(cloud, camera, self.background.to(device, dtype), self.upstream.to(device, dtype))


_HEAD, _OPAQUE = Scene("head-150k", "head", 150_000, 0.3), Scene("head-150k-opaque", "head", 150_000, 0.9)
SCENES = [
    _HEAD, _OPAQUE, Scene("head-50k", "head", 50_000, 0.5), Scene("large-100k", "large", 100_000, 0.3),
    dataclasses.replace(_HEAD, name="head-150k-c3", channels=3), dataclasses.replace(_HEAD, name="head-150k-c64", channels=64),
    Scene("head-50k-b16", "head", 50_000, 0.5, images=16), Scene("head-50k-b16-shared", "head", 50_000, 0.5, images=16, shared=True),
    dataclasses.replace(_HEAD, name="head-150k-1024", size=1024),
    Scene("random-150k", "random", 150_000, 0.3), Scene("wide-20k", "wide", 20_000, 0.3), Scene("pile-10k", "pile", 10_000, 0.05),
]


def make_drawing(scene: Scene, seed: int = 0) -> Drawing:
    """The scene in float32 on the CPU; the same for the same seed."""
    random = torch.Generator().manual_seed(seed)
    batch, count = 1 if scene.shared else scene.images, scene.count
    means, scales = _shapes(scene, batch, random)
    quats = torch.nn.functional.normalize(torch.randn(batch, count, 4, generator=random), dim=-1)
    opacities = torch.sigmoid(math.log(scene.opacity / (1.0 - scene.opacity)) + 0.5 * torch.randn(batch, count, generator=random))
    features = torch.rand(batch, count, scene.channels, generator=random)
    upstream = UPSTREAM * torch.randn(scene.images, scene.channels, scene.size, scene.size, generator=random)
    return Drawing(GaussianCloud(means, quats, scales, opacities, features), _cameras(scene), torch.ones(scene.channels), upstream)


def _shapes(scene: Scene, batch: int, random: torch.Generator) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N 3"]]:
    """Means and scales."""
    count, pixel = scene.count, DISTANCE / (FOCAL * scene.size)  # world units that one pixel sees at the origin

    def normal(width: int) -> Float[Tensor, "B N w"]:
        return torch.randn(batch, count, width, generator=random)

    direction, noise = torch.nn.functional.normalize(normal(3), dim=-1), normal(3)
    if scene.family == "head":
        means = direction * torch.tensor([0.75, 1.0, 0.85]) * (1.0 + 0.02 * normal(1))
        return means, math.sqrt(4.0 * math.pi * 0.75 / count) * (0.3 * noise).exp()
    if scene.family == "large":
        return direction * torch.rand(batch, count, 1, generator=random) ** (1 / 3), 0.03 * BASE_SIZE / scene.size * (0.5 * noise).exp()
    if scene.family == "pile":
        return pixel * (4.0 + 0.7 * normal(3)), 0.5 * pixel * (0.3 * noise).exp()
    if scene.family in ("random", "wide"):
        half = 0.5 * scene.size * pixel
        sigma = {"random": 2.0, "wide": 12.0}[scene.family]
        return half * (2.0 * torch.rand(batch, count, 3, generator=random) - 1.0), sigma * pixel * (0.3 * noise).exp()
    raise ValueError(f"no family of scenes is called {scene.family}")


def _cameras(scene: Scene) -> Camera:
    """Evenly around the vertical axis, the first in front."""
    angle = 2.0 * math.pi * torch.arange(scene.images) / scene.images
    centers = DISTANCE * torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()], dim=1)
    focal, middle = FOCAL * scene.size, 0.5 * scene.size
    intrinsics = torch.tensor([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]]).repeat(scene.images, 1, 1)
    return Camera(look_at(centers, torch.zeros_like(centers)), intrinsics, scene.size, scene.size)
