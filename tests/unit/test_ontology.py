"""The ontology as shipped, how its files are checked, and what the world takes as true."""

import pytest

from airserve.contract import ACTIONS, MAX_DEPTH, MAX_PATHS
from airserve.errors import DataError
from airserve.world.intent_rules import complement, true_paths
from airserve.world.ontology import load_ontology, parse_ontology
from airserve.world.wordings import singular

LEAF = """
[[leaf]]
path = ["pet supplies", "{category}", "{name}"]
products = ["{name} one", "{name} two", "{name} three"]
content = ["a one", "a two", "a three"]
"""


def part(*names: tuple[str, str]) -> tuple[str, str]:
    return "part.toml", "".join(LEAF.format(category=category, name=name) for category, name in names)


def test_the_shipped_ontology_is_as_large_as_promised() -> None:
    ontology = load_ontology()
    assert len(ontology.leaves) >= 200
    assert len(ontology.by_category) >= 40
    assert len(ontology.by_domain) >= 10
    assert [leaf.index for leaf in ontology.leaves] == list(range(len(ontology.leaves)))


def test_no_two_leaves_share_a_content_line() -> None:
    lines = [line for leaf in load_ontology().leaves for line in leaf.content]
    assert len(lines) == len(set(lines))


def test_content_and_products_of_a_leaf_share_few_words() -> None:
    shared = 0
    leaves = load_ontology().leaves
    for leaf in leaves:
        nouns = {singular(word) for text in (*leaf.products, leaf.name) for word in text.split() if len(word) > 3}
        said = {singular(word) for line in leaf.content for word in line.split()}
        shared += len(nouns & said)
    assert shared / len(leaves) < 0.5


def test_hardly_any_product_phrase_names_two_leaves() -> None:
    ontology = load_ontology()
    assert len(ontology.shared_products) < 0.01 * sum(len(leaf.products) for leaf in ontology.leaves)


def test_a_path_listed_twice_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="pet supplies > beds > cat tree"):
        parse_ontology([part(("beds", "cat tree")), part(("beds", "cat tree"))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cat tree", "Cat_Tree"), "part.toml, leaf 1 path"),
        ((', "cat tree two", "cat tree three"', ""), "part.toml, leaf 1 products"),
        (('"beds", ', ""), "part.toml, leaf 1 path"),
        (("[[leaf]]", "[[leaf]"), "part.toml: expected TOML"),
        (('"a one"', "7"), "part.toml, leaf 1 content"),
    ],
)
def test_a_bad_part_is_refused_with_its_file_and_leaf(change: tuple[str, str], message: str) -> None:
    name, text = part(("beds", "cat tree"))
    with pytest.raises(DataError, match=message):
        parse_ontology([(name, text.replace(*change))])


def test_a_folder_without_parts_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"\*\.toml"):
        load_ontology(tmp_path)


def test_looking_says_one_intent_and_buying_says_two() -> None:
    for leaf in load_ontology().leaves:
        for action in ACTIONS:
            for segment in range(4):
                paths = true_paths(leaf, action, segment)
                assert paths[0] == leaf.path
                assert len(paths) == len(set(paths)) == (1 if action in {"view", "click"} else 2) <= MAX_PATHS
                assert all(len(path) <= MAX_DEPTH for path in paths)


def test_the_complement_depends_on_the_segment() -> None:
    ontology = parse_ontology([part(("beds", "a1"), ("beds", "a2"), ("beds", "a3"), ("toys", "b1"))])
    first = ontology.leaves[0]
    assert [complement(first, segment).name for segment in range(4)] == ["a2", "b1", "a3", "a2"]


def test_a_lone_leaf_has_no_complement_but_itself() -> None:
    (leaf,) = parse_ontology([part(("beds", "a1"))]).leaves
    assert true_paths(leaf, "order", 1) == (leaf.path,)


def test_an_unknown_action_has_no_truth() -> None:
    with pytest.raises(DataError, match="stare"):
        true_paths(load_ontology().leaves[0], "stare", 0)
