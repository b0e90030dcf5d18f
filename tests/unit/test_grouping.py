"""Which requests are padded together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airserve.triton.grouping import GROUP_BOUND, PADDING_SHARE, Extent, group_by_size

extents = st.builds(Extent, st.integers(1, 4), st.integers(1, 1024), st.integers(8, 256))


@given(st.lists(extents, max_size=20))
def test_every_request_is_in_one_group(sizes: list[Extent]) -> None:
    assert sorted(at for group in group_by_size(sizes) for at in group) == list(range(len(sizes)))


@given(st.lists(extents, min_size=1, max_size=20))
def test_padding_never_costs_more_than_its_share(sizes: list[Extent]) -> None:
    for group in group_by_size(sizes):
        padded = sizes[group[0]]
        for at in group[1:]:
            padded = padded.joined(sizes[at])
        alone = sum(sizes[at].cost() for at in group)
        assert padded.cost() <= PADDING_SHARE * alone + 1e-6
        assert len(group) == 1 or padded.cost() <= GROUP_BOUND


def test_equal_requests_run_together_and_a_giant_runs_alone() -> None:
    usual, giant = Extent(1, 128, 64), Extent(1, 1024, 256)
    assert group_by_size([usual] * 16) == [list(range(16))]
    assert group_by_size([usual, giant, usual]) == [[0, 2], [1]]


def test_no_requests_make_no_groups() -> None:
    assert group_by_size([]) == []
