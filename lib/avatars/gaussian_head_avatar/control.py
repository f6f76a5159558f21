"""Who moves a point: the expression near the face, the head pose far from it (Gaussian Head Avatar, eq. 3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.geometry.neighbors import nearest_squared


@dataclass(frozen=True)
class Control:
    """Weights per point and, so that each network runs only where it counts, rows among which are all with a positive weight."""

    expression: Float[Tensor, "N 1"]
    expression_rows: Int[Tensor, "K"]
    pose_rows: Int[Tensor, "M"]

    @property
    def pose(self) -> Float[Tensor, "N 1"]:
        """1 - expression weight."""
        return 1.0 - self.expression

    def expression_part(self, values: Float[Tensor, "B K C"]) -> Float[Tensor, "B N C"]:
        """w_exp · values, given on `expression_rows`, zero elsewhere."""
        return _scatter(len(self.expression), self.expression_rows, self.expression.index_select(0, self.expression_rows) * values)

    def pose_part(self, values: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        """w_pose · values, given on `pose_rows`, zero elsewhere."""
        return _scatter(len(self.expression), self.pose_rows, self.pose.index_select(0, self.pose_rows) * values)

    def roomy(self, spare: float, before: "Control | None") -> "Control":
        """With rows of other points too, which weigh nothing: as many rows as `before`, or, where there are more, a part `spare` more than those.

        So their number, and with it the size of what is computed, seldom changes.
        """
        expression, pose = (0, 0) if before is None else (len(before.expression_rows), len(before.pose_rows))
        count = len(self.expression)
        return Control(self.expression, _filled(self.expression_rows, expression, spare, count), _filled(self.pose_rows, pose, spare, count))

    def blend(self, of_expression: Float[Tensor, "B K C"], of_pose: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        """w_exp · of_expression + w_pose · of_pose, each given on its own rows."""
        return self.expression_part(of_expression) + self.pose_part(of_pose)


def control(
    points: Float[Tensor, "N 3"], landmarks: Float[Tensor, "L 3"], near: float, far: float, margin: float = 0.0, kept: Control | None = None
) -> Control:
    """1 where the nearest landmark is closer than `near`, 0 beyond `far`, linear between; *squared* canonical units.

    Differentiable in both (stage 1 trains landmarks and vertices through it). Rows are found anew, for which the host waits, with those that
    are less than `margin` outside of their zone; or they are those of a control `kept`, whose points have moved by less.
    """
    squared = nearest_squared(points, landmarks)[:, None]
    weight = ((far - squared) / (far - near)).clamp(0.0, 1.0)
    if kept is not None:
        return Control(weight, kept.expression_rows, kept.pose_rows)
    return Control(weight, torch.nonzero(squared[:, 0] < far + margin)[:, 0], torch.nonzero(squared[:, 0] > near - margin)[:, 0])


def _filled(rows: Int[Tensor, "K"], room: int, spare: float, count: int) -> Int[Tensor, "R"]:
    if len(rows) > room:
        room = int((1.0 + spare) * len(rows))
    others = rows.new_ones(count, dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]
    return torch.cat([rows, others[: room - len(rows)]])


def _scatter(count: int, rows: Int[Tensor, "K"], values: Float[Tensor, "B K C"]) -> Float[Tensor, "B N C"]:
    return values.new_zeros(len(values), count, values.shape[-1]).index_add(1, rows, values)
