"""Intents that are derived from titles and behaviour."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airserve import contract
from airserve.data.schema import write_parquet
from airserve.errors import DataError, UserError
from airserve.intents.derived import DeriveSettings, derive, derive_folder
from airserve.intents.schema import NODE_PATTERN
from airserve.table import vectors
from airserve.table.answers import read_answers
from airserve.table.build import BuildSettings, build_tables
from airserve.table.format import file_sha256
from airserve.table.intents import IntentTable

THEMES = ("cat", "coffee", "garden", "bicycle")
SMALL = DeriveSettings(groups=(2, 4, 8), width=8)


def make_data(
    users: int = 60, seed: int = 0, test_theme: int | None = None
) -> tuple[pa.Table, pa.Table, npt.NDArray[np.float32]]:
    """48 items of four themes; users buy within a theme, and coffee after cats."""
    rng = np.random.default_rng(seed)
    theme_of = np.repeat(np.arange(4), 12)
    titles = [f"{THEMES[theme]} article number{place % 12:02d}" for place, theme in enumerate(theme_of)]
    items = pa.table(
        {
            "item_id": pa.array(1000 + np.arange(48), pa.int64()),
            "domain": [("food", "kitchen")[theme % 2] for theme in theme_of],
            "title": titles,
            "is_candidate": [True] * 48,
        }
    )
    rows = []
    for user in range(users):
        themes = [0, 1] if user % 2 else [2, 3]
        bought = [rng.choice(np.flatnonzero(theme_of == theme)) for theme in themes for _ in range(4)]
        splits = ["train"] * 7 + ["test" if user % 3 == 0 else "train"]
        if test_theme is not None and user % 3 == 0:
            bought[-1] = 12 * test_theme
        rows += [
            (user, 1000 + int(item), day, split) for day, (item, split) in enumerate(zip(bought, splits, strict=True))
        ]
    behaviours = pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.int64()),
            "item_id": pa.array([row[1] for row in rows], pa.int64()),
            "action": ["order"] * len(rows),
            "timestamp_s": pa.array([86400 * row[2] for row in rows], pa.int64()),
            "user_segment": pa.array([0] * len(rows), pa.int32()),
            "split": [row[3] for row in rows],
        }
    )
    titles_NW = np.eye(4, 16, dtype=np.float32)[theme_of] + 0.1 * rng.normal(size=(48, 16)).astype(np.float32)
    return items, behaviours, titles_NW


def test_every_item_has_a_kind_with_its_own_group_first_and_valid_names() -> None:
    items, behaviours, titles_NW = make_data()
    answers = derive(items, behaviours, titles_NW, SMALL).answers
    assert set(answers["item_id"].to_pylist()) == set(items["item_id"].to_pylist())
    for paths in answers["paths"].to_pylist():
        assert 1 <= len(paths) <= contract.MAX_PATHS
        assert len({tuple(path) for path in paths}) == len(paths)
        assert all(len(path) == 3 and re.match(NODE_PATTERN, node) for path in paths for node in path)


def test_a_group_stands_under_one_parent_only() -> None:
    answers = derive(*make_data(), SMALL).answers
    parents: dict[str, set[tuple[str, ...]]] = {}
    for paths in answers["paths"].to_pylist():
        for path in paths:
            parents.setdefault(path[-1], set()).add(tuple(path[:-1]))
    assert all(len(above) == 1 for above in parents.values())


def test_what_follows_a_thing_is_among_its_intents() -> None:
    """Cats are followed by coffee and by nothing else, so the other half of the catalogue is in no cat's intents."""
    items, behaviours, titles_NW = make_data(users=200)
    answers = derive(items, behaviours, titles_NW, SMALL).answers
    own = {row["item_id"]: tuple(row["paths"][0]) for row in answers.to_pylist()}
    theme_of_leaf: dict[tuple[str, ...], set[int]] = {}
    for item, leaf in own.items():
        theme_of_leaf.setdefault(leaf, set()).add((item - 1000) // 12)
    cats = [row for row in answers.to_pylist() if row["item_id"] < 1012]
    reached = {theme for row in cats for path in row["paths"][1:] for theme in theme_of_leaf[tuple(path)]}
    assert 1 in reached
    assert not reached & {2, 3}


def test_held_out_events_and_each_users_last_training_event_change_nothing() -> None:
    items, behaviours, titles_NW = make_data()
    elsewhere = make_data(test_theme=1)[1]
    assert not behaviours.equals(elsewhere)
    assert derive(items, behaviours, titles_NW, SMALL).answers.equals(
        derive(items, elsewhere, titles_NW, SMALL).answers
    )
    without_last = behaviours.filter(
        pa.array([not (s == "train" and t == 86400 * (6 if u % 3 == 0 else 7)) for u, t, s in zip(
            behaviours["user_id"].to_pylist(), behaviours["timestamp_s"].to_pylist(), behaviours["split"].to_pylist(),
            strict=True)])
    )  # fmt: skip
    kept_all = DeriveSettings(groups=(2, 4, 8), width=8, skip_last=0)
    paths = {row["item_id"]: row["paths"] for row in derive(items, behaviours, titles_NW, SMALL).answers.to_pylist()}
    again = {
        row["item_id"]: row["paths"] for row in derive(items, without_last, titles_NW, kept_all).answers.to_pylist()
    }
    assert paths == again


def test_items_without_behaviour_are_grouped_by_their_titles_alone() -> None:
    items, behaviours, titles_NW = make_data()
    none = behaviours.slice(0, 0)
    answers = derive(items, none, titles_NW, SMALL).answers
    assert answers.num_rows == 48
    assert set(answers["action"].to_pylist()) == {"order"}


def test_an_item_without_events_stands_where_the_company_of_like_titles_puts_it() -> None:
    items, behaviours, titles_NW = make_data(users=200)
    titles_NW[[0, 1]] = titles_NW[5]
    quiet = np.isin(behaviours["item_id"].to_numpy(), [1000, 1001, 1047])
    derived = derive(items, behaviours.filter(pa.array(~quiet)), titles_NW, SMALL)
    assert np.allclose(derived.space_NS[0], derived.space_NS[1], atol=1e-5), "like titles, and nothing else"
    assert not np.allclose(derived.space_NS[0], derived.space_NS[5], atol=1e-2), "with company it stands elsewhere"
    near = derived.space_NS @ derived.space_NS[0]
    assert near[5] > np.delete(near, [0, 1, 5]).mean(), "but nearer to what has its title than to most"
    rows = [row for row in derived.answers.to_pylist() if row["item_id"] in (1000, 1001, 1047)]
    assert all(len(row["paths"]) > 1 for row in rows), "what follows its group stands for what follows it"
    assert rows[0]["paths"] == rows[1]["paths"]


@pytest.mark.parametrize("titles", [["", "", "", ""], ["?", "!", "12", "  "], ["cat"] * 4])
def test_titles_without_words_still_name_their_groups(titles: list[str]) -> None:
    items, behaviours, titles_NW = make_data()
    items = items.slice(0, 4).set_column(2, "title", pa.array(titles))
    answers = derive(items, behaviours.slice(0, 0), titles_NW[:4], SMALL).answers
    assert all(
        re.match(NODE_PATTERN, node) for paths in answers["paths"].to_pylist() for path in paths for node in path
    )


def test_one_item_cannot_be_grouped() -> None:
    items, behaviours, titles_NW = make_data()
    with pytest.raises(DataError, match="at least 2 items"):
        derive(items.slice(0, 1), behaviours.slice(0, 0), titles_NW[:1], SMALL)


def test_settings_that_make_no_tree_are_refused() -> None:
    for groups in ((8,), (8, 4), (1, 2, 3, 4, 5)):
        with pytest.raises(UserError, match="groups"):
            DeriveSettings(groups=groups)


def test_answers_and_vectors_are_read_back_by_the_table_build(tmp_path: Path) -> None:
    derived = derive(*make_data(), SMALL)
    write_parquet(derived.answers, tmp_path / "answers.parquet")
    ids = 1000 + np.arange(48)
    read = read_answers(tmp_path / "answers.parquet", ids)
    assert read.n_foreign == 0
    vectors.save_vectors(tmp_path / "vectors.npz", ids, derived.space_NS, "these")
    own = vectors.read_vectors(tmp_path / "vectors.npz", np.array([5, 1003, 1047]), "these")
    assert not own[0].any()
    assert np.allclose(own[1:, :8], vectors.normalised(derived.space_NS[[3, 47]]), atol=1e-6)
    with pytest.raises(DataError, match="those of others"):
        vectors.read_vectors(tmp_path / "vectors.npz", ids, "a language model's")
    (tmp_path / "vectors.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match="make the intents again"):
        vectors.read_vectors(tmp_path / "vectors.npz", ids, "these")


def test_tables_of_derived_intents_stand_in_their_own_space_and_refuse_another_sources_answers(tmp_path: Path) -> None:
    items, behaviours, _ = make_data()
    write_parquet(items, tmp_path / "items.parquet")
    write_parquet(behaviours, tmp_path / "behaviours.parquet")
    derive_folder(tmp_path, tmp_path / "intents", SMALL, cache=None)
    settings = BuildSettings(data=tmp_path, intents=tmp_path / "intents", out=tmp_path / "tables", cache=None)
    build_tables(settings)
    table = IntentTable.open(tmp_path / "tables" / "intents")
    answers = tmp_path / "intents" / "answers.parquet"
    own = vectors.read_vectors(tmp_path / "intents" / "vectors.npz", table.items, file_sha256(answers))
    np.testing.assert_allclose(table.item_vectors[contract.FIRST_ITEM_ROW :], own, atol=1e-6)
    first_paths = table.arrays.paths[table.arrays.item_paths[contract.FIRST_ITEM_ROW :, 0]]
    root = first_paths[0, 0]
    of_members = vectors.normalised(own[first_paths[:, 0] == root].sum(0))
    np.testing.assert_allclose(table.node_vectors[root], of_members, atol=1e-5)
    write_parquet(pq.read_table(answers).slice(1), answers)
    with pytest.raises(DataError, match="those of others"):
        build_tables(settings)
