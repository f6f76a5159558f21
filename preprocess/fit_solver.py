"""Identity, scale and smooth offset shared by all frames, expression and pose of each: Levenberg-Marquardt on all detections together.

Cameras are summed up per landmark (three unknowns) before anything is multiplied with a basis, and frames are eliminated
from the shared unknowns (Schur complement), so that a step costs little more than its matrices of frames.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib.face_models.contract import FaceModel, Linearization
from lib.geometry.rotations import skew
from lib.training.runtime import is_terminal
from preprocess.fit_config import FitConfig
from preprocess.fit_observations import Observations, pull, visibility
from preprocess.fit_outline import Outline
from preprocess.fit_start import geman_mcclure

KERNELS = (4.0, 2.0, 1.0)  # widths of the robust kernel, in turn, as multiples of the last one
FRAMES_AT_ONCE = 64
LEAST_GAIN = 1e-5  # relative, of the cost in a step: below, a kernel is done
POSE = 6


@dataclass(frozen=True)
class Estimate:
    """World = scale · rotation @ canonical + translation."""

    identity: Float[Tensor, "I"]
    scale: Float[Tensor, ""]
    expression: Float[Tensor, "F E"]
    rotation: Float[Tensor, "F 3 3"]
    translation: Float[Tensor, "F 3"]

    def place(self, canonical: Float[Tensor, "F P 3"]) -> Float[Tensor, "F P 3"]:
        """In the world."""
        return self.scale * canonical @ self.rotation.transpose(1, 2) + self.translation[:, None]

    def moved(self, shared: Float[Tensor, "S"], frames: Float[Tensor, "F Q"]) -> "Estimate":
        """After a step; rotations are turned from the left."""
        expression, turn, shift = frames.split([self.expression.shape[1], 3, 3], dim=1)
        return Estimate(self.identity + shared[:-1], self.scale * shared[-1].exp(), self.expression + expression,
                        roma.rotvec_to_rotmat(turn) @ self.rotation, self.translation + shift)


@dataclass(frozen=True)
class Solution:
    """A fit, and the noise of detections it found: standard deviation in pixels, per axis."""

    estimate: Estimate
    noise: float


@dataclass(frozen=True)
class _Equations:
    shared: Float[Tensor, "S S"]
    shared_slope: Float[Tensor, "S"]
    mixed: Float[Tensor, "F S Q"]
    frames: Float[Tensor, "F Q Q"]
    frames_slope: Float[Tensor, "F Q"]

    def step(self, damping: float) -> tuple[Float[Tensor, "S"], Float[Tensor, "F Q"]]:
        """Solves with `damping` times the diagonal added."""
        frames = self.frames + damping * torch.diag_embed(self.frames.diagonal(dim1=1, dim2=2) + 1e-9)
        factor = torch.linalg.cholesky(frames)
        solved = torch.cholesky_solve(torch.cat([self.mixed.transpose(1, 2), self.frames_slope[..., None]], dim=2), factor)
        eliminated = torch.einsum("fsq,fqk->sk", self.mixed, solved)
        shared = self.shared + damping * torch.diag_embed(self.shared.diagonal() + 1e-9) - eliminated[:, :-1]
        step = -torch.linalg.solve(shared, self.shared_slope - eliminated[:, -1])
        return step, -(solved[..., -1] + solved[..., :-1] @ step)


class Problem:
    """The cost of estimates, and its normal equations. The unit of the world is about canonical (see `Observations.in_world`).

    `gaps`: seconds from each frame to the next; where none or less pass, as where sequences take turns, they are no neighbours.
    """

    def __init__(
        self, model: FaceModel, seen: Observations, gaps: Float[Tensor, "F-1"], config: FitConfig, scale_is_seen: bool,
        outline: Outline | None = None,
    ) -> None:
        self.model, self.seen, self.gaps, self.config, self.outline = model, seen, gaps, config, outline
        self.scale_is_seen = scale_is_seen
        self.scale_prior = 1e-6 if scale_is_seen else 1e12  # of the logarithm
        self.identity_prior = (config.identity * model.identity_spread) ** -2
        self.expression_prior = (config.expression * model.expression_spread) ** -2
        rates = torch.cat([config.expression_rate * model.expression_spread, torch.full((3,), config.rotation_rate, dtype=torch.float64),
                           torch.full((3,), config.translation_rate, dtype=torch.float64)])
        near = (gaps > 0.0) & (gaps <= config.smooth_gap)
        ties = torch.where(near, 1.0 / gaps.clamp(min=1e-3), 0.0)[:, None] * rates**-2  # random walk: variance grows with time
        self.ties = torch.nn.functional.pad(ties, (0, 0, 1, 1))  # (F + 1, Q): before and after each frame
        self.mean_landmarks = model.landmarks(model.mean)
        # How the neutral grows with identity. Without a prior on this, heads would be fitted large, so that the same motion of the
        # lips needed smaller coefficients, or with one camera far too near.
        centred = self.mean_landmarks - self.mean_landmarks.mean(dim=0)
        moves = model.linearize_landmarks(torch.zeros_like(model.identity_spread), torch.zeros_like(model.expression_spread)[None]).by_identity[0]
        self.growth = torch.einsum("lx,lxi->i", centred, moves) / (centred.square().sum() * config.size)

    def trust(self, estimate: Estimate) -> Float[Tensor, "F C 66"]:
        """Score times visibility of every detection."""
        return self.seen.scores * visibility(self.mean_landmarks, estimate.rotation, estimate.translation, self.seen.centers,
                                             self.config.jaw_yaw, self.config.side_yaw)

    def distances(self, estimate: Estimate) -> Float[Tensor, "F C 66"]:
        """Pixels between projected and detected landmarks."""
        points = self.points(estimate)
        return pull(points, self.seen.projection, self.seen.pixels).residuals.norm(dim=-1)

    def cost(self, estimate: Estimate, trust: Float[Tensor, "F C 66"], noise: float, width: float) -> float:
        """Half the negative logarithm of the posterior, with Geman-McClure in place of squares."""
        squared = (self.distances(estimate) / noise).square()
        robust = (trust * width**2 * squared / (width**2 + squared)).sum()
        outside = _outside(estimate.expression) * self.model.bounded / self.config.bound
        _, ahead = self._differences(estimate)
        priors = [(estimate.identity.square() * self.identity_prior).sum(), (estimate.identity @ self.growth).square(),
                  (estimate.expression.square() * self.expression_prior).sum(),
                  outside.square().sum(), self.scale_prior * estimate.scale.log().square(), (self.ties[1:] * ahead.square()).sum()]
        outlines = [] if self.outline is None else [
            self.outline.equations(place.place(self.model.linearize(place.identity, place.expression, self.outline.vertices[b]).points), b)[2]
            for b, place in self._outlined(estimate)]
        return float(robust + sum(priors) + sum(outlines))

    def equations(self, estimate: Estimate, trust: Float[Tensor, "F C 66"], noise: float, width: float) -> _Equations:
        """Gauss-Newton, with the robust kernel as weights."""
        parts = []
        for first in range(0, len(trust), FRAMES_AT_ONCE):
            rows = slice(first, first + FRAMES_AT_ONCE)
            parts.append(self._observed(_frames(estimate, rows), self.seen.frames(rows), trust[rows], noise, width))
        curvature_shared, slope_shared = sum(part[0] for part in parts), sum(part[1] for part in parts)
        mixed, frames, slopes = (torch.cat([part[k] for part in parts]) for k in (2, 3, 4))
        for b, place in self._outlined(estimate):
            line = self.model.linearize(place.identity, place.expression, self.outline.vertices[b])
            curvature, slope, _ = self.outline.equations(place.place(line.points), b)
            frame = int(self.outline.frames[b])
            added = _equations_of(place, line, curvature, slope)
            curvature_shared, slope_shared = curvature_shared + added[0], slope_shared + added[1]
            mixed[frame], frames[frame], slopes[frame] = mixed[frame] + added[2][0], frames[frame] + added[3][0], slopes[frame] + added[4][0]

        shared_prior = torch.cat([self.identity_prior, self.identity_prior.new_tensor([self.scale_prior])])
        shared_now = torch.cat([estimate.identity, estimate.scale.log()[None]])
        growth = torch.nn.functional.pad(self.growth, (0, 1))
        curvature_shared = curvature_shared + torch.diag(shared_prior) + torch.outer(growth, growth)
        slope_shared = slope_shared + shared_prior * shared_now + growth * (growth @ shared_now)

        outside = _outside(estimate.expression) * self.model.bounded
        bound = self.config.bound**-2
        diagonal = self.expression_prior + bound * (outside != 0)
        behind, ahead = self._differences(estimate)
        ties = self.ties[:-1] + self.ties[1:]
        diagonal = torch.nn.functional.pad(diagonal, (0, POSE)) + ties
        slopes = slopes + self.ties[:-1] * behind - self.ties[1:] * ahead
        slopes[:, :-POSE] += self.expression_prior * estimate.expression + bound * outside
        return _Equations(curvature_shared, slope_shared, mixed, frames + torch.diag_embed(diagonal), slopes)

    def points(self, estimate: Estimate) -> Float[Tensor, "F 66 3"]:
        """Landmarks in the world."""
        chunks = [self.model.linearize_landmarks(estimate.identity, part).points for part in estimate.expression.split(FRAMES_AT_ONCE)]
        return estimate.place(torch.cat(chunks))

    def _observed(
        self, estimate: Estimate, seen: Observations, trust: Float[Tensor, "B C 66"], noise: float, width: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        line = self.model.linearize_landmarks(estimate.identity, estimate.expression)
        pulled = pull(estimate.place(line.points), seen.projection, seen.pixels)
        squared = pulled.residuals.square().sum(dim=-1) / noise**2
        return _equations_of(estimate, line, *pulled.normal_equations(trust * geman_mcclure(squared, width) / noise**2))

    def _outlined(self, estimate: Estimate) -> Iterator[tuple[int, Estimate]]:
        """Each frame with an outline, alone."""
        for b, frame in enumerate([] if self.outline is None else self.outline.frames.tolist()):
            yield b, _frames(estimate, slice(frame, frame + 1))

    def _differences(self, estimate: Estimate) -> tuple[Float[Tensor, "F Q"], Float[Tensor, "F Q"]]:
        """Of each frame from the one before it, and of the one after it from each (rotations as vectors)."""
        before = estimate.rotation[:-1]
        turn = roma.rotmat_to_rotvec(estimate.rotation[1:] @ before.transpose(1, 2))
        change = torch.cat([estimate.expression.diff(dim=0), turn, estimate.translation.diff(dim=0)], dim=1)
        return torch.nn.functional.pad(change, (0, 0, 1, 0)), torch.nn.functional.pad(change, (0, 0, 0, 1))


def solve(problem: Problem, start: Estimate) -> Solution:
    """From wide robust kernels to narrow ones; the noise of the detections is measured on the way."""
    estimate, noise, steps = start, problem.config.least_noise, problem.config.steps
    with tqdm(total=len(KERNELS) * steps, desc="fitting", unit="step", mininterval=0.5 if is_terminal() else 15.0) as bar:
        for number, multiple in enumerate(KERNELS, start=1):
            trust = problem.trust(estimate)
            noise = max(problem.config.least_noise, _noise(problem.distances(estimate), trust))
            estimate = descend(problem, estimate, trust, noise, problem.config.kernel * multiple, bar)
            bar.update(number * steps - bar.n)  # most need fewer steps
    return Solution(estimate, noise)


def descend(problem: Problem, estimate: Estimate, trust: Float[Tensor, "F C 66"], noise: float, width: float, bar: tqdm) -> Estimate:
    """Levenberg-Marquardt until a step gains next to nothing."""
    damping, cost = 1e-4, problem.cost(estimate, trust, noise, width)
    for _ in range(problem.config.steps):
        bar.update()
        equations = problem.equations(estimate, trust, noise, width)
        while True:
            trial = estimate.moved(*equations.step(damping))
            trial_cost = problem.cost(trial, trust, noise, width)
            if trial_cost < cost or damping > 1e6:
                break
            damping *= 10.0
        if not trial_cost < cost:
            break
        gain, estimate, cost = (cost - trial_cost) / cost, trial, trial_cost
        damping = max(damping / 10.0, 1e-9)
        if gain < LEAST_GAIN:
            break
    return estimate


def _equations_of(
    estimate: Estimate, line: Linearization, curvature: Float[Tensor, "B P 3 3"], slope: Float[Tensor, "B P 3"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Chain rule from points of the world to the unknowns: shared, its slope, mixed, frames, their slopes."""
    turned = estimate.scale * line.points @ estimate.rotation.transpose(1, 2)
    motion = torch.cat([
        estimate.scale * torch.einsum("fxy,fpyk->fpxk", estimate.rotation, torch.cat([line.by_identity, line.by_expression], dim=-1)),
        -skew(turned), torch.eye(3, dtype=turned.dtype).expand(*turned.shape, 3),
    ], dim=-1)
    split = line.by_identity.shape[-1]
    motion = torch.cat([motion[..., :split], turned[..., None], motion[..., split:]], dim=-1)  # (B, P, 3, S + Q)
    pushed, motion = (curvature @ motion).flatten(1, 2), motion.flatten(1, 2)
    full = motion.transpose(1, 2) @ pushed
    gradient = (motion.transpose(1, 2) @ slope.flatten(1, 2)[..., None])[..., 0]
    shared = split + 1
    return (full[:, :shared, :shared].sum(dim=0), gradient[:, :shared].sum(dim=0), full[:, :shared, shared:], full[:, shared:, shared:],
            gradient[:, shared:])


def _noise(distances: Float[Tensor, "F C 66"], trust: Float[Tensor, "F C 66"]) -> float:
    """Standard deviation per axis from the median distance, which for a normal distribution is 1.1774 of them."""
    return float(distances[trust > 0.5].median()) / 1.1774 if bool((trust > 0.5).any()) else 0.0


def _outside(expression: Float[Tensor, "F E"]) -> Float[Tensor, "F E"]:
    return expression - expression.clamp(0.0, 1.0)


def _frames(estimate: Estimate, rows: slice) -> Estimate:
    return dataclasses.replace(estimate, expression=estimate.expression[rows], rotation=estimate.rotation[rows],
                               translation=estimate.translation[rows])
