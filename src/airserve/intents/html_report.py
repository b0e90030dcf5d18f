"""The report of a run, for people: one HTML file with everything inside it, no script and nothing from the network.

Titles and answers are untrusted: all text is escaped, and a content policy in the page forbids scripts and requests.
Every list is bounded, so the page stays small for any catalogue.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from airserve.table.vocabulary import canonical_path, folded_text

TREE_PATHS = 4000
"""Distinct paths of the tree, the most frequent."""
SAMPLES = 40
SHOWN = 100
"""Dead letters and merges listed."""
LONGEST_TEXT = 160
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d5dbe5}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2rem .6rem;vertical-align:top}
tr:nth-child(even){background:#f5f7fa}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
details{margin-left:1.1rem}summary{cursor:pointer}.leaf{margin-left:2.2rem}.w{color:#67738a}
svg text{font:12px system-ui,sans-serif;fill:#1c2330}code{font-size:.85em;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){body{background:#14181f;color:#e2e7ef}tr:nth-child(even){background:#1d232d}
svg text{fill:#e2e7ef}h2{border-color:#333c4a}}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(connection: Any, report: dict[str, Any], path: Path) -> None:
    """Write the report of a run.

    Args:
        connection: DuckDB with the tables of `JobStore` after a run.
        report: the manifest.
        path: the HTML file.
    """
    sections = [
        ("Summary", _summary(report)),
        ("Validity and coverage by action", _shares(connection, "k.action")),
        ("Validity and coverage by domain", _shares(connection, "k.domain")),
        ("Paths per event kind", _histogram(connection)),
        ("Intents by weight", _tree(connection)),
        ("Random samples", _samples(connection)),
        (f"Dead letters ({report['dead_letters']:,})", _dead(connection)),
        ("Spellings that become one node", _merged(connection)),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>{html}" for title, html in sections)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>Intent generation</title>'
        f"<style>{STYLE}</style><h1>Intent generation: {escape(str(report['model']))}</h1>{body}</html>\n"
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _text(value: object) -> str:
    text = str(value)
    shown = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown))


def _table(heads: list[str], rows: list[list[str]], numeric: frozenset[int] = frozenset()) -> str:
    kind = ['class="n"' if place in numeric else "" for place in range(len(heads))]
    top = "".join(f"<th {kind[place]}>{head}</th>" for place, head in enumerate(heads))
    lines = "".join(
        "<tr>" + "".join(f"<td {kind[place]}>{cell}</td>" for place, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{lines}</table>" if rows else "<p>none</p>"


def _summary(report: dict[str, Any]) -> str:
    rows = [
        [escape(name.replace("_", " ")), _text("" if value is None else value)]
        for name, value in report.items()
        if name != "settings"
    ]
    return _table(["", ""], rows)


def _shares(connection: Any, column: str) -> str:
    rows = connection.execute(
        f"""
        SELECT {column}, count(*), avg((a.valid IS true)::INT), coalesce(sum(k.events), 0),
               coalesce(sum(k.events) FILTER (a.valid) / nullif(sum(k.events), 0), 0)
        FROM kinds k JOIN keyed p USING (prompt_id) LEFT JOIN known a ON a.key = p.key AND NOT p.empty
        GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {SHOWN}
        """
    ).fetchall()
    heads = ["", "kinds", "valid", "", "events", "events with intents"]
    lines = [
        [_text(name), f"{kinds:,}", f"{valid:.1%}", _bar(valid), f"{events:,}", f"{covered:.1%}"]
        for name, kinds, valid, events, covered in rows
    ]
    return _table(heads, lines, frozenset({1, 2, 4, 5}))


def _bar(share: float, width: int = 160) -> str:
    return (
        f'<svg width="{width}" height="12" role="img" aria-label="{share:.1%}"><rect width="{width}" height="12" '
        f'fill="#d5dbe5"/><rect width="{width * share:.1f}" height="12" fill="#2f6fb0"/></svg>'
    )


def _histogram(connection: Any) -> str:
    rows = connection.execute(
        "SELECT coalesce(len(a.paths), 0) AS n, count(*) FROM kinds k JOIN keyed p USING (prompt_id) "
        "LEFT JOIN known a ON a.key = p.key AND NOT p.empty GROUP BY 1 ORDER BY 1"
    ).fetchall()
    most = max((count for _, count in rows), default=1)
    bars = []
    for place, (paths, count) in enumerate(rows):
        y, length = 4 + 24 * place, 420 * count / most
        bars.append(
            f'<text x="0" y="{y + 13}">{paths}</text><rect x="28" y="{y}" width="{length:.1f}" height="17" '
            f'fill="#2f6fb0"/><text x="{34 + length:.1f}" y="{y + 13}">{count:,}</text>'
        )
    return f'<svg width="560" height="{8 + 24 * len(rows)}" role="img">{"".join(bars)}</svg>'


@dataclass
class _Branch:
    weight: int = 0
    below: dict[str, _Branch] = field(default_factory=dict)


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
    root = _Branch()
    for path, count in _paths(connection):
        branch = root
        branch.weight += count
        for text in canonical_path(path):
            branch = branch.below.setdefault(text, _Branch())
            branch.weight += count
    return _branches(root) or "<p>none</p>"


def _branches(branch: _Branch) -> str:
    html = ""
    for text, child in sorted(branch.below.items(), key=lambda item: (-item[1].weight, item[0])):
        line = f'{_text(text)} <span class="w">{child.weight:,}</span>'
        if child.below:
            html += f"<details><summary>{line}</summary>{_branches(child)}</details>"
        else:
            html += f'<div class="leaf">{line}</div>'
    return html


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
            f"{_text(action)} ({segment})",
            _text(text),
            "<br>".join(_text(" > ".join(path)) for path in paths or []) or f"<code>{_text(raw)}</code>",
        ]
        for action, segment, text, paths, raw in rows
    ]
    return _table(["action (segment)", "title", "intents"], lines)


def _dead(connection: Any) -> str:
    rows = connection.execute(
        f"""
        SELECT CASE WHEN p.empty THEN 'empty title' WHEN a.key IS NOT NULL THEN 'invalid answer'
                    ELSE coalesce(s.what, 'no answer') END, q.action, q.text, coalesce(a.raw, '')
        FROM keyed p JOIN prompts q USING (prompt_id) LEFT JOIN known a ON a.key = p.key AND NOT p.empty
        LEFT JOIN said s ON s.key = p.key WHERE p.empty OR a.valid IS NOT true ORDER BY p.prompt_id LIMIT {SHOWN}
        """
    ).fetchall()
    lines = [
        [_text(reason), _text(action), _text(text), f"<code>{_text(raw)}</code>"] for reason, action, text, raw in rows
    ]
    return _table(["reason", "action", "title", "raw answer"], lines)


def _merged(connection: Any) -> str:
    spellings: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path, _ in _paths(connection):
        for depth in range(1, len(path) + 1):
            spellings[tuple(map(folded_text, path[:depth]))].add(path[depth - 1])
    merged = sorted((key, found) for key, found in spellings.items() if len(found) > 1)[:SHOWN]
    return _table(["spellings"], [[" · ".join(_text(text) for text in sorted(found))] for _, found in merged])
