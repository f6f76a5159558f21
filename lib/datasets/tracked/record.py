"""What every tracker of faces gives, whatever its files are called: parameters of a face model per frame, and the picture they belong to.

Cameras are this project's: world->camera with OpenCV axes (x right, y down, z forward), pixels whose centres lie at half-integers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lib.errors import InputError
from lib.geometry.camera import Camera
from lib.geometry.head_pose import HeadPose
from lib.tensors import TensorBundle

Pivot = Literal["origin", "root joint"]
UPRIGHT = (1.0, -1.0, -1.0)  # OpenCV axes of a camera -> the same place with y up and z towards the viewer


@dataclass(frozen=True)
class FaceModel:
    """The 3DMM that coefficients belong to; None where nothing in the files tells."""

    name: str | None
    version: str | None = None

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, self.version) if part) or "an unknown model"


@dataclass(frozen=True)
class FaceParams(TensorBundle):
    """One instant. Rotations are rotation vectors (radians), translations world units, `scale` world units per unit of the model.

    Without `rotation` the head does not move in its world: the cameras move around it. `eyes` is left, then right, `eyelids` likewise.
    """

    expression: Float[Tensor, "E"]
    identity: Float[Tensor, "I"] | None = None
    rotation: Float[Tensor, "3"] | None = None
    translation: Float[Tensor, "3"] | None = None
    scale: Float[Tensor, "1"] | None = None
    neck: Float[Tensor, "3"] | None = None
    jaw: Float[Tensor, "3"] | None = None
    eyes: Float[Tensor, "6"] | None = None
    eyelids: Float[Tensor, "2"] | None = None
    static_offset: Float[Tensor, "N 3"] | None = None  # of the vertices, units of the model


@dataclass(frozen=True)
class TrackedFrame:
    """One picture (or, where the source has none, one instant). Pictures of one instant share `sequence`, `timestep` and `params`."""

    name: str
    sequence: str
    timestep: int
    params: FaceParams
    where: str  # file, and row where a file holds many: for messages
    camera: str | None = None
    view: Camera | None = None  # a batch of one
    image: Path | None = None
    mask: Path | None = None
    video_frame: int | None = None  # where image and mask are videos: which of their pictures
    time: float | None = None  # seconds
    split: Literal["train", "val", "test"] | None = None  # as the source divides; None: it does not

    def head_pose(self) -> HeadPose | None:
        """Where the head is, by the source's own pivot; in a world fixed to the camera, y up, where only the camera moves. None: not known."""
        params = self.params
        scale = torch.ones(1) if params.scale is None else params.scale
        if params.rotation is not None:
            move = torch.zeros(3) if params.translation is None else params.translation
            return HeadPose(torch.cat([params.rotation, move]), scale)
        if self.view is None:
            return None
        upright = torch.tensor(UPRIGHT)[:, None] * self.view.world_to_camera[0]
        return HeadPose.from_matrix(upright, scale)


@dataclass(frozen=True)
class TrackedSequence:
    """What one folder or file holds, in the order of time. `pivot`: the point of the model that `rotation` leaves in place, before `translation`.

    Raises InputError when there is no frame, frames differ in what they hold, or two of a camera and part have one number.
    """

    format: str
    root: Path
    model: FaceModel
    pivot: Pivot
    frames: tuple[TrackedFrame, ...]
    notes: tuple[str, ...] = ()
    units_per_metre: float = 1.0  # of the world

    def __post_init__(self) -> None:
        if not self.frames:
            raise InputError(f"{self.root}: {self.format}: holds no frame that can be used; expected at least one")
        first = self.frames[0]
        for frame in self.frames:
            for name in ("expression", "identity", "rotation", "translation", "scale", "neck", "jaw", "eyes", "eyelids", "static_offset"):
                have, want = (getattr(one.params, name) for one in (frame, first))
                if (have is None) != (want is None) or (have is not None and have.shape != want.shape):
                    raise InputError(f"{frame.where}: '{name}' has {_size(have)}, {first.where} has {_size(want)}; "
                                     "all frames must come from one model")
            if frame.params.scale is not None and float(frame.params.scale) <= 0:
                raise InputError(f"{frame.where}: 'scale': expected a positive number, found {float(frame.params.scale):g}")
        seen: dict[tuple[str | None, ...], TrackedFrame] = {}
        for frame in self.frames:
            other = seen.setdefault((frame.sequence, str(frame.timestep), frame.camera, frame.split), frame)  # parts may overlap: INSTA's do
            if other is not frame:
                raise InputError(f"{frame.where}: has the number of {other.where} ({frame.timestep} of sequence '{frame.sequence}'); leave one out")
        self._check_cameras()

    def _check_cameras(self) -> None:
        """All at once, as there may be tens of thousands."""
        seen = [(frame, frame.view) for frame in self.frames if frame.view is not None]
        if not seen:
            return
        poses = torch.cat([view.world_to_camera for _, view in seen]).double()
        turns = poses[..., :3]
        lenses = torch.cat([view.intrinsics for _, view in seen])
        wrong = (turns @ turns.transpose(-1, -2) - torch.eye(3, dtype=torch.float64)).abs().amax(dim=(-1, -2)) > 1e-3
        wrong |= (torch.linalg.det(turns) < 0) | (lenses[:, 0, 0] <= 0) | (lenses[:, 1, 1] <= 0)
        wrong |= ~torch.isfinite(poses).flatten(1).all(dim=1) | ~torch.isfinite(lenses).flatten(1).all(dim=1)
        if bool(wrong.any()):
            frame, view = seen[int(wrong.nonzero()[0])]
            raise InputError(f"{frame.where}: its camera is none: expected a rotation and positive focal lengths, found "
                             f"{view.world_to_camera[0, :, :3].tolist()} and {view.intrinsics[0].diagonal()[:2].tolist()}")

    @property
    def expression_count(self) -> int:
        """Number of expression coefficients E, without jaw, eyes and eyelids."""
        return len(self.frames[0].params.expression)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of their first picture."""
        return tuple(dict.fromkeys(frame.camera for frame in self.frames if frame.camera is not None))

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences, in the order of their first picture."""
        return tuple(dict.fromkeys(frame.sequence for frame in self.frames))

    @property
    def identity(self) -> Float[Tensor, "I"] | None:
        """The identity of all frames; None where there is none or they differ."""
        first = self.frames[0].params.identity
        same = first is not None and all(frame.params.identity is first or torch.equal(frame.params.identity, first) for frame in self.frames)
        return first if same else None

    def instants(self) -> tuple[TrackedFrame, ...]:
        """The first picture of every instant."""
        found: dict[tuple[str, int], TrackedFrame] = {}
        for frame in self.frames:
            found.setdefault((frame.sequence, frame.timestep), frame)
        return tuple(found.values())

    def split(self, name: Literal["train", "val", "test"]) -> tuple[TrackedFrame, ...]:
        """The frames of one part, as the source divides them."""
        return tuple(frame for frame in self.frames if frame.split == name)

    def summary(self) -> str:
        """One line: what was recognised."""
        return (f"{self.root}: {self.format}: {len(self.instants())} instants, {len(self.cameras)} cameras, "
                f"{self.expression_count} expression coefficients of {self.model}")


def _size(value: Tensor | None) -> str:
    return "no value" if value is None else f"shape {tuple(value.shape)}"
