"""The report of a generation run, for people: what the model wrote, of what, and what went wrong.

Every list is bounded, so the page stays small for any catalogue.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from airserve.html_page import Branch, Tile, bar, shown, table, tree, write_page
from airserve.intents.store import REASON
from airserve.table.vocabulary import canonical_path, folded_text

TREE_PATHS = 4000
"""Distinct paths of the tree, the most frequent."""
SAMPLES = 40
SHOWN = 100
"""Dead letters, merges and domains listed."""
ANSWERED = "kinds k JOIN keyed p USING (prompt_id) LEFT JOIN known a ON a.key = p.key AND NOT p.empty"


def write_report(connection: Any, report: dict[str, Any], path: Path) -> None:
    """Write the report of a run.

    Args:
        connection: DuckDB with the tables of `JobStore` after a run.
        report: the manifest.
        path: the HTML file.
    """
    sections = [
        ("Validity and coverage by action", _shares(connection, "k.action", "action")),
        ("Validity and coverage by domain", _shares(connection, "k.domain", "domain")),
        ("Paths per event kind", _histogram(connection)),
        ("Intents by weight", _tree(connection)),
        ("Random samples", _samples(connection)),
        (f"Dead letters ({report['dead_letters']:,})", _dead(connection)),
        ("Spellings that become one node", _merged(connection)),
        ("All figures", _figures(report)),
    ]
    about = f"{report['model']}, prompt {report['prompt_version']}, {report['settings']['engine']}"
    write_page(path, "Intent generation", about, _tiles(report), sections)


def _tiles(report: dict[str, Any]) -> list[Tile]:
    rate, tokens = report["prompts_per_s"], report["output_tokens_per_s"]
    return [
        Tile(figure=f"{report['event_kinds']:,}", about="event kinds"),
        Tile(figure=f"{report['valid_share']:.1%}", about="of them with intents", bad=report["valid_share"] < 0.9),
        Tile(figure=f"{report['new']:,}", about="prompts asked now"),
        Tile(figure=f"{report['reused']:,}", about="answered before"),
        Tile(figure=f"{report['dead_letters']:,}", about="dead letters", bad=report["dead_letters"] > 0),
        Tile(figure=f"{rate:,.0f}/s" if rate else "none", about="prompts"),
        Tile(figure=f"{tokens:,.0f}/s" if tokens else "none", about="tokens written"),
        Tile(figure=f"{report['prefix_hit_share']:.1%}", about="of prompt tokens from the prefix cache"),
    ]


def _figures(report: dict[str, Any]) -> str:
    rows = [
        [shown(name.replace("_", " ")), shown("" if value is None else value)]
        for name, value in report.items()
        if name != "settings"
    ]
    return f"<details><summary>Show the manifest</summary>{table(['', ''], rows)}</details>"


def _shares(connection: Any, column: str, head: str) -> str:
    rows = connection.execute(
        f"""
        SELECT {column}, count(*), avg((a.valid IS true)::INT), coalesce(sum(k.events), 0),
               coalesce(sum(k.events) FILTER (a.valid) / nullif(sum(k.events), 0), 0)
        FROM {ANSWERED} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {SHOWN}
        """
    ).fetchall()
    lines = [
        [shown(name or "(none)"), f"{kinds:,}", f"{valid:.1%}", f"{events:,}", f"{covered:.1%}", bar(covered)]
        for name, kinds, valid, events, covered in rows
    ]
    heads = [head, "kinds", "valid", "events", "covered", ""]
    return table(heads, lines, numeric=frozenset({1, 2, 3, 4}), wide=frozenset({5}))


def _histogram(connection: Any) -> str:
    rows = connection.execute(
        f"SELECT coalesce(len(a.paths), 0) AS n, count(*) FROM {ANSWERED} GROUP BY 1 ORDER BY 1"
    ).fetchall()
    total = sum(count for _, count in rows)
    lines = [[str(paths), f"{count:,}", f"{count / total:.1%}", bar(count / total)] for paths, count in rows]
    return table(["paths", "kinds", "share", ""], lines, numeric=frozenset({1, 2}), wide=frozenset({3}))


def _paths(connection: Any) -> list[tuple[list[str], int]]:
    found: list[tuple[list[str], int]] = connection.execute(
        f"""
        SELECT path, count(*) AS n FROM (
            SELECT unnest(a.paths) AS path FROM kinds k JOIN keyed p USING (prompt_id)
            JOIN known a ON a.key = p.key AND NOT p.empty
        ) GROUP BY path ORDER BY n DESC, path LIMIT {TREE_PATHS}
        """
    ).fetchall()
    return found


def _tree(connection: Any) -> str:
    root = Branch()
    for path, count in _paths(connection):
        branch = root
        branch.weight += count
        for text in canonical_path(path):
            branch = branch.below.setdefault(text, Branch())
            branch.weight += count
    return tree(root)


def _samples(connection: Any) -> str:
    rows = connection.execute(
        f"""
        SELECT k.action, k.user_segment, k.text, a.paths, coalesce(a.raw, '')
        FROM kinds k JOIN keyed p USING (prompt_id) LEFT JOIN known a ON a.key = p.key AND NOT p.empty
        ORDER BY hash(k.item_id, k.action, k.user_segment) LIMIT {SAMPLES}
        """
    ).fetchall()
    lines = [
        [
            f"{shown(action)} ({segment})",
            shown(text),
            "<br>".join(shown(" > ".join(path)) for path in paths or []) or f"<code>{shown(raw)}</code>",
        ]
        for action, segment, text, paths, raw in rows
    ]
    return table(["action (segment)", "title", "intents"], lines, stack=True)


def _dead(connection: Any) -> str:
    dead = f"""
        SELECT {REASON} AS reason, q.action, q.text, coalesce(a.raw, '') AS raw
        FROM keyed p JOIN prompts q USING (prompt_id) LEFT JOIN known a ON a.key = p.key AND NOT p.empty
        LEFT JOIN said s ON s.key = p.key WHERE p.empty OR a.valid IS NOT true ORDER BY p.prompt_id
    """
    reasons = connection.execute(
        f"SELECT reason, count(*) FROM ({dead}) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10"
    ).fetchall()
    if not reasons:
        return "<p>None.</p>"
    most = reasons[0][1]
    counts = [[shown(reason), f"{count:,}", bar(count / most, f"{count:,}")] for reason, count in reasons]
    lines = [
        [shown(reason), shown(action), shown(text), f"<code>{shown(raw)}</code>"]
        for reason, action, text, raw in connection.execute(f"{dead} LIMIT {SHOWN}").fetchall()
    ]
    return table(["reason", "prompts", ""], counts, numeric=frozenset({1}), wide=frozenset({2})) + table(
        ["reason", "action", "title", "raw answer"], lines, stack=True
    )


def _merged(connection: Any) -> str:
    spellings: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path, _ in _paths(connection):
        for depth in range(1, len(path) + 1):
            spellings[tuple(map(folded_text, path[:depth]))].add(path[depth - 1])
    merged = sorted((key, found) for key, found in spellings.items() if len(found) > 1)[:SHOWN]
    rows = [[" · ".join(shown(text) for text in sorted(found))] for _, found in merged]
    note = "<p>Near-duplicates that are merged by their embeddings are in the report of the tables.</p>"
    return table(["spellings"], rows) + note
