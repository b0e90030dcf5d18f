"""The demonstration world behaves as the demonstration says that it does."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from airserve import contract
from airserve.errors import UserError
from airserve.world.log import (
    DAY_S,
    EPOCH_S,
    Event,
    World,
    WorldSettings,
    behaviour_columns,
    hold_out,
)
from airserve.world.ontology import Ontology, load_ontology
from airserve.world.titles import is_held_out

SMALL = WorldSettings(contents=400, products=400, users=120, events=4_800)

Row = tuple[int, str, int, int, str]
"""item id, action, timestamp, segment, split"""

STOP_WORDS = frozenset(
    """
    all and any are but can did does for from get got had has have her him his how into its just more most new not off
    one our out over own she so than that the their them then they this too try two was way were what when who why
    will with you your
    """.split()  # noqa: SIM905
)


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    return load_ontology()


@pytest.fixture(scope="module")
def world(ontology: Ontology) -> World:
    return World(ontology, SMALL)


@pytest.fixture(scope="module")
def logs(world: World) -> list[list[Event]]:
    return [world.user_events(user) for user in range(SMALL.users)]


@pytest.fixture(scope="module")
def rows(world: World) -> dict[int, list[Row]]:
    """Rows of the behaviour log by user."""
    columns = behaviour_columns(world, range(SMALL.users))
    found: dict[int, list[Row]] = {}
    names = ("user_id", "item_id", "action", "timestamp_s", contract.USER_SEGMENT.name, "split")
    for user, *row in zip(*(columns[name] for name in names), strict=True):
        found.setdefault(user, []).append(tuple(row))
    return found


def content_words(title: str) -> frozenset[str]:
    return frozenset(word for word in re.findall(r"[^\W\d_]{3,}", title.lower()) if word not in STOP_WORDS)


# Repeatable.


def test_the_same_seed_gives_the_same_world_and_log(ontology: Ontology, world: World) -> None:
    again = World(ontology, SMALL)
    assert again.items == world.items
    assert behaviour_columns(again, range(10)) == behaviour_columns(world, range(10))


def test_another_seed_gives_another_log(ontology: Ontology, world: World) -> None:
    other = World(ontology, replace(SMALL, seed=1))
    assert [item.title for item in other.items] != [item.title for item in world.items]
    assert behaviour_columns(other, range(5)) != behaviour_columns(world, range(5))


def test_a_users_log_does_not_depend_on_how_many_users_there_are(ontology: Ontology, world: World) -> None:
    more = World(ontology, replace(SMALL, users=2 * SMALL.users, events=2 * SMALL.events))
    assert behaviour_columns(more, range(10)) == behaviour_columns(world, range(10))


def test_a_users_log_does_not_depend_on_who_was_simulated_before(world: World) -> None:
    assert behaviour_columns(world, [7]) == behaviour_columns(world, np.array([7]))
    together, alone = behaviour_columns(world, [3, 7]), behaviour_columns(world, [7])
    of_user = [at for at, user in enumerate(together["user_id"]) if user == 7]
    assert {name: [column[at] for at in of_user] for name, column in together.items()} == alone


# Items.


def test_there_are_as_many_items_of_each_domain_as_asked_for(world: World) -> None:
    assert Counter(item.domain for item in world.items) == {"content": SMALL.contents, "product": SMALL.products}
    assert len({item.item_id for item in world.items}) == len(world.items)


def test_every_title_is_one_that_the_language_model_never_saw(world: World) -> None:
    assert all(is_held_out(item.title) for item in world.items)


def test_no_two_items_have_the_same_title(world: World) -> None:
    assert len({item.title for item in world.items}) == len(world.items)


def test_leaves_have_as_many_items_as_each_other(world: World, ontology: Ontology) -> None:
    for domain in ("content", "product"):
        counts = Counter(item.leaf.index for item in world.items if item.domain == domain)
        assert len(counts) == len(ontology.leaves)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_content_and_product_titles_of_one_intent_share_few_words(world: World) -> None:
    titles: dict[int, dict[str, list[frozenset[str]]]] = {}
    for item in world.items:
        titles.setdefault(item.leaf.index, {}).setdefault(item.domain, []).append(content_words(item.title))
    shared = [
        len(content & product) / len(content | product)
        for of_leaf in titles.values()
        for content in of_leaf.get("content", [])
        for product in of_leaf.get("product", [])
    ]
    print(f"mean Jaccard of content and product titles of one leaf: {np.mean(shared):.4f}")
    assert len(shared) > 100
    assert np.mean(shared) < 0.1


def test_a_share_of_the_products_is_new_in_the_last_third(world: World) -> None:
    releases = np.array([item.release_day for item in world.items if item.domain == "product"])
    new = releases > 0
    assert new.mean() == pytest.approx(SMALL.new_product_share, abs=0.07)
    assert (releases[new] >= SMALL.days * 2 / 3).all()


# Behaviour.


def test_users_have_about_as_many_events_as_asked_for(logs: list[list[Event]]) -> None:
    assert sum(map(len, logs)) == pytest.approx(SMALL.events, rel=0.2)


def test_a_log_is_in_time_order_within_the_days_of_the_world(logs: list[list[Event]]) -> None:
    for log in logs:
        assert all(before.day <= after.day for before, after in pairwise(log))
        assert all(0 <= event.day < SMALL.days for event in log)


def test_thirty_to_fifty_percent_of_all_events_are_noise(logs: list[list[Event]]) -> None:
    noise = np.mean([event.leaf is None for log in logs for event in log])
    print(f"noise share: {noise:.3f}")
    assert 0.3 - 0.03 <= noise <= 0.5 + 0.03


def test_nobody_orders_noise(logs: list[list[Event]]) -> None:
    assert not [event for log in logs for event in log if event.leaf is None and event.action == "order"]


def test_an_event_of_an_intent_is_about_an_item_of_that_intent(logs: list[list[Event]]) -> None:
    assert all(event.leaf in (None, event.item.leaf) for log in logs for event in log)


def test_content_is_viewed_and_liked_and_products_are_clicked_carted_and_ordered(logs: list[list[Event]]) -> None:
    actions = {
        domain: {event.action for log in logs for event in log if event.item.domain == domain}
        for domain in ("content", "product")
    }
    assert actions == {"content": {"view", "like"}, "product": {"click", "cart", "order"}}
    assert actions["content"] | actions["product"] == set(contract.ACTIONS)


def test_nobody_sees_an_item_that_is_not_on_the_shelf(logs: list[list[Event]]) -> None:
    for event in (event for log in logs for event in log):
        assert event.item.release_day <= event.day
        if event.item.domain == "content":
            assert event.day <= event.item.release_day + SMALL.content_life_days


def test_orders_follow_content_of_the_same_intent_with_a_lag_of_days(logs: list[list[Event]]) -> None:
    lags_days = []
    for log in logs:
        of_leaf: dict[int, dict[str, list[float]]] = {}
        for event in log:
            if event.leaf is not None and event.action in {"view", "like", "order"}:
                kind = "order" if event.action == "order" else "content"
                of_leaf.setdefault(event.leaf.index, {}).setdefault(kind, []).append(event.day)
        lags_days += [min(days["order"]) - min(days["content"]) for days in of_leaf.values() if len(days) == 2]
    print(f"first order behind first content: median {np.median(lags_days):.1f} days over {len(lags_days)} intents")
    assert len(lags_days) > 50
    assert np.mean(np.array(lags_days) > 0) > 0.8
    assert 2.0 < np.median(lags_days) < 20.0


def test_a_user_stays_in_one_segment_and_all_segments_occur(logs: list[list[Event]]) -> None:
    segments = [{event.segment for event in log} for log in logs]
    assert all(len(of_user) == 1 for of_user in segments)
    assert set().union(*segments) == set(range(SMALL.segments))


# The held-out event.


def test_the_held_out_item_does_not_occur_in_the_users_history(rows: dict[int, list[Row]]) -> None:
    held_out = 0
    for user in rows.values():
        *history, (target, _, _, _, split) = user
        if split != "train":
            held_out += 1
            assert target not in {item for item, *_ in history}
    assert held_out > SMALL.users // 3


def test_only_the_last_row_of_a_user_is_held_out_and_it_is_an_order(rows: dict[int, list[Row]]) -> None:
    for user in rows.values():
        assert {split for *_, split in user[:-1]} == {"train"}
        _, action, timestamp_s, _, split = user[-1]
        if split != "train":
            assert action == "order"
            assert timestamp_s >= EPOCH_S + 0.7 * SMALL.days * DAY_S - 1


def test_users_are_held_out_for_validation_or_for_testing_never_for_both(rows: dict[int, list[Row]]) -> None:
    splits = {number: user[-1][-1] for number, user in rows.items()}
    assert {split for number, split in splits.items() if number % 5 == 0} <= {"train", "valid"}
    assert {split for number, split in splits.items() if number % 5 != 0} <= {"train", "test"}
    assert set(splits.values()) == {"train", "valid", "test"}


def test_the_columns_are_sorted_by_user_then_time_and_hold_names_of_the_contract(world: World) -> None:
    columns = behaviour_columns(world, range(30))
    assert len({len(column) for column in columns.values()}) == 1
    keys = list(zip(columns["user_id"], columns["timestamp_s"], strict=True))
    assert keys == sorted(keys)
    assert set(columns["action"]) <= set(contract.ACTIONS)
    assert all(timestamp >= EPOCH_S for timestamp in columns["timestamp_s"])


def test_a_history_loses_every_earlier_event_of_the_held_out_item_and_no_other(logs: list[list[Event]]) -> None:
    shortened = 0
    for log in logs:
        kept, split = hold_out(log, SMALL.days, valid=False)
        if split == "train":
            assert kept == log
            continue
        target = kept[-1]
        before = log[: max(at for at, event in enumerate(log) if event.action == "order")]
        assert kept[:-1] == [event for event in before if event.item != target.item]
        shortened += len(kept) - 1 < len(before)
    assert shortened


def test_a_log_without_a_late_order_is_all_for_training(logs: list[list[Event]]) -> None:
    log = max(logs, key=len)
    without = [event for event in log if event.action != "order"]
    assert hold_out(without, SMALL.days, valid=True) == (without, "train")
    early = [event for event in log if event.day < 0.5 * SMALL.days]
    assert hold_out(early, SMALL.days, valid=True) == (early, "train")
    assert hold_out([], SMALL.days, valid=True) == ([], "train")


# Sizes.


def test_the_sizes_scale_and_the_temper_stays() -> None:
    assert WorldSettings().scaled(1.0) == WorldSettings()
    half = WorldSettings(seed=3, lag_days=2.0).scaled(0.5)
    assert (half.contents, half.products, half.users, half.events) == (1_000, 1_000, 2_500, 100_000)
    assert half == replace(
        WorldSettings(), seed=3, lag_days=2.0, contents=1_000, products=1_000, users=2_500, events=100_000
    )


def test_the_smallest_world_still_runs(ontology: Ontology) -> None:
    world = World(ontology, WorldSettings().scaled(1e-9))
    assert len(world.items) == 16
    columns = behaviour_columns(world, range(world.settings.users))
    assert set(columns["item_id"]) <= {item.item_id for item in world.items}


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_size_that_is_no_size_is_refused(factor: float) -> None:
    with pytest.raises(UserError, match="size: expected a number above 0"):
        WorldSettings().scaled(factor)


@pytest.mark.parametrize("name", ["contents", "products", "users", "events", "days", "segments"])
def test_a_world_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: expected at least 1, got 0"):
        WorldSettings(**{name: 0})
