"""One head in all frames: from detections and a face model to coefficients, poses, landmarks and vertices of every frame."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lib.datasets.sampler import spread
from lib.errors import InputError, NumericalError
from lib.face_models.contract import FaceModel
from lib.face_models.offsets import smooth_offsets
from lib.geometry.head_pose import HeadPose
from lib.training.runtime import is_terminal
from preprocess.fit_config import FitConfig
from preprocess.fit_observations import Observations
from preprocess.fit_outline import Mattes, find_outline
from preprocess.fit_solver import Estimate, Problem, Solution, descend, solve
from preprocess.fit_start import find_start

OUTLINE_ROUNDS, OUTLINE_STEPS = 5, 3  # which vertices are the outline depends on the fit


@dataclass(frozen=True)
class HeadFit:
    """A fitted head. `model` is the face model widened by the modes of the offset of this person."""

    model: FaceModel
    identity: Float[Tensor, "J"]  # coefficients of the face model, then of the offset
    identity_count: int  # of the face model
    expression: Float[Tensor, "F E"]
    head: HeadPose  # batched: F poses and equal scales
    seen: Bool[Tensor, "F"]  # False: nothing usable was detected; the frame repeats the nearest one that was
    noise: float  # of detections: standard deviation per axis, pixels at 512²
    scale_is_seen: bool  # False: one camera, so that the scale was chosen

    def vertices(self, frame: int) -> Float[Tensor, "M 3"]:
        """All vertices of the face model, in the world."""
        head = HeadPose(self.head.pose[frame], self.head.scale[frame])
        return head.to_world(self.model.vertices(self.identity.to(self.model.mean), self.expression[frame].to(self.model.mean)).double())

    def offset(self) -> Float[Tensor, "66 3"]:
        """What the face model could not say of this person's landmarks, canonical units."""
        own = slice(self.identity_count, None)
        return self.model.landmarks(torch.tensordot(self.identity[own].to(self.model.mean), self.model.identity[own], 1))


def fit_head(
    model: FaceModel, seen: Observations, times: Float[Tensor, "F"], config: FitConfig, read_mattes: Callable[[list[int]], Mattes] | None = None
) -> HeadFit:
    """`times`: seconds; frames that are no neighbours are far apart. `read_mattes` gives those of some frames; without it landmarks decide alone.

    Raises InputError where no frame can be placed, NumericalError where the solution is not finite.
    """
    further = 0 if read_mattes is None else config.outline_points
    wide = model.widened(smooth_offsets(model, config.offset, config.offset_radius, further)) if config.offset > 0 else model
    corners = wide.landmark_corners.unique()
    face = wide.part(corners).double()
    start = find_start(seen, face.landmarks(face.mean), config.one_view_scale)
    known = start.known.nonzero()[:, 0]
    if len(known) == 0:
        raise InputError("no frame has enough landmarks (10 besides the jaw line) that agree with one head: are cameras and detections of the same "
                         "pictures, and their size as landmarks/detector.json says?")

    # In a world whose unit is about the canonical one, and whose origin is in the head, numbers mean the same for everybody.
    origin = start.translation[known].median(dim=0).values
    nearby = seen.frames(known).in_world(start.scale, origin)
    first = Estimate(
        identity=torch.zeros(face.identity_count, dtype=torch.float64), scale=torch.ones((), dtype=torch.float64),
        expression=torch.zeros(len(known), face.expression_count, dtype=torch.float64),
        rotation=start.rotation[known], translation=(start.translation[known] - origin) / start.scale,
    )
    problem = Problem(face, nearby, times[known].diff(), config, start.scale_is_seen)
    solution = solve(problem, first)
    estimate = solution.estimate
    if read_mattes is not None:
        chosen = torch.tensor(spread(list(range(len(known))), config.outline_frames))
        estimate = meet_outlines(wide, problem, solution, chosen, read_mattes(known[chosen].tolist()))
    if not bool(torch.isfinite(problem.points(estimate)).all()):
        raise NumericalError("the fit is not finite; look at the detections of the frames")

    nearest = (times[:, None] - times[known]).abs().argmin(dim=1)
    translation = estimate.translation * start.scale + origin
    pose = torch.cat([roma.rotmat_to_rotvec(estimate.rotation), translation], dim=1)[nearest]
    scale = (estimate.scale * start.scale).expand(len(pose), 1)
    return HeadFit(wide, estimate.identity, model.identity_count, estimate.expression[nearest], HeadPose(pose, scale), start.known,
                   solution.noise, start.scale_is_seen)


def meet_outlines(model: FaceModel, problem: Problem, solution: Solution, frames: Int[Tensor, "B"], mattes: Mattes) -> Estimate:
    """All frames once more, with the outline of the face drawn to the edges of the mattes of `frames`."""
    estimate, seen, config = solution.estimate, problem.seen.frames(frames), problem.config
    own = seen.projection, seen.centers
    bar = tqdm(total=OUTLINE_ROUNDS * OUTLINE_STEPS, desc="outlines", unit="step", mininterval=0.5 if is_terminal() else 15.0)
    for number in range(OUTLINE_ROUNDS):
        bar.update(number * OUTLINE_STEPS - bar.n)
        canonical = torch.stack([model.vertices(estimate.identity.to(model.mean), estimate.expression[frame].to(model.mean)) for frame in frames])
        world = dataclasses.replace(estimate, rotation=estimate.rotation[frames], translation=estimate.translation[frames]).place(canonical.double())
        outline = find_outline(model, world, frames, mattes, *own, config.outline_weight)
        # Only the vertices that are asked for, in double precision.
        rows, places = torch.cat([outline.vertices.reshape(-1), model.landmark_corners.reshape(-1)]).unique(return_inverse=True)
        part = model.part(rows).double()
        outline = dataclasses.replace(outline, vertices=places[:outline.vertices.numel()].reshape(outline.vertices.shape))
        nearby = Problem(part, problem.seen, problem.gaps, config.model_copy(update={"steps": OUTLINE_STEPS}), problem.scale_is_seen, outline)
        estimate = descend(nearby, estimate, problem.trust(estimate), solution.noise, config.kernel, bar)
    bar.close()
    return estimate
