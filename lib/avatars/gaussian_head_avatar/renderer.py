"""A trained avatar drawn frame after frame at one size, as fast as the device can."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.avatars.gaussian_head_avatar.avatar import RGB, GaussianAvatar
from lib.datasets.driving import DrivingFrame
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose, SolvedHeadPose
from lib.networks.precision import Precision
from lib.networks.upsampler import SCALE
from lib.render.gaussian.contract import Capacity, RasterOptions
from lib.render.gaussian.interface import rasterize
from lib.render.replay import Replay, can_record

PAIRS_PER_GAUSSIAN, PAIRS_LEAST = 32, 1 << 20  # first room for pairs of tiles and Gaussians, of 16 bytes each; more is made when it is needed


@dataclass(frozen=True)
class Drawing:
    """A picture on the device, which the next one overwrites. Where `needed`, also on the device, is above `room`, it is NaN."""

    image: Float[Tensor, "1 3 H W"]
    needed: Int[Tensor, "2"]
    room: int


class AvatarRenderer:
    """Draws an avatar for one camera of a fixed size; starts drawing and does not wait for it.

    On CUDA, where the rasterizer's kernels run, everything is one CUDA graph, recorded at the first frame. On the CPU it is the avatar as
    in training, to the bit. `precision` matters on CUDA: `highest` is float32; `high` takes float16 for the factors of the networks' matrix
    products (11 bits, as TF32: displacements are off by hundredths of a pixel, with bfloat16 by tenths) and bfloat16 for super-resolution.
    `coarse_only`: without super-resolution, three channels, at a quarter of the size.
    """

    @torch.no_grad()
    def __init__(self, avatar: GaussianAvatar, width: int, height: int, precision: Precision = "high", coarse_only: bool = False) -> None:
        """The avatar must not change any more. `width`, `height`: of the camera, divisible by 4."""
        self.device, self.coarse_only = avatar.head.xyz.device, coarse_only
        self._camera_size, self._coarse_size = (width, height), (width // SCALE, height // SCALE)
        self.width, self.height = self._coarse_size if coarse_only else self._camera_size
        cuda = self.device.type == "cuda"
        self.ahead = 1 if cuda else 0  # drawings that may be started before the result of one is looked at
        fast = cuda and precision == "high"
        self.head = avatar.head.frozen(torch.float16 if fast else torch.float32) if cuda else avatar.head.bound()
        self.upsampler = copy.copy(avatar.upsampler)  # the same weights
        self.upsampler.precision = "high" if fast else "highest"
        self.background = torch.ones(3 if coarse_only else avatar.head.config.color_channels, device=self.device)
        self.options, self._replay = RasterOptions(precision="high" if fast else "highest"), None
        if can_record(self.device):
            room = Capacity(max(PAIRS_PER_GAUSSIAN * len(avatar.head.xyz), PAIRS_LEAST))
            self.options = dataclasses.replace(self.options, capacity=room)
            self._replay = Replay(self._draw_inputs, room, self.device)
        self._nothing_needed = torch.zeros(2, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def __call__(self, frame: DrivingFrame) -> Drawing:
        """Starts drawing a frame, whose tensors are on the CPU."""
        if (frame.camera.width, frame.camera.height) != self._camera_size:
            raise ValueError(f"a camera of {frame.camera.width} x {frame.camera.height} pixels; the renderer was made for {self._camera_size}")
        camera, pose = frame.camera.resized(*self._coarse_size), self.head.encode(frame.pose_code)
        if self._replay is None:
            head, camera = frame.head.to(self.device), camera.to(self.device)
            return Drawing(self._draw(frame.expression.to(self.device), pose.to(self.device), head, camera), self._nothing_needed, 0)
        head = frame.head.solved()
        image = self._replay(
            frame.expression, pose, head.pose, head.scale, head.matrix, head.quat_matrix, camera.world_to_camera, camera.intrinsics)
        return Drawing(image, self._replay.capacity.needed, self._replay.capacity.pairs)

    def make_room(self, needed: int) -> None:
        """After a drawing that had too little: the next ones have more, and the graph is recorded again."""
        if self._replay is not None:
            self._replay.capacity.needed = torch.tensor([needed, 0])
            self._replay.capacity.overflowed()

    def _draw_inputs(
        self, expression: Float[Tensor, "1 E"], pose: Float[Tensor, "1 K"], head_pose: Float[Tensor, "1 6"], scale: Float[Tensor, "1 1"],
        matrix: Float[Tensor, "1 3 3"], quat_matrix: Float[Tensor, "1 4 4"], world_to_camera: Float[Tensor, "1 3 4"],
        intrinsics: Float[Tensor, "1 3 3"],
    ) -> Float[Tensor, "1 3 H W"]:
        return self._draw(expression, pose, SolvedHeadPose(head_pose, scale, matrix, quat_matrix),
                          Camera(world_to_camera, intrinsics, *self._coarse_size))

    def _draw(
        self, expression: Float[Tensor, "1 E"], pose: Float[Tensor, "1 K"], head: HeadPose, camera: Camera,
    ) -> Float[Tensor, "1 3 H W"]:
        cloud = self.head(expression, pose, head)
        if self.coarse_only:
            cloud = dataclasses.replace(cloud, features=cloud.features[..., RGB].contiguous())
        coarse = rasterize(cloud, camera, self.background, options=self.options)
        return coarse.features if self.coarse_only else self.upsampler(coarse.features)
