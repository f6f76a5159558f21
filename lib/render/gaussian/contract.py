"""What every rasterizer backend takes and gives."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.errors import InputError
from lib.gaussians.cloud import GaussianCloud
from lib.geometry.camera import Camera
from lib.tensors import TensorBundle

Result = TypeVar("Result")
PAIRS_MAX = 2**31 - 1  # kernels number places in lists by 32 bits


def room_for(pairs: int, spare: float) -> int:
    """For so many pairs of tiles and Gaussians, and a part of them more. Raises InputError if they cannot be numbered."""
    room = int((1.0 + spare) * pairs)
    if room > PAIRS_MAX:
        raise InputError(f"{pairs} pairs of Gaussians and tiles: draw fewer images at once, or look for scales that are far too large")
    return room


@dataclass(frozen=True)
class FeatureImage(TensorBundle):
    """Blended features over the background, and the accumulated opacity.

    `radii`: pixels, three standard deviations of the larger axis of every Gaussian's ellipse, rounded up; 0 where it was culled, of which
    backends know more or less: nothing is drawn of those that only some of them give a radius.
    """

    features: Float[Tensor, "B C H W"]
    alpha: Float[Tensor, "B 1 H W"]
    radii: Int[Tensor, "B N"]


@dataclass
class Capacity:
    """Room for pairs of tiles and Gaussians, so that a drawing needs no answer from the device and a CUDA graph can record it.

    A drawing that needs more is NaN everywhere, so that nobody takes it for a picture; `drawn` notices and draws again. For one drawing
    at a time: the next one with the same capacity hides what this one needed.
    """

    pairs: int
    needed: Int[Tensor, "2"] | None = None  # the first: by the last drawing; on the device

    def overflowed(self) -> bool:
        """Whether the last drawing did not fit; waits for it. If so, there is room from now on, and graphs must be recorded again.

        Raises InputError if there are more than can be numbered.
        """
        needed = 0 if self.needed is None else int(self.needed[0])
        if needed <= self.pairs:
            return False
        room = room_for(needed, 0.25)
        print(f"rasterizer: {needed} pairs of tiles and Gaussians, room for {self.pairs}; drawing again with more", flush=True)
        self.pairs = room
        return True

    def drawn(self, draw: Callable[[], Result]) -> Result:
        """What `draw` gives once it fits."""
        while True:
            result = draw()
            if not self.overflowed():
                return result


@dataclass(frozen=True)
class RasterOptions:
    """How to draw. A backend that cannot do what an option asks for refuses with a sentence.

    precision: of the blending products; `high` is about 3e-4 relative, `highest` about 1e-6. A bound: backends may do better.
    deterministic: the same gradients to the bit every time, for more memory; also where torch.use_deterministic_algorithms was called.
    clip: leave out what lies beyond three standard deviations, rounded outwards to squares of 16 px, as INRIA's rasterizer does.
    check: look for NaN and infinity in the inputs first (waits for the device) and raise InputError.
    dtype: of the image, for example float16; None is that of the features. Gradients are computed as precisely as without it.
    capacity: how many pairs of tiles and Gaussians there is room for; the host then never waits for the device.
    """

    precision: Literal["high", "highest"] = "high"
    deterministic: bool = False
    clip: bool = False
    check: bool = False
    dtype: torch.dtype | None = None
    capacity: "Capacity | None" = None


DEFAULT = RasterOptions()


def one_per_camera(cloud: GaussianCloud, camera: Camera) -> GaussianCloud:
    """As many clouds as cameras: a single one is seen by all of them."""
    batch = len(camera.intrinsics)
    if len(cloud.means) == batch:
        return cloud
    return GaussianCloud(*(getattr(cloud, field.name).expand(batch, *getattr(cloud, field.name).shape[1:]) for field in dataclasses.fields(cloud)))
