"""What a capture hands to training and evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from lib.tensors import TensorBundle


@dataclass(frozen=True)
class HeadBatch(TensorBundle):
    """B frames of one subject, V views each. Images in [0,1] as captured (not composited); `visible` 0 = padding.

    `samples` are the numbers of the items in the endless order of training, to which randomness is keyed; none elsewhere.
    """

    frame: str | tuple[str, ...]
    view: str | tuple[str, ...]
    frame_index: Int[Tensor, "*B"]
    images: Float[Tensor, "*B V 3 H W"]
    masks: Float[Tensor, "*B V 1 H W"]
    visible: Float[Tensor, "*B V 1 H W"]
    camera: Camera
    expression: Float[Tensor, "*B E"]
    head: HeadPose
    control_points: Float[Tensor, "*B L 3"]
    samples: tuple[int, ...] = ()

    def parts(self, count: int) -> Iterator["HeadBatch"]:
        """The batch in `count` equal parts; its size must be a multiple of that."""
        size = len(self.frame) // count
        return (self.rows(slice(part * size, (part + 1) * size)) if count > 1 else self for part in range(count))

    def flat_camera(self) -> Camera:
        """The B·V cameras in one batch."""
        camera = self.camera
        return Camera(camera.world_to_camera.flatten(0, 1), camera.intrinsics.flatten(0, 1), camera.width, camera.height)

    def on_white(self) -> Float[Tensor, "B V 3 H W"]:
        """Images composited over white with their mattes."""
        return self.images * self.masks + (1.0 - self.masks)
