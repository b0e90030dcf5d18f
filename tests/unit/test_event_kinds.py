"""Distinct event kinds of a log."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.artifact_schemas import BEHAVIOURS_SCHEMA, ITEMS_SCHEMA
from airserve.contract import ACTIONS
from airserve.intents.event_kinds import event_kinds

ITEMS = [
    (1, "content", "the cat sleeps on the fridge", False),
    (2, "content", "camping in the rain", False),
    (3, "product", "Cat Tree, 60 inch", True),
    (4, "product", " cat  tree, 60 INCH", True),
]


def items_table(rows=ITEMS):
    return pa.table(dict(zip(ITEMS_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True)), schema=ITEMS_SCHEMA)


def log_table(events):
    """Rows of (item, action, segment)."""
    count = len(events)
    return pa.table(
        {
            "user_id": [1] * count,
            "item_id": [event[0] for event in events],
            "action": [event[1] for event in events],
            "timestamp_s": list(range(count)),
            "user_segment": [event[2] for event in events],
            "split": ["train"] * count,
        },
        schema=BEHAVIOURS_SCHEMA,
    )


def kind_rows(found):
    return [(row["item_id"], row["action"], row["user_segment"]) for row in found.kinds.to_pylist()]


def test_a_kind_that_happens_often_is_found_once_and_comes_first():
    found = event_kinds(items_table(), log_table([(2, "like", 1)] * 3 + [(1, "view", 0)]))
    assert kind_rows(found)[:2] == [(2, "like", 1), (1, "view", 0)]
    assert found.kinds.column("events").to_pylist()[:2] == [3, 1]


def test_candidates_get_a_default_kind_though_nobody_has_seen_them():
    found = event_kinds(items_table(), log_table([]))
    assert kind_rows(found) == [(3, "order", 0), (4, "order", 0)]


def test_a_default_kind_that_was_seen_is_not_doubled():
    found = event_kinds(items_table(), log_table([(3, "order", 0)]))
    assert kind_rows(found) == [(3, "order", 0), (4, "order", 0)]


def test_the_same_item_is_another_kind_by_action_and_by_segment():
    found = event_kinds(items_table(), log_table([(1, "view", 0), (1, "like", 0), (1, "view", 2)]))
    assert {(1, "view", 0), (1, "like", 0), (1, "view", 2)} <= set(kind_rows(found))


def test_titles_that_differ_in_case_and_blanks_share_a_prompt():
    found = event_kinds(items_table(), log_table([(1, "view", 0)]))
    prompt_of = {row["item_id"]: row["prompt_id"] for row in found.kinds.to_pylist()}
    assert prompt_of[3] == prompt_of[4] != prompt_of[1]
    assert found.prompts.num_rows == 2
    assert found.kinds.num_rows == 3


def test_events_on_items_that_are_not_known_are_left_out():
    assert (99, "view", 0) not in kind_rows(event_kinds(items_table(), log_table([(99, "view", 0)])))


def test_a_limit_keeps_the_most_frequent_kinds_and_only_their_prompts():
    found = event_kinds(items_table(), log_table([(1, "view", 0)] * 2 + [(2, "view", 0)]), limit=1)
    assert kind_rows(found) == [(1, "view", 0)]
    assert found.prompts.num_rows == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_the_log_changes_nothing(seed):
    events = [(1, "view", 0), (2, "like", 1), (3, "cart", 0), (1, "view", 0), (2, "view", 1)]
    turned = events[seed + 1 :] + events[: seed + 1]
    assert event_kinds(items_table(), log_table(turned)).kinds == event_kinds(items_table(), log_table(events)).kinds


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(sorted(ACTIONS)), st.integers(0, 2)), max_size=30))
def test_kinds_are_the_set_of_events_and_defaults(events):
    found = event_kinds(items_table(), log_table(events))
    rows = kind_rows(found)
    assert len(rows) == len(set(rows))
    assert set(rows) == set(events) | {(3, "order", 0), (4, "order", 0)}
    prompts = found.prompts.to_pylist()
    assert [prompt["prompt_id"] for prompt in prompts] == list(range(len(prompts)))
    for row in found.kinds.to_pylist():
        prompt = prompts[row["prompt_id"]]
        assert (prompt["action"], prompt["user_segment"]) == (row["action"], row["user_segment"])
        assert " ".join(prompt["text"].lower().split()) == " ".join(row["text"].lower().split())
