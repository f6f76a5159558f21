"""What a person asks to see, as what drives the avatar: sliders on top of a driving frame, a camera of the browser, a clock that plays.

Nothing here knows a browser.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from lib.datasets.driving import DrivingFrame, DrivingSequence
from lib.datasets.retarget import TrainedFace
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose

View = Literal["super-resolved", "coarse", "Gaussians", "normals"]
VIEWS: tuple[View, ...] = get_args(View)
SPREADS = 3.0  # standard deviations that a slider of an expression reaches to either side
TURN_MOST = 45.0  # degrees that a slider of the head pose reaches to either side
WHITE = (255, 255, 255)
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """How a picture is drawn: `resolution` pixels square (divisible by 4), over `background`, 8-bit RGB."""

    view: View
    resolution: int
    background: tuple[int, int, int] = WHITE


@dataclass(frozen=True)
class Wish:
    """A driving frame, and what is laid on it: `offsets` of the strongest expression coefficients, `turn` of the head in degrees (nod, turn,
    tilt: about its own x, y, z)."""

    frame: int
    offsets: tuple[float, ...]
    turn: Vector
    look: Look


@dataclass(frozen=True)
class Start:
    """Where a browser's camera starts, in the world: the point it orbits about is on its axis; `fov` is vertical, in radians."""

    position: Vector
    look_at: Vector
    up: Vector
    fov: float


class Puppet:
    """A driving sequence that can be pulled: `components` are its `count` strongest expression coefficients, `spreads` their standard deviations."""

    def __init__(self, driver: DrivingSequence, count: int, trained: TrainedFace | None) -> None:
        self.driver = driver
        values = driver.expressions
        spread = values.std(dim=0, correction=0)
        if not bool(spread.any()):  # a driver that keeps still says nothing about what moves
            spread = torch.ones_like(spread) if trained is None else (trained.highest - trained.lowest) / (2.0 * SPREADS)
        strongest = spread.argsort(descending=True, stable=True)[:count]
        self.components, self.spreads = strongest, spread[strongest].clamp_min(1e-3)
        self.lens = driver[0].camera

    def frame(self, wish: Wish, camera: Camera) -> DrivingFrame:
        """What drives the avatar. Where nothing is laid on it, it is the driver's to the bit. Raises ValueError for sliders that are no numbers."""
        if not all(map(math.isfinite, (*wish.offsets, *wish.turn))):
            raise ValueError(f"sliders of the expression are at {wish.offsets}, of the head at {wish.turn}")
        frame = self.driver[min(max(wish.frame, 0), len(self.driver) - 1)]
        expression, head, code = frame.expression, frame.head, frame.pose_code
        if any(wish.offsets):
            reach = SPREADS * self.spreads
            offsets = torch.tensor(wish.offsets, dtype=expression.dtype).clamp(-reach, reach)
            expression = expression.index_add(1, self.components, offsets[None])
        if any(wish.turn):
            head = turned(head, wish.turn)
            code = head.pose if self.driver.config.pose_code_mode == "head" else code
        return dataclasses.replace(frame, expression=expression, pose_code=code, head=head, camera=camera)

    def camera(self, wxyz: tuple[float, ...], position: tuple[float, ...], resolution: int) -> Camera:
        """A browser's camera, given by camera->world rotation and place (OpenCV axes), with the driver's first lens.

        Raises ValueError for what is no rotation or place.
        """
        quat, center = torch.tensor(wxyz, dtype=torch.float64), torch.tensor(position, dtype=torch.float64)
        if not bool(torch.isfinite(torch.cat([quat, center])).all()) or float(quat.norm()) < 1e-6:
            raise ValueError(f"a browser's camera has rotation {wxyz} and position {position}")
        rotation = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(quat / quat.norm())).T
        matrix = torch.cat([rotation, -(rotation @ center)[:, None]], dim=1).float()
        return dataclasses.replace(self.lens, world_to_camera=matrix[None]).resized(resolution, resolution)

    def start(self) -> Start:
        """The driver's first camera, orbiting about the point of its axis that is nearest the head, upright along an axis of the world."""
        frame = self.driver[0]
        rotation, center = frame.camera.world_to_camera[0, :, :3], frame.camera.centers()[0]
        depth = float(rotation[2] @ (frame.head.pose[0, 3:] - center))
        target = center + (depth if depth > 0.05 else 1.0) * rotation[2]
        up = torch.zeros(3)
        axis = int(rotation[1].abs().argmax())
        up[axis] = -rotation[1, axis].sign()
        fov = 2.0 * math.atan(0.5 * frame.camera.height / float(frame.camera.intrinsics[0, 1, 1]))
        return Start(_vector(center), _vector(target), _vector(up), fov)


def turned(head: HeadPose, degrees: Vector) -> HeadPose:
    """The head turned further about its own x, then y, then z axis."""
    x, y, z = (torch.eye(3)[axis] * math.radians(min(max(angle, -TURN_MOST), TURN_MOST)) for axis, angle in enumerate(degrees))
    more = roma.rotvec_to_rotmat(y) @ roma.rotvec_to_rotmat(x) @ roma.rotvec_to_rotmat(z)
    return dataclasses.replace(head, pose=torch.cat([roma.rotmat_to_rotvec(head.rotation() @ more), head.pose[..., 3:]], dim=-1))


class Playback:
    """Which of `length` frames is shown when. Playing keeps the time: what cannot be drawn in time is left out."""

    def __init__(self, length: int) -> None:
        self.length, self.told = length, 0
        self._from: tuple[float, int, float] | None = None  # time, frame, frames a second

    def frame(self, slider: int, rate: float | None, now: float) -> int:
        """The frame at `now`, in seconds. `slider`: what the page says, other than `told` if somebody moved it; `rate`: None when standing still."""
        if rate is None:
            self._from = None
            return slider
        if self._from is None or slider != self.told or rate != self._from[2]:
            self._from, self.told = (now, slider, rate), slider
        began, first, _ = self._from
        return (first + int((now - began) * rate)) % self.length


def _vector(values: Float[Tensor, "3"]) -> Vector:
    x, y, z = values.double().tolist()
    return x, y, z
