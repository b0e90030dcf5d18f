"""Synthetic titles: repeatable, varied, honest about what is held out."""

from random import Random

import numpy as np
import pytest

from airserve.errors import DataError
from airserve.lm.examples import ExampleWriter
from airserve.world.ontology import load_ontology
from airserve.world.titles import TitleWriter, content_title, draw, is_held_out, product_title
from airserve.world.wordings import Wordings, is_unseen_wording, singular


def test_the_same_seed_writes_the_same_titles() -> None:
    leaves = load_ontology().leaves[:20]
    one, other = (
        [(product_title(leaf, rng), content_title(leaf, rng)) for leaf in leaves] for rng in (Random(4), Random(4))
    )
    assert one == other


def test_numpy_generators_are_taken_as_well() -> None:
    leaf = load_ontology().leaves[0]
    one, other = (product_title(leaf, np.random.default_rng(3)) for _ in range(2))
    assert one == other


def test_titles_of_one_leaf_hardly_repeat() -> None:
    leaf, rng = load_ontology().leaves[5], Random(0)
    assert len({product_title(leaf, rng) for _ in range(300)}) > 295
    assert len({content_title(leaf, rng) for _ in range(300)}) > 200


def test_titles_stay_on_one_line_and_short() -> None:
    rng = Random(1)
    for leaf in load_ontology().leaves:
        for title in (product_title(leaf, rng), product_title(leaf, rng, "tidy"), content_title(leaf, rng)):
            assert title == " ".join(title.split()) != ""
            assert len(title) < 320


def test_a_fifth_of_the_titles_is_held_out() -> None:
    rng, leaves = Random(2), load_ontology().leaves
    held_out = sum(is_held_out(product_title(rng.choice(leaves), rng)) for _ in range(4000))
    assert 0.17 < held_out / 4000 < 0.24


def test_training_and_evaluation_never_share_a_title() -> None:
    writer = ExampleWriter(load_ontology())
    trained = {example.title for example in writer.training(seed=0, chunk=0, count=3000)}
    asked = [example.title for kind in ("product", "content") for example in writer.evaluation(0, 300, kind)]
    assert not any(is_held_out(title) for title in trained)
    assert all(is_held_out(title) for title in asked)
    assert len(set(asked)) == len(asked) == 600


def test_unseen_wordings_are_kept_from_the_seen_ones() -> None:
    ontology = load_ontology()
    seen, unseen = Wordings(ontology), Wordings(ontology, unseen=True)
    for leaf in ontology.leaves:
        for seen_texts, unseen_texts in (
            (seen.products[leaf.index], unseen.products[leaf.index]),
            (seen.content[leaf.index], unseen.content[leaf.index]),
        ):
            assert seen_texts
            assert not set(seen_texts) & set(unseen_texts)
            assert all(map(is_unseen_wording, unseen_texts))
    assert 200 < sum(map(len, unseen.products)) < 1000
    assert sum(map(len, unseen.content)) > 100


def test_a_leaf_without_unseen_wordings_is_refused_by_name() -> None:
    ontology = load_ontology()
    writer = TitleWriter(ontology, "unseen")
    leaf = next(leaf for leaf in ontology.leaves if not writer.wordings.content[leaf.index])
    with pytest.raises(DataError, match="content lines"):
        writer.content_title(leaf, Random(0))


def test_words_before_a_noun_do_not_make_it_another_leafs_noun() -> None:
    wordings, leaves = Wordings(load_ontology()), load_ontology().leaves
    one, other = leaves[0], leaves[40]
    phrase = next(text for text in other.products if " " in text)
    before, _, head = phrase.rpartition(" ")
    assert wordings.changes_head(one, before, head)
    assert not wordings.changes_head(other, before, head)


def test_draw_gives_what_was_asked_for() -> None:
    leaf, rng = load_ontology().leaves[3], Random(0)
    for held_out in (True, False):
        assert is_held_out(draw(lambda: product_title(leaf, rng), held_out=held_out)) == held_out


@pytest.mark.parametrize(
    ("plural", "expected"),
    [("cups", "cup"), ("dishes", "dish"), ("berries", "berry"), ("boxes", "box"), ("glass", "glass"), ("gas", "gas")],
)
def test_plain_plurals_are_folded(plural: str, expected: str) -> None:
    assert singular(plural) == expected
