"""What a capture hands to training and evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from lib.tensors import TensorBundle


@dataclass(frozen=True)
class HeadBatch(TensorBundle):
    """B frames of one subject, V views each. `pixels` are RGB, matte and visible (0 = padding) as captured, 8 bit; the pictures in [0,1]
    are made of them where they are asked for, on the device of the batch.

    `samples` are the numbers of the items in the endless order of training, to which randomness is keyed; none elsewhere.
    """

    frame: str | tuple[str, ...]
    view: str | tuple[str, ...]
    frame_index: Int[Tensor, "*B"]
    pixels: UInt8[Tensor, "*B V 5 H W"]
    camera: Camera
    expression: Float[Tensor, "*B E"]
    head: HeadPose
    control_points: Float[Tensor, "*B L 3"]
    samples: tuple[int, ...] = ()

    def parts(self, count: int) -> Iterator["HeadBatch"]:
        """The batch in `count` equal parts; its size must be a multiple of that."""
        size = len(self.frame) // count
        return (self.rows(slice(part * size, (part + 1) * size)) if count > 1 else self for part in range(count))

    @property
    def images(self) -> Float[Tensor, "*B V 3 H W"]:
        """RGB as captured, not composited."""
        return _in_unit_range(self.pixels[..., :3, :, :])

    @property
    def masks(self) -> Float[Tensor, "*B V 1 H W"]:
        """Mattes."""
        return _in_unit_range(self.pixels[..., 3:4, :, :])

    @property
    def visible(self) -> Float[Tensor, "*B V 1 H W"]:
        """0 = padding."""
        return visible(self.pixels)

    def flat_camera(self) -> Camera:
        """The B·V cameras in one batch."""
        camera = self.camera
        return Camera(camera.world_to_camera.flatten(0, 1), camera.intrinsics.flatten(0, 1), camera.width, camera.height)

    def on_white(self) -> Float[Tensor, "B V 3 H W"]:
        """Images composited over white with their mattes."""
        return on_white(self.pixels)


def on_white(pixels: UInt8[Tensor, "*B 5 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """RGB over white, of pixels as in HeadBatch."""
    masks = _in_unit_range(pixels[..., 3:4, :, :])
    return _in_unit_range(pixels[..., :3, :, :]) * masks + (1.0 - masks)


def visible(pixels: UInt8[Tensor, "*B 5 H W"]) -> Float[Tensor, "*B 1 H W"]:
    """0 = padding, of pixels as in HeadBatch."""
    return _in_unit_range(pixels[..., 4:5, :, :])


def where_seen(image: Float[Tensor, "*B 3 H W"], target: Float[Tensor, "*B 3 H W"], pixels: UInt8[Tensor, "*B 5 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """The picture, and its target in the padding, of which nobody knows what would be right there."""
    seen = visible(pixels)
    return image * seen + target * (1.0 - seen)


def _in_unit_range(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    # By a tensor: on CUDA, division by a number is multiplication with its rounded reciprocal, which gives other bits.
    return pixels / torch.full((), 255.0, device=pixels.device)
