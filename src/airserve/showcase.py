"""Turn logged users into ranking requests, and answers into something a person can read.

Used by the demo and by `clients/rank_once.py`; needs pyarrow and DuckDB (the main environment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from rich.console import Console
from rich.text import Text

from airserve import contract
from airserve.artifacts import BEHAVIOURS_FILE, ITEMS_FILE
from airserve.client import Behaviour, NodeTexts, RankedItem, RankRequest, RankResult
from airserve.errors import DataError

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class LoggedUser:
    """A user of the test split: the history before the held-out event, and that event's item."""

    user_id: int
    request: RankRequest
    target: int


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Titles and candidates of a data folder."""

    titles: Mapping[int, str]
    candidates: Mapping[str, Sequence[int]]
    """Rankable items of each domain."""
    domain_of: Mapping[int, str]

    @classmethod
    def open(cls, data: Path) -> Catalogue:
        """Read `items.parquet` of a data folder."""
        rows = duckdb.sql(
            f"SELECT item_id, title, domain, is_candidate FROM read_parquet('{data / ITEMS_FILE}')"
        ).fetchall()
        candidates: dict[str, list[int]] = {}
        for item, _, domain, rankable in rows:
            if rankable:
                candidates.setdefault(domain, []).append(item)
        return cls(
            titles={item: title for item, title, _, _ in rows},
            candidates=candidates,
            domain_of={item: domain for item, _, domain, _ in rows},
        )


def logged_users(
    data: Path, catalogue: Catalogue, *, count: int, candidates: int, seed: int = 0, history: int | None = None
) -> list[LoggedUser]:
    """Requests of `count` users of the test split, as they were just before their held-out event.

    Args:
        data: data folder.
        catalogue: of the same folder.
        count: users, drawn with `seed`.
        candidates: how many items each request ranks: the held-out one and random others of its domain.
        seed: of the draw.
        history: at most this many of the latest behaviours; the contract's bound when None.

    Raises:
        DataError: when the log has no test users.
    """
    path = data / BEHAVIOURS_FILE
    picked = duckdb.execute(
        f"""SELECT user_id, item_id, action, timestamp_s, user_segment, split FROM read_parquet('{path}')
            WHERE user_id IN (SELECT user_id FROM (SELECT DISTINCT user_id FROM read_parquet('{path}')
                              WHERE split = 'test') ORDER BY hash(user_id + ?), user_id LIMIT ?)
            ORDER BY user_id, timestamp_s, split = 'test'""",
        [seed, count],
    ).fetchall()
    if not picked:
        raise DataError(str(path), expected="users of the split `test`", got="none", remedy="import the data again")
    by_user: dict[int, list[tuple[int, str, int, int, str]]] = {}
    for user, *event in picked:
        by_user.setdefault(user, []).append(tuple(event))
    rng = np.random.default_rng(seed)
    limit = history or contract.MAX_BEHAVIOURS
    users = []
    for user, events in by_user.items():
        *past, (target, _, now, segment, _) = events
        pool = [item for item in catalogue.candidates[catalogue.domain_of[target]] if item != target]
        others = rng.choice(pool, size=min(candidates - 1, len(pool)), replace=False).tolist()
        behaviours = [Behaviour(item=i, action=a, age_s=float(max(now - t, 0))) for i, a, t, _, _ in past[-limit:]]
        request = RankRequest(behaviours=behaviours, candidates=[target, *others], segment=segment)
        users.append(LoggedUser(user_id=user, request=request, target=target))
    return users


class Presenter:
    """Prints answers: who asked, what ranks first, and the intents and behaviours behind it.

    Args:
        console: where to print.
        catalogue: titles.
        texts: vocabulary of the table that answered.
    """

    def __init__(self, console: Console, catalogue: Catalogue, texts: NodeTexts) -> None:
        self._console = console
        self._catalogue = catalogue
        self._texts = texts

    def _title(self, item: int, width: int) -> str:
        title = self._catalogue.titles.get(item, f"item {item}")
        return title if len(title) <= width else f"{title[: width - 3]}..."

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), no_wrap=True, overflow="ellipsis", crop=True)

    def show(self, user: LoggedUser, result: RankResult, *, top: int = 3) -> None:
        """Print one user's answer."""
        position = 1 + int((result.scores > result.scores[result.items.index(user.target)]).sum())
        self._console.print()
        self._line(
            f"user {user.user_id}: {len(user.request.behaviours)} behaviours, {result.coverage:.0%} with intents; "
            f"chosen next: rank {position} of {len(result.items)}",
            "bold",
        )
        for behaviour in user.request.behaviours[-4:]:
            age = f"{behaviour.age_s / DAY_S:.1f} d ago"
            self._line(f"    {behaviour.action:>6} {age:>10}  {self._title(behaviour.item, 54)}", "dim")
        for rank, item in enumerate(result.top(top), start=1):
            mark = " <- chosen next" if item.item == user.target else ""
            self._line(f"  {rank}. {item.score:6.2f}  {self._title(item.item, 50)}{mark}", "cyan")
            self._show_chains(user, item)

    def _show_chains(self, user: LoggedUser, item: RankedItem) -> None:
        for chain in item.chains[:1]:
            self._line(f"       because of {chain.text(self._texts)}  ({chain.weight:.2f})", "green")
            for at in chain.evidence[:2]:
                behaviour = user.request.behaviours[at]
                age = f"{behaviour.age_s / DAY_S:.1f} d ago"
                self._line(f"         {behaviour.action:>6} {age:>10}  {self._title(behaviour.item, 48)}")


def as_record(
    user: LoggedUser, result: RankResult, catalogue: Catalogue, texts: NodeTexts, top: int
) -> dict[str, object]:
    """One answer as JSON: for logs and reports."""
    return {
        "user_id": user.user_id,
        "history": [f"{b.action}: {catalogue.titles.get(b.item, b.item)}" for b in user.request.behaviours[-6:]],
        "chosen_next": catalogue.titles.get(user.target),
        "coverage": round(result.coverage, 4),
        "top": [
            {
                "title": catalogue.titles.get(item.item),
                "score": round(item.score, 4),
                "chains": [
                    {
                        "text": chain.text(texts),
                        "weight": round(chain.weight, 4),
                        "evidence": [catalogue.titles.get(user.request.behaviours[at].item) for at in chain.evidence],
                    }
                    for chain in item.chains[:2]
                ],
            }
            for item in result.top(top)
        ],
    }
