"""The Triton kernel of `neighbors`. Imported inside functions only."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "target_count"])
@no_type_check
def nearest(points, targets, rows, count, target_count, BLOCK: tl.constexpr, TARGETS: tl.constexpr):
    """The row of the nearest target of BLOCK points, of equally near ones the first."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = place < count
    x, y, z = tl.load(points + 3 * place, mask=here), tl.load(points + 3 * place + 1, mask=here), tl.load(points + 3 * place + 2, mask=here)
    least = tl.full([BLOCK], float("inf"), tl.float32)
    row = tl.zeros([BLOCK], tl.int32)
    first = 0
    while first < target_count:
        other = first + tl.arange(0, TARGETS)
        exists = other < target_count
        dx = x[:, None] - tl.load(targets + 3 * other, mask=exists, other=float("inf"))[None, :]
        dy = y[:, None] - tl.load(targets + 3 * other + 1, mask=exists, other=float("inf"))[None, :]
        dz = z[:, None] - tl.load(targets + 3 * other + 2, mask=exists, other=float("inf"))[None, :]
        squared = dx * dx + dy * dy + dz * dz
        own, at = tl.min(squared, axis=1, return_indices=True)
        nearer = own < least
        least, row = tl.where(nearer, own, least), tl.where(nearer, first + at, row)
        first += TARGETS
    tl.store(rows + place, row.to(tl.int64), mask=here)
