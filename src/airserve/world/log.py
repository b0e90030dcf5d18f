"""A seeded world to demonstrate and measure on: items with titles, users with drifting intents, a behaviour log.

How users behave here, and why it is like a content-to-commerce platform:

- A user has a few *episodes* of intent (a leaf of the ontology) that come and go. In an episode the user first watches
  content about it, days later looks at products, and often orders one: orders follow content with a lag.
- After an order the next episode is often the order's complement, which depends on the user's segment.
- 30-50 % of a user's events are noise: popular content and products that have nothing to do with any intent.
- Content is short-lived and a part of the products is new, so that ids alone carry little for them.

The held-out event of a user is the last order; what the user did before with the ordered product itself is taken out
of the history, so that the task is to find the product, not to notice that it lies in the cart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve.errors import UserError
from airserve.ids import item_id
from airserve.world.intent_rules import true_paths
from airserve.world.ontology import Leaf, Ontology
from airserve.world.titles import content_title, is_held_out, product_title

DAY_S = 86_400
EPOCH_S = 1_750_000_000
"""The world's first second; a fixed date, so that the log is the same every time."""
CUT_ALLOWANCE = 1.11
"""Events simulated per event kept: the log of a held-out user ends with the held-out order."""
LEAF_ACTIONS_CONTENT = (("view", 0.7), ("like", 0.3))
LEAF_ACTIONS_PRODUCT = (("click", 0.8), ("cart", 0.2))


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Size and temper of the world."""

    contents: int = 2_000
    products: int = 2_000
    users: int = 5_000
    events: int = 200_000
    days: int = 90
    seed: int = 0
    segments: int = 3
    content_life_days: float = 30.0
    """A content item is shown for about this long after its release."""
    new_product_share: float = 0.25
    """Share of the products that are released in the last third of the log."""
    lag_days: float = 4.0
    """Mean time from content to product events of an episode."""
    order_chance: float = 0.75
    """Chance that an episode ends in an order."""
    complement_chance: float = 0.35
    """Chance that an order starts an episode of its complement."""

    def __post_init__(self) -> None:
        for name in ("contents", "products", "users", "events", "days", "segments"):
            if getattr(self, name) < 1:
                raise UserError(
                    name, expected="at least 1", got=str(getattr(self, name)), remedy="choose a larger size"
                )

    def scaled(self, factor: float) -> WorldSettings:
        """The same world, `factor` times as large in items, users and events.

        Raises:
            UserError: for a factor that is not above 0.
        """
        if not 0 < factor < float("inf"):
            raise UserError("size", expected="a number above 0", got=f"{factor:g}", remedy="1.0 is the usual size")
        sizes = {
            name: max(8, round(getattr(self, name) * factor)) for name in ("contents", "products", "users", "events")
        }
        return WorldSettings(**{**self.__dict__, **sizes})


@dataclass(frozen=True, kw_only=True)
class Item:
    """One content or product of the world."""

    item_id: int
    domain: str
    title: str
    leaf: Leaf
    release_day: float
    popularity: float


@dataclass(frozen=True, kw_only=True)
class Event:
    """One row of the behaviour log; `leaf` is None for noise."""

    user: int
    item: Item
    action: str
    day: float
    segment: int
    leaf: Leaf | None


def make_items(ontology: Ontology, settings: WorldSettings) -> list[Item]:
    """Contents, then products; every title is one that the intent LM never saw (`titles.is_held_out`)."""
    rng = np.random.default_rng([settings.seed, 1])
    items: list[Item] = []
    seen: set[str] = set()
    for domain, count in (("content", settings.contents), ("product", settings.products)):
        order = rng.permutation(len(ontology.leaves))
        for at in range(count):
            leaf = ontology.leaves[int(order[at % len(order)])]
            title = _fresh_title(domain, leaf, rng, seen)
            if domain == "content":
                release = rng.uniform(-settings.content_life_days, settings.days)
            else:
                new = rng.random() < settings.new_product_share
                release = rng.uniform(settings.days * 2 / 3, settings.days * 0.9) if new else 0.0
            items.append(
                Item(
                    item_id=item_id(f"{domain}/{at}"),
                    domain=domain,
                    title=title,
                    leaf=leaf,
                    release_day=float(release),
                    popularity=float(rng.pareto(1.5) + 0.2),
                )
            )
    return items


def _fresh_title(domain: str, leaf: Leaf, rng: np.random.Generator, seen: set[str]) -> str:
    write = content_title if domain == "content" else product_title
    for _ in range(200):
        title = write(leaf, rng)
        if is_held_out(title) and title not in seen:
            seen.add(title)
            return title
    raise RuntimeError(f"{' > '.join(leaf.path)}: no new {domain} title in 200 tries; add wordings to the ontology")


class _Shelf:
    """Items of one domain, by leaf, with what is available on a day."""

    def __init__(self, items: list[Item], life_days: float) -> None:
        self._life_days = life_days
        self._all = _Pool(items)
        self._by_leaf: dict[int, _Pool] = {}
        groups: dict[int, list[Item]] = {}
        for item in items:
            groups.setdefault(item.leaf.index, []).append(item)
        self._by_leaf = {leaf: _Pool(group) for leaf, group in groups.items()}

    def pick(self, rng: np.random.Generator, day: float, leaf: Leaf | None) -> Item | None:
        """A random item, by popularity, that is on the shelf that day; of one leaf, or of all when None."""
        pool = self._all if leaf is None else self._by_leaf.get(leaf.index)
        return pool.pick(rng, day, self._life_days) if pool else None


class _Pool:
    def __init__(self, items: list[Item]) -> None:
        self._items = items
        self._release = np.array([item.release_day for item in items])
        self._popularity = np.array([item.popularity for item in items])

    def pick(self, rng: np.random.Generator, day: float, life_days: float) -> Item | None:
        weight = self._popularity * ((self._release <= day) & (day <= self._release + life_days))
        total = weight.cumsum()
        if total[-1] <= 0:
            return None
        return self._items[int(np.searchsorted(total, rng.random() * total[-1], side="right"))]


class World:
    """The simulation: call `events` for the log.

    Args:
        ontology: leaves that items and intents come from.
        settings: sizes and probabilities.
    """

    def __init__(self, ontology: Ontology, settings: WorldSettings) -> None:
        self.ontology = ontology
        self.settings = settings
        self.items = make_items(ontology, settings)
        self._leaf_of_path = {leaf.path: leaf for leaf in ontology.leaves}
        self._domains = sorted({leaf.path[0] for leaf in ontology.leaves})
        self._leaves_of = {
            domain: [leaf for leaf in ontology.leaves if leaf.path[0] == domain] for domain in self._domains
        }
        self._contents = _Shelf([i for i in self.items if i.domain == "content"], settings.content_life_days)
        self._products = _Shelf([i for i in self.items if i.domain == "product"], 10.0 * settings.days)

    def user_events(self, user: int) -> list[Event]:
        """The log of one user, in time order; depends on the seed and the user's number only."""
        s = self.settings
        rng = np.random.default_rng([s.seed, 2, user])
        segment = int(rng.integers(s.segments))
        mean = CUT_ALLOWANCE * s.events / s.users
        wanted = max(6, int(rng.normal(mean, 0.3 * mean)))
        noise_share = rng.uniform(0.3, 0.5)
        interests = rng.choice(self._domains, size=min(3, len(self._domains)), replace=False)
        events: list[Event] = []
        followers: list[tuple[Leaf, float]] = []
        while len(events) < wanted * (1 - noise_share):
            if followers and rng.random() < 0.8:
                leaf, start = followers.pop(0)
            else:
                pool = self._leaves_of[str(rng.choice(interests))]
                leaf, start = pool[int(rng.integers(len(pool)))], float(rng.uniform(0, s.days * 0.92))
            events += self._episode(rng, user, segment, leaf, start, followers)
        while len(events) < wanted:
            day = float(rng.uniform(0, s.days))
            events += self._noise(rng, user, segment, day)
        events = [event for event in events if event.day < s.days]
        return sorted(events, key=lambda event: event.day)

    def _episode(
        self,
        rng: np.random.Generator,
        user: int,
        segment: int,
        leaf: Leaf,
        start: float,
        followers: list[tuple[Leaf, float]],
    ) -> Iterator[Event]:
        s = self.settings
        for _ in range(int(rng.integers(2, 6))):
            day = start + float(rng.exponential(1.5))
            content = self._contents.pick(rng, day, leaf)
            if content:
                yield Event(
                    user=user,
                    item=content,
                    action=_draw(rng, LEAF_ACTIONS_CONTENT),
                    day=day,
                    segment=segment,
                    leaf=leaf,
                )
        looks = start + 1.5 + float(rng.exponential(s.lag_days))
        for _ in range(int(rng.integers(0, 4))):
            day = looks + float(rng.exponential(1.0))
            product = self._products.pick(rng, day, leaf)
            if product:
                yield Event(
                    user=user,
                    item=product,
                    action=_draw(rng, LEAF_ACTIONS_PRODUCT),
                    day=day,
                    segment=segment,
                    leaf=leaf,
                )
        if rng.random() < s.order_chance:
            day = looks + 1.0 + float(rng.exponential(2.0))
            product = self._products.pick(rng, day, leaf)
            if product:
                yield Event(user=user, item=product, action="order", day=day, segment=segment, leaf=leaf)
            if rng.random() < s.complement_chance:
                path = true_paths(leaf, "order", segment)[-1]
                followers.append((self._leaf_of_path[path], day + float(rng.exponential(2.0))))

    def _noise(self, rng: np.random.Generator, user: int, segment: int, day: float) -> Iterator[Event]:
        if rng.random() < 0.75:
            item, actions = self._contents.pick(rng, day, None), LEAF_ACTIONS_CONTENT
        else:
            item, actions = self._products.pick(rng, day, None), LEAF_ACTIONS_PRODUCT
        if item:
            yield Event(user=user, item=item, action=_draw(rng, actions), day=day, segment=segment, leaf=None)


def _draw(rng: np.random.Generator, choices: tuple[tuple[str, float], ...]) -> str:
    at = rng.random()
    for name, share in choices:
        at -= share
        if at < 0:
            return name
    return choices[-1][0]


def hold_out(events: list[Event], days: float, valid: bool) -> tuple[list[Event], str]:
    """Cut a user's log at its last order when that is in the last 30 % of the time; else all of it is for training.

    Returns:
        The events that stay, and the split of the last one.
    """
    last = max((at for at, event in enumerate(events) if event.action == "order"), default=-1)
    if last < 3 or events[last].day < 0.7 * days:
        return events, "train"
    target = events[last]
    history = [event for event in events[:last] if event.item.item_id != target.item.item_id]
    if len(history) < 3:
        return events, "train"
    return [*history, target], "valid" if valid else "test"


def behaviour_columns(world: World, users: npt.ArrayLike) -> dict[str, list[Any]]:
    """Columns of `behaviours.parquet` (see docs/ARCHITECTURE.md) for some users, plus `is_noise` for the report."""
    names = ("user_id", "item_id", "action", "timestamp_s", "user_segment", "split", "is_noise")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for user in np.asarray(users).tolist():
        kept, split = hold_out(world.user_events(user), world.settings.days, valid=user % 5 == 0)
        for at, event in enumerate(kept):
            columns["user_id"].append(user)
            columns["item_id"].append(event.item.item_id)
            columns["action"].append(event.action)
            columns["timestamp_s"].append(EPOCH_S + int(event.day * DAY_S))
            columns["user_segment"].append(event.segment)
            columns["split"].append(split if at == len(kept) - 1 else "train")
            columns["is_noise"].append(event.leaf is None)
    return columns
