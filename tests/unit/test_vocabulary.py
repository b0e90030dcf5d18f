"""The vocabulary: what is one node, which id it has, and that it keeps it; embeddings and their cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from airserve.errors import DataError
from airserve.table.embed import EmbeddingCache, embed_texts
from airserve.table.vectors import VECTOR_WIDTH, Projection, fit_projection, item_table, node_table, normalised
from airserve.table.vocabulary import (
    Vocabulary,
    build_vocabulary,
    canonical_path,
    canonical_text,
    folded_text,
    read_vocabulary,
    to_arrow,
)


class CountingEmbedder:
    """Vectors seeded by the text; counts what it was asked."""

    identity = "counting embedder 1"

    def __init__(self, width: int = 16) -> None:
        self.width = width
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = [np.random.default_rng(list(text.encode()) or [0]).normal(size=self.width) for text in texts]
        return normalised(np.array(rows, dtype=np.float32))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat  Toys ", "cat toy"),
        ("berries", "Berry"),
        ("storage boxes", "storage box"),
        ("cookies", "cookie"),
        ("watches", "watch"),
        ("wine glasses", "wine glass"),
        ("running shoes", "running shoe"),
        ("tomatoes", "tomato"),
        ("ｃａｔ toy", "cat toy"),
        ("pet supplies", "pet supply"),
    ],
)
def test_case_spacing_and_plain_plurals_are_one_node(one: str, other: str) -> None:
    assert folded_text(one) == folded_text(other)


@pytest.mark.parametrize(
    ("one", "other"), [("bath tub", "bath tube"), ("glass", "gloss"), ("bus", "bu"), ("gas", "ga"), ("cat", "dog")]
)
def test_different_words_stay_different_nodes(one: str, other: str) -> None:
    assert folded_text(one) != folded_text(other)


def test_a_path_loses_empty_levels_repeats_and_what_is_deeper_than_the_contract_allows() -> None:
    assert canonical_path([" Tea ", "", "Teas", "Green Tea."]) == ("tea", "green tea")
    assert canonical_path(["a1", "b1", "c1", "d1", "e1"]) == ("a1", "b1", "c1", "d1")
    assert canonical_text("  Cat\n Bed! ") == "cat bed"


def test_one_text_below_two_parents_is_two_nodes() -> None:
    vocabulary = build_vocabulary([[["cat", "toy"]], [["dog", "toy"]]])
    assert vocabulary.find(["cat", "toy"]) != vocabulary.find(["dog", "toy"])
    assert len(vocabulary) == 4
    assert vocabulary.find(["cat", "bed"]) is None
    assert vocabulary.find([" "]) is None


def test_a_node_is_shown_in_its_most_frequent_spelling_and_counts_each_answer_once() -> None:
    answers = [[["Pets", "Cat Beds"]], [["pets", "cat beds"], ["pets", "cat bed"]], [["pet", "cat bed"]]]
    vocabulary = build_vocabulary(answers)
    assert [(node.text, node.count, node.level) for node in vocabulary.nodes] == [("pets", 3, 0), ("cat beds", 3, 1)]


def test_ids_do_not_depend_on_the_order_of_the_answers() -> None:
    answers = [[["b", "x1"]], [["a", "x2"], ["b", "x1"]], [["c"]]]
    assert build_vocabulary(answers) == build_vocabulary(answers[::-1])


def test_a_vocabulary_only_grows_and_keeps_its_ids(tmp_path: Path) -> None:
    first = build_vocabulary([[["pets", "cat bed"]], [["garden", "hose"]]])
    path = tmp_path / "vocabulary.parquet"
    pq.write_table(to_arrow(first, np.zeros((len(first), 3))), path)
    second = build_vocabulary([[["Pet", "dog leash"]], [["pet", "cat beds"]]], read_vocabulary(path))
    assert second.find(["pets", "cat bed"]) == first.find(["pets", "cat bed"])
    assert [node.text for node in second.nodes[: len(first)]] == [node.text for node in first.nodes]
    assert second.nodes[-1].text == "dog leash"
    hose = second.find(["garden", "hose"])
    assert hose is not None
    assert second.nodes[hose[-1] - 1].count == 0
    assert first.sha256() != second.sha256()


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.parquet").write_bytes(b"something else")
    with pytest.raises(DataError, match="offline/build_tables"):
        read_vocabulary(tmp_path / "vocabulary.parquet")


def test_a_node_is_embedded_with_its_parent_as_context_and_chains_read_coarse_to_fine() -> None:
    vocabulary = build_vocabulary([[["pet supplies", "cat furniture", "cat tree"]]])
    texts = [vocabulary.text_to_embed(node) for node in vocabulary.nodes]
    assert texts == ["pet supplies", "pet supplies: cat furniture", "cat furniture: cat tree"]
    assert [node.text for node in vocabulary.chain(3)] == ["pet supplies", "cat furniture", "cat tree"]
    assert [node.text for node in vocabulary.leaves()] == ["cat tree"]
    assert Vocabulary(()).find(["cat"]) is None


def test_a_text_is_embedded_once_and_then_comes_from_the_cache(tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    first, n_first = embed_texts(embedder, ["cat", "dog", "cat", "a longer text"], tmp_path)
    again, n_again = embed_texts(embedder, ["dog", "a bird", "cat"], tmp_path)
    assert (n_first, n_again) == (3, 1)
    assert sorted(embedder.asked) == ["a bird", "a longer text", "cat", "dog"]
    np.testing.assert_array_equal(first[[1, 0]], again[[0, 2]])
    np.testing.assert_array_equal(first[0], first[2])


def test_a_damaged_cache_is_embedded_anew_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedder = CountingEmbedder()
    first, _ = embed_texts(embedder, ["cat", "dog"], tmp_path)
    path = EmbeddingCache(tmp_path, embedder.identity).path
    path.write_bytes(path.read_bytes()[:100])
    again, n_again = embed_texts(embedder, ["cat", "dog"], tmp_path)
    assert n_again == 2
    assert "damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(first, again)


def test_the_projection_keeps_what_varies_and_its_signs_are_fixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=(600, 20)).astype(np.float32) @ rng.normal(size=(20, 200)).astype(np.float32)
    embeddings = normalised(low)
    projection = fit_projection(embeddings, "x")
    centred = normalised(embeddings - embeddings.mean(axis=0))
    reduced = projection.apply(embeddings)
    assert reduced.shape == (600, VECTOR_WIDTH)
    np.testing.assert_allclose(reduced @ reduced.T, centred @ centred.T, atol=1e-3)
    projection.save(tmp_path / "projection.npz")
    np.testing.assert_array_equal(Projection.load(tmp_path / "projection.npz").apply(embeddings), reduced)
    np.testing.assert_array_equal(fit_projection(embeddings, "x").apply(embeddings), reduced)
    (tmp_path / "projection.npz").write_bytes(b"")
    with pytest.raises(DataError, match="previous"):
        Projection.load(tmp_path / "projection.npz")


def test_a_narrow_embedder_is_padded_with_zeros() -> None:
    reduced = fit_projection(CountingEmbedder(8).embed(["a", "b", "c"]), "x").apply(CountingEmbedder(8).embed(["a"]))
    assert reduced.shape == (1, VECTOR_WIDTH)
    assert not reduced[:, 8:].any()
    np.testing.assert_allclose(np.linalg.norm(reduced), 1, rtol=1e-5)


def test_an_items_vector_is_the_mean_of_its_title_and_its_leaves() -> None:
    titles = np.eye(4, dtype=np.float32)[:2]
    nodes = node_table(np.eye(4, dtype=np.float32)[2:])
    table = item_table(titles, nodes, np.array([[0, 1], [-1, -1]], dtype=np.int32), np.array([1, 2]))
    np.testing.assert_allclose(table[2], normalised(np.array([[1, 0, 0.5**0.5, 0.5**0.5]]))[0], rtol=1e-6)
    np.testing.assert_allclose(table[3], titles[1])
    assert not table[:2].any()
