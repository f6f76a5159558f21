"""Rows that are kept over steps, and rows of others beside them."""

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


def test_rows_of_others_change_nothing_and_their_number_stays():
    generator = torch.Generator().manual_seed(6)
    points, landmarks = torch.randn(400, 3, generator=generator), torch.randn(9, 3, generator=generator)
    values = torch.randn(2, 400, 5, generator=generator)

    def blended(weights, points):
        points.requires_grad_(True).grad = None
        colors = weights.blend(values[:, weights.expression_rows] * points[weights.expression_rows, :1], values[:, weights.pose_rows])
        colors.square().sum().backward()
        return colors.detach(), points.grad.clone()

    before, numbers = None, set()
    for shift in (0.0, 0.001, -0.001, 0.002):
        moved = points + shift
        found = control(moved, landmarks, 0.1, 0.25)
        before = found.roomy(0.05, before)
        numbers.add((len(before.expression_rows), len(before.pose_rows)))
        for rows, needed in ((before.expression_rows, found.expression_rows), (before.pose_rows, found.pose_rows)):
            assert torch.equal(rows[: len(needed)], needed)
            assert len(rows.unique()) == len(rows)
        for one, other in zip(blended(before, moved), blended(found, moved), strict=True):
            torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)
    assert len(numbers) == 1
    everywhere = control(points, landmarks, 0.1, 1e4).roomy(0.05, None)
    assert len(everywhere.expression_rows) == len(points)  # there are no more
    more = control(points, landmarks, 0.1, 0.5).roomy(0.05, before)
    assert len(more.expression_rows) > len(before.expression_rows)
