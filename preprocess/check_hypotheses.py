"""Mistakes that people make with cameras, and two kinds of evidence for them: 2D detections and the pictures themselves."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.geometry.camera import Camera
from preprocess.check_detections import Detections
from preprocess.check_evidence import Samples, Sight, agreement, average, sample, texture

REACH, STEP = 0.3, 0.02  # of the image size: shifts that are tried, first in these steps, then in quarters of them
ERROR_SCALE = 0.03  # of the image size: an error of this size makes a score of 1/e
FEW_CAMERAS, FEW_FRAMES, FEW_POINTS = 6, 2, 400  # of each: enough to try hundreds of shifts
TURN = torch.tensor([1.0, -1.0, -1.0])  # between OpenCV axes and those of OpenGL
Change = Callable[[Camera], Camera]


@dataclass(frozen=True)
class Hypothesis:
    """One mistake: `undo` is the camera as it then should be. `factor` is that of units, where they are the mistake."""

    kind: str
    says: str
    undo: Change


@dataclass(frozen=True)
class Verdict:
    """The best explanation of cameras that do not fit: their mean scores as given and when undone, 1 is best."""

    kind: str
    says: str
    cameras: tuple[str, ...]
    columns: tuple[int, ...]
    undo: tuple[Change, ...]  # of each of them
    given: float = 0.0
    gained: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)  # of the image size: with it added to the principal point they fit


def _with(camera: Camera, world_to_camera: Float[Tensor, "*B 3 4"]) -> Camera:
    return Camera(world_to_camera, camera.intrinsics, camera.width, camera.height)


def _opengl(camera: Camera) -> Camera:
    return _with(camera, TURN[:, None] * camera.world_to_camera)


def _inverse(camera: Camera) -> Camera:
    return _with(camera, torch.cat([camera.world_to_camera[..., :3].transpose(-1, -2), camera.centers()[..., None]], dim=-1))


def _turned_world(camera: Camera) -> Camera:
    return _with(camera, camera.world_to_camera * torch.cat([TURN, torch.ones(1)]))


def _moved(factor: float) -> Change:
    return lambda camera: _with(camera, camera.world_to_camera * torch.tensor([1.0, 1.0, 1.0, factor]))


def _zoomed(factor: float) -> Change:
    return lambda camera: Camera(camera.world_to_camera, camera.intrinsics * torch.tensor([[factor], [factor], [1.0]]), camera.width, camera.height)


CONVENTIONS = (
    Hypothesis("opengl_axes", "'extrinsic' has OpenGL axes (y up, z backward); expected OpenCV (x right, y down, z forward): "
               "multiply its rows 1 and 2 by -1", _opengl),
    Hypothesis("camera_to_world", "'extrinsic' is camera->world; expected world->camera: write its inverse", _inverse),
    Hypothesis("camera_to_world_opengl", "'extrinsic' is camera->world with OpenGL axes; expected world->camera with OpenCV axes: "
               "invert it, then multiply its rows 1 and 2 by -1", lambda camera: _opengl(_inverse(camera))),
    Hypothesis("turned_world", "y and z of the world point the other way in 'extrinsic' than in lmk_3d.npy: "
               "multiply its columns 1 and 2 by -1", _turned_world),
    *(Hypothesis("unit_scale", f"'extrinsic' is in other units than lmk_3d.npy, vertices.npy and pose: its translation times {factor:g} fits",
                 _moved(factor)) for factor in (0.001, 0.01, 0.1, 10.0, 100.0, 1000.0)),
    *(Hypothesis("intrinsic_scale", f"'intrinsic' is in pixels of pictures of another size: times {factor:g} fits", _zoomed(factor))
      for factor in (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)),
)


class Evidence(ABC):
    """Scores cameras under hypotheses; 1 is perfect."""

    best: float  # the score beyond which nothing gets
    cameras: tuple[str, ...]

    @abstractmethod
    def given(self) -> Float[Tensor, "C"]:
        """Every camera as it is."""

    @abstractmethod
    def alone(self, column: int, change: Change) -> float:
        """One camera changed, the others as they are."""

    @abstractmethod
    def aside(self, column: int) -> tuple[float, float]:
        """The shift (of the image size) with which one camera fits best."""

    @abstractmethod
    def together(self, changes: list[Change]) -> Float[Tensor, "K"]:
        """All cameras changed alike: about what their mean score becomes under each of K changes."""

    @abstractmethod
    def together_aside(self) -> tuple[float, float]:
        """The one shift (of the image size) with which all cameras fit best."""

    @abstractmethod
    def camera(self, column: int) -> Camera:
        """One camera as it is, in all frames."""

    @abstractmethod
    def changed(self, verdict: Verdict) -> "Evidence":
        """The same with some cameras as they then should be."""


class PictureEvidence(Evidence):
    """Correlation of every picture with the texture that the other cameras see (check_evidence.py)."""

    best = 0.97  # noise, gloss and light remain

    def __init__(self, sight: Sight) -> None:
        self.sight, self.cameras = sight, sight.cameras
        columns = range(len(sight.cameras))
        samples = [sample(sight, column, sight.camera(column)) for column in columns]
        own = torch.stack([self._mean(one, agreement(samples[one], texture([samples[k] for k in columns if k != one]))) for one in columns])
        # Once more without those that agree with nobody: two wrong cameras of five would spoil the texture of the others.
        trusted = [column for column in columns if own[column] >= 0.7 * own.max()]
        self._textures = [texture([samples[k] for k in trusted if k != one] or [samples[k] for k in columns if k != one]) for one in columns]
        self._given = torch.stack([self._mean(column, agreement(samples[column], self._textures[column])) for column in columns])

    def given(self) -> Float[Tensor, "C"]:
        """As Evidence."""
        return self._given

    def alone(self, column: int, change: Change) -> float:
        """As Evidence."""
        return float(self._mean(column, agreement(sample(self.sight, column, change(self.camera(column))), self._textures[column])))

    def aside(self, column: int) -> tuple[float, float]:
        """As Evidence."""
        few = _fewer(self.sight)
        truth = self._textures[column][_spread_indices(self.sight.points.shape[1], FEW_POINTS)]

        def score(shifts: Float[Tensor, "D 2"]) -> Float[Tensor, "D"]:
            return average(agreement(sample(few, column, few.camera(column), shifts * few.size), truth), few, column)
        return _search(score)

    def together(self, changes: list[Change]) -> Float[Tensor, "K"]:
        """As Evidence."""
        return torch.cat([self._rig(change, torch.zeros(1, 2)) for change in changes])

    def together_aside(self) -> tuple[float, float]:
        """As Evidence."""
        return _search(lambda shifts: self._rig(lambda camera: camera, shifts * self.sight.size))

    def camera(self, column: int) -> Camera:
        """As Evidence."""
        return self.sight.camera(column)

    def changed(self, verdict: Verdict) -> Evidence:
        """As Evidence."""
        extrinsics, intrinsics = self.sight.world_to_camera.clone(), self.sight.intrinsics.clone()
        for column, undo in zip(verdict.columns, verdict.undo, strict=True):
            camera = undo(self.camera(column))
            extrinsics[:, column], intrinsics[:, column] = camera.world_to_camera, camera.intrinsics
        return PictureEvidence(dataclasses.replace(self.sight, world_to_camera=extrinsics, intrinsics=intrinsics))

    def _mean(self, column: int, scores: Float[Tensor, "*D F"]) -> Float[Tensor, "*D"]:
        return average(scores, self.sight, column)

    def _rig(self, change: Change, shifts: Float[Tensor, "D 2"]) -> Float[Tensor, "D"]:
        """Mean agreement with the common texture, when all cameras are changed and shifted alike."""
        few = _fewer(self.sight)
        seen = [sample(few, column, change(few.camera(column)), shifts) for column in _spread_indices(len(few.cameras), FEW_CAMERAS)]
        color, visible = torch.cat([one.color for one in seen], dim=1), torch.cat([one.visible for one in seen], dim=1)  # (D, F·C, N)
        truth = torch.where(visible[..., None], color, torch.nan).nanmedian(dim=1, keepdim=True).values
        return agreement(Samples(color, visible), truth).mean(dim=1)


class DetectionEvidence(Evidence):
    """Distance of detected from projected landmarks: exp(-median / ERROR_SCALE)."""

    best = 1.0

    def __init__(self, detections: Detections) -> None:
        self.detections, self.cameras = detections, detections.cameras

    def given(self) -> Float[Tensor, "C"]:
        """As Evidence."""
        return torch.tensor([self.alone(column, lambda camera: camera) for column in range(len(self.cameras))])

    def alone(self, column: int, change: Change) -> float:
        """As Evidence."""
        return _score(self.detections.offsets(column, change(self.camera(column))))

    def aside(self, column: int) -> tuple[float, float]:
        """As Evidence."""
        return _middle(self.detections.offsets(column, self.camera(column)))

    def together(self, changes: list[Change]) -> Float[Tensor, "K"]:
        """As Evidence."""
        return torch.tensor([[self.alone(column, change) for column in range(len(self.cameras))] for change in changes]).mean(dim=1)

    def together_aside(self) -> tuple[float, float]:
        """As Evidence."""
        return _middle(torch.cat([self.detections.offsets(column, self.camera(column)) for column in range(len(self.cameras))]))

    def camera(self, column: int) -> Camera:
        """As Evidence."""
        return self.detections.camera(column)

    def changed(self, verdict: Verdict) -> Evidence:
        """As Evidence."""
        extrinsics, intrinsics = self.detections.world_to_camera.clone(), self.detections.intrinsics.clone()
        for column, undo in zip(verdict.columns, verdict.undo, strict=True):
            camera = undo(self.camera(column))
            extrinsics[:, column], intrinsics[:, column] = camera.world_to_camera, camera.intrinsics
        return DetectionEvidence(dataclasses.replace(self.detections, world_to_camera=extrinsics, intrinsics=intrinsics))


def _fewer(sight: Sight) -> Sight:
    """Some of the frames and points."""
    rows, points = _spread_indices(len(sight.frames), FEW_FRAMES), _spread_indices(sight.points.shape[1], FEW_POINTS)
    return dataclasses.replace(
        sight, frames=tuple(sight.frames[row] for row in rows), points=sight.points[rows][:, points], normals=sight.normals[rows][:, points],
        color=sight.color[rows], matte=sight.matte[rows], decoded=sight.decoded[rows],
        world_to_camera=sight.world_to_camera[rows], intrinsics=sight.intrinsics[rows])


def _search(score: Callable[[Float[Tensor, "D 2"]], Float[Tensor, "D"]]) -> tuple[float, float]:
    """The best shift: on a coarse grid, then on fine ones around the best places of that."""
    def grid(reach: float, step: float) -> Float[Tensor, "D 2"]:
        line = torch.arange(-round(reach / step), round(reach / step) + 1) * step
        return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2)

    def scores(shifts: Float[Tensor, "D 2"]) -> Float[Tensor, "D"]:
        return torch.cat([score(part) for part in shifts.split(64)])

    coarse = grid(REACH, STEP)
    starts = coarse[scores(coarse).topk(3).indices]
    fine = torch.cat([grid(STEP, STEP / 4) + start for start in starts])
    x, y = fine[int(scores(fine).argmax())].tolist()
    return x, y


def _score(offsets: Float[Tensor, "K 2"]) -> float:
    return float(torch.exp(-offsets.norm(dim=1).median() / ERROR_SCALE)) if len(offsets) else 0.0


def _middle(offsets: Float[Tensor, "K 2"]) -> tuple[float, float]:
    if not len(offsets) or not (shift := offsets.median(dim=0).values).isfinite().all():
        return 0.0, 0.0
    x, y = shift.tolist()
    return x, y


def _spread_indices(count: int, wanted: int) -> list[int]:
    return torch.linspace(0, count - 1, min(count, wanted)).long().tolist()
