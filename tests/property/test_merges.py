"""Near-duplicate nodes: ids never change, the vocabulary only grows, and a rejected merge stays two nodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.errors import DataError, UserError
from airserve.table.merges import Merge, aliases_of, find_merges, read_merges, write_merges
from airserve.table.vocabulary import Vocabulary, build_vocabulary

WORDS = [f"{stem}{tail}" for stem in ("cat", "dog", "pan", "tent") for tail in ("", "x", "xy", "q")]
answers = st.lists(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), max_size=2), max_size=12)


def embed(texts):
    """Words of one stem point the same way, nearly."""
    rows = np.zeros((len(texts), 8), dtype=np.float32)
    for place, text in enumerate(texts):
        stem = ("cat", "dog", "pan", "ten").index(text[:3])
        rows[place, stem] = 1
        rows[place, 4 + len(text) % 3] = 0.1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(said, previous=None, earlier=(), rejected=()):
    merges = find_merges(said, embed, previous=previous, earlier=earlier, rejected=rejected)
    return build_vocabulary(said, previous, aliases_of(merges)), merges


@settings(deadline=None, max_examples=60)
@given(st.lists(answers, min_size=1, max_size=4))
def test_ids_never_change_and_the_vocabulary_only_grows(nights):
    previous, merges = Vocabulary(()), []
    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for said in nights:
        vocabulary, merges = build(said, previous, merges)
        assert [(node.node_id, node.parent_id, node.text) for node in vocabulary.nodes[: len(previous)]] == [
            (node.node_id, node.parent_id, node.text) for node in previous.nodes
        ]
        for path in (tuple(path) for paths in said for path in paths):
            found.setdefault(path, vocabulary.find(path))
        assert all(ids is not None and vocabulary.find(path) == ids for path, ids in found.items())
        previous = vocabulary


@settings(deadline=None, max_examples=60)
@given(answers)
def test_building_again_from_the_same_answers_changes_nothing(said):
    vocabulary, merges = build(said)
    again, same = build(said, vocabulary, merges)
    assert [node.text for node in again.nodes] == [node.text for node in vocabulary.nodes]
    assert same == merges


def test_a_rarer_near_duplicate_goes_into_the_frequent_node_with_its_children():
    said = [[["cat", "dog"]], [["cat", "dog"]], [["catx", "pan"]]]
    vocabulary, merges = build(said)
    assert [(one.path, one.into) for one in merges] == [(("catx",), ("cat",))]
    assert vocabulary.find(["catx", "pan"]) == vocabulary.find(["cat", "pan"])
    assert [node.text for node in vocabulary.nodes] == ["cat", "dog", "pan"]
    assert vocabulary.nodes[0].count == 3


def test_two_nodes_that_have_ids_are_never_merged():
    previous = build_vocabulary([[["cat"]], [["catx"]]])
    assert find_merges([[["cat"]], [["catx"]]], embed, previous=previous) == []


def test_a_rejected_merge_stays_two_nodes_and_one_that_is_rejected_later_gets_a_new_id():
    said = [[["cat"]], [["cat"]], [["catx"]]]
    vocabulary, merges = build(said)
    assert len(vocabulary) == 1
    later, left = build(said, vocabulary, merges, rejected=merges)
    assert left == []
    assert [node.text for node in later.nodes] == ["cat", "catx"]
    assert later.find(["cat"]) == vocabulary.find(["cat"])


def test_merges_are_written_and_read_back(tmp_path):
    merges = [Merge(path=("cat", "pan"), into=("cat", "pot"), similarity=0.95)]
    write_merges(merges, tmp_path / "merges.json")
    assert read_merges(tmp_path / "merges.json") == merges
    (tmp_path / "bad.json").write_text('[{"path": ["a"]}]')
    with pytest.raises(DataError, match="into"):
        read_merges(tmp_path / "bad.json")


def test_a_threshold_outside_its_range_is_refused():
    with pytest.raises(UserError, match="threshold"):
        find_merges([], embed, threshold=1.5)
