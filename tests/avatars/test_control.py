"""Rows that are kept over steps."""

import torch

from lib.avatars.gaussian_head_avatar.control import control


def test_kept_rows_give_the_same_until_a_point_crosses_the_margin():
    generator = torch.Generator().manual_seed(5)
    points, landmarks = torch.randn(400, 3, generator=generator), torch.randn(9, 3, generator=generator)
    kept = control(points, landmarks, 0.1, 0.25, margin=0.02)
    moved = points + 0.004 * torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=1)  # squares change by less than 0.02
    found, again = control(moved, landmarks, 0.1, 0.25), control(moved, landmarks, 0.1, 0.25, kept=kept)
    assert len(kept.expression_rows) > len(found.expression_rows)
    values = torch.randn(1, 400, 5, generator=generator)

    def blended(weights):
        return weights.blend(values[:, weights.expression_rows], values[:, weights.pose_rows])

    torch.testing.assert_close(blended(again), blended(found), rtol=0.0, atol=0.0)
