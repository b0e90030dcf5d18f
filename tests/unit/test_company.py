"""What is met together, and what is popular, as a served table counts them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from airserve import contract
from airserve.errors import UserError
from airserve.table.company import (
    GUESSED,
    NEIGHBOURS,
    SEGMENT_EVENTS,
    Company,
    as_matrix,
    cosine_neighbours,
    guessed,
    popularity,
    strongest,
    with_guesses,
)

N_ROWS = 7
USERS = np.array([1, 1, 1, 2, 2, 3, 3, 3, 900])
ROWS = np.array([2, 3, 3, 2, 3, 2, 4, contract.UNKNOWN_ROW, 5])


def test_items_are_as_alike_as_their_users_are_and_shrinkage_pulls_rare_pairs_down() -> None:
    plain = cosine_neighbours(USERS, ROWS, N_ROWS, 0.0).toarray()
    assert plain[2, 3] == plain[3, 2] == pytest.approx(2 / np.sqrt(3 * 2)), "an event that is repeated counts once"
    assert plain[2, 4] == pytest.approx(1 / np.sqrt(3))
    assert not plain.diagonal().any()
    assert not plain[5].any()
    shrunk = cosine_neighbours(USERS, ROWS, N_ROWS, 10.0).toarray()
    assert shrunk[2, 3] == pytest.approx(2 / (np.sqrt(6) + 10))
    assert shrunk[2, 4] / plain[2, 4] < shrunk[2, 3] / plain[2, 3]


def test_reserved_rows_have_no_company() -> None:
    plain = cosine_neighbours(USERS, ROWS, N_ROWS, 0.0).toarray()
    assert not plain[: contract.FIRST_ITEM_ROW].any()
    assert not plain[:, : contract.FIRST_ITEM_ROW].any()


def test_without_events_nothing_is_together_and_nothing_popular() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert not cosine_neighbours(none, none, N_ROWS, 1.0).nnz
    assert not popularity(none, np.zeros(0), none, N_ROWS, 2).any()


def test_of_equal_neighbours_the_lower_row_comes_first_whatever_order_the_events_came_in() -> None:
    users, rows = np.repeat(np.arange(20), 2), np.tile([2, 5, 2, 4, 2, 3, 2, 6], 5)
    found = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(users))
        found.append(strongest(cosine_neighbours(users[order], rows[order], N_ROWS, 1.0), 3))
    for neighbours, weights in found:
        assert neighbours[2].tolist() == [3, 4, 5]
        np.testing.assert_array_equal(neighbours, found[0][0])
        np.testing.assert_array_equal(weights, found[0][1])


def test_the_strongest_are_kept_strongest_first_and_the_rest_is_empty() -> None:
    neighbours, weights = strongest(cosine_neighbours(USERS, ROWS, N_ROWS, 0.0), 1)
    assert neighbours[2].tolist() == [3]
    neighbours, weights = strongest(cosine_neighbours(USERS, ROWS, N_ROWS, 0.0), 4)
    assert neighbours[2].tolist() == [3, 4, 0, 0]
    assert (np.diff(weights[2].astype(np.float32)) <= 0).all()
    assert not weights[neighbours == 0].any()
    assert not neighbours[5].any(), "an item without company has none"


def test_kept_neighbours_are_the_similarities_they_were_kept_of() -> None:
    similarity = cosine_neighbours(USERS, ROWS, N_ROWS, 2.0)
    np.testing.assert_allclose(as_matrix(*strongest(similarity)).toarray(), similarity.toarray(), rtol=1e-3)


def test_popularity_counts_weighted_events_over_all_and_by_segment() -> None:
    rows, weights = np.array([2, 2, 3, 4, contract.UNKNOWN_ROW]), np.array([1.0, 1.0, 0.01, 1.0, 5.0])
    found = popularity(rows, weights, np.zeros(5, dtype=np.int32), N_ROWS, 1).astype(np.float32)
    assert found.shape == (N_ROWS, 2)
    assert found[[2, 3, 4, 5], 0].tolist() == pytest.approx(np.log1p([2.0, 0.01, 1.0, 0.0]), abs=1e-3)
    assert not found[: contract.FIRST_ITEM_ROW].any()


def test_a_segment_that_has_seen_much_has_its_own_popularity_and_one_that_has_not_that_of_all() -> None:
    many = int(50 * SEGMENT_EVENTS)
    rows = np.concatenate([np.full(many, 2), np.full(many, 3), [4]])
    segments = np.concatenate([np.zeros(many), np.ones(many), [2]]).astype(np.int32)
    found = popularity(rows, np.ones(len(rows)), segments, N_ROWS, 4).astype(np.float32)
    assert found[2, 1] > found[3, 1] + 1
    assert found[3, 2] > found[2, 2] + 1
    np.testing.assert_allclose(found[2:4, 3], found[2:4, 0], atol=0.01), "one event says little"
    np.testing.assert_allclose(found[:, 4], found[:, 0], atol=0.01)


@pytest.mark.parametrize(
    "settings", [{"scale": -1.0}, {"shrinkage": -1.0}, {"last": 0}, {"decay": 0.0}, {"decay": 1.1}]
)
def test_settings_that_make_no_company_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="Company"):
        Company(**settings)


def test_a_new_item_is_met_with_what_items_like_it_are_met_with() -> None:
    """Rows 2 and 3 are bought together; row 5 is new and like 3, row 6 is new and like nothing."""
    rng = np.random.default_rng(0)
    vectors_NE = np.eye(7, 8, dtype=np.float32)
    vectors_NE[5] = vectors_NE[3] + 0.1 * rng.standard_normal(8).astype(np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    vectors_NE[:2] = 0.0
    pairs = np.zeros((7, 7), dtype=np.float32)
    pairs[2, 3] = pairs[3, 2] = 0.5
    found = guessed(sparse.csr_matrix(pairs), vectors_NE).toarray()
    assert 0.4 < found[2, 5] <= 0.5
    assert found[2, 5] == found[5, 2], "guessed both ways"
    assert found[2, 3] == 0.0, "nothing is guessed of pairs of known items"
    assert not found[:2].any(), "nor of reserved rows"


def test_guesses_stand_behind_the_counted_neighbours_and_push_none_of_them_out() -> None:
    rng = np.random.default_rng(1)
    n_rows = 120
    pairs = np.triu(rng.random((n_rows, n_rows)), 1).astype(np.float32)
    pairs += pairs.T
    pairs[:2] = pairs[:, :2] = 0.0
    pairs[100:] = pairs[:, 100:] = 0.0
    vectors_NE = rng.standard_normal((n_rows, 8)).astype(np.float32)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    rows, weights = with_guesses(sparse.csr_matrix(pairs), vectors_NE)
    counted = strongest(sparse.csr_matrix(pairs))
    assert rows.shape == (n_rows, NEIGHBOURS + GUESSED)
    np.testing.assert_array_equal(rows[:, :NEIGHBOURS], counted[0])
    supposed = rows[2:100, NEIGHBOURS:][weights[2:100, NEIGHBOURS:] > 0]
    assert (supposed >= 100).all(), "known items are only guessed to be met with new ones"
    assert (weights[100:, :NEIGHBOURS] == 0).all()


def test_without_any_company_nothing_is_guessed() -> None:
    empty = sparse.csr_matrix((6, 6), dtype=np.float32)
    assert guessed(empty, np.ones((6, 4), dtype=np.float32)).nnz == 0
