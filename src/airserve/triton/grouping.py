"""Which requests of a dynamic batch are padded together.

What limits it: a graph call costs a fixed part (some 120 small kernels) and multiply-adds that grow with the padded
sizes. On one core, 12 requests of L=C=128 took 0.75 of the CPU time of one by one; a small request padded to the
largest sizes would take a multiple of its own. So requests of like size run together, and a very large one runs alone.

Axes: B requests, C candidates, R chains, as in `airserve.contract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FIXED_COST = 6e6
"""Multiply-adds that take as long as a call's small kernels and its sequence tower."""
PADDING_SHARE = 1.3
"""A group may cost so many times its requests alone; less than what one call for all saves."""
GROUP_BOUND = 4e8
"""Multiply-adds of one call: bounds its memory and how long others wait."""


class Extent(NamedTuple):
    """Sizes of one request, or of a padded group."""

    batch: int
    candidates: int
    chains: int

    def joined(self, other: Extent) -> Extent:
        """Sizes when both are padded together."""
        return Extent(self.batch + other.batch, *(max(a, b) for a, b in zip(self[1:], other[1:], strict=True)))

    def cost(self) -> float:
        """Estimated multiply-adds of one graph call."""
        per_request = self.candidates * (16_384 + 384 * self.chains) + 45_000 * self.chains
        return self.batch * (FIXED_COST + per_request)


def group_by_size(extents: Sequence[Extent]) -> list[list[int]]:
    """Split requests into groups that are worth padding together.

    Args:
        extents: sizes of each request.

    Returns:
        Indices of each group's requests; every index once, groups from small to large.
    """
    groups: list[list[int]] = []
    padded, alone = Extent(0, 0, 0), 0.0
    for at in sorted(range(len(extents)), key=lambda at: extents[at].cost()):
        own = extents[at].cost()
        together = padded.joined(extents[at])
        if groups and together.cost() <= min(PADDING_SHARE * (alone + own), GROUP_BOUND):
            groups[-1].append(at)
            padded, alone = together, alone + own
        else:
            groups.append([at])
            padded, alone = extents[at], own
    return groups
