"""Parts of a report for people: one HTML file with everything inside it, no script and nothing from the network.

What is shown may be hostile: all text is escaped, and a content policy in the page forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from airserve.files import write_text

LONGEST_TEXT = 160
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root{--ink:#1c2330;--dim:#5d6980;--line:#d5dbe5;--row:#f5f7fa;--paper:#fff;--fill:#2f6fb0;--bad:#b3402f}
@media (prefers-color-scheme:dark){:root{--ink:#e2e7ef;--dim:#9aa7bd;--line:#333c4a;--row:#1d232d;--paper:#14181f;
--fill:#5b9bd9;--bad:#e07a68}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.4rem 0 .6rem;border-bottom:1px solid var(--line)}
p.sub{margin:.2rem 0 1.2rem;color:var(--dim)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(7rem,1fr));gap:.6rem}
.tile{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .7rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.tile span{color:var(--dim);font-size:.85rem}
.tile.bad b{color:var(--bad)}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem;vertical-align:top}
tr:nth-child(even) td{background:var(--row)}td:first-child,th{min-width:3.5rem;overflow-wrap:normal}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}th{color:var(--dim);font-weight:600}
.bar{display:block;min-width:4rem;height:.8rem;margin-top:.3rem;background:var(--line);border-radius:.2rem}
.bar i{display:block;height:100%;background:var(--fill);border-radius:.2rem}td.w{width:35%}
.tree details,.tree .leaf{margin-left:1.1rem}.tree>details,.tree>.leaf{margin-left:0}.leaf{padding-left:1.05rem}
summary{cursor:pointer}.line{display:inline-flex;width:calc(100% - 1.4rem);gap:.6rem;align-items:baseline;
vertical-align:top}.leaf .line{width:100%}.line .bar{flex:0 0 22%;height:.55rem;margin-top:0;background:none}
.line span.t{flex:1}.line span.c{color:var(--dim);font-variant-numeric:tabular-nums}
code{font-size:.85em}
@media (max-width:40rem){body{margin:1rem auto}td.w{width:22%}.stack tr{display:block;padding:.4rem 0;
border-bottom:1px solid var(--line)}.stack tr:first-child{display:none}.stack td{display:block;padding:.05rem .2rem}
.stack tr:nth-child(even) td{background:none}
.stack td.n{text-align:left}.stack td.w{width:100%}
.stack td::before{content:attr(data-head) " ";color:var(--dim)}}
@media (max-width:40rem){body{font-size:14px}td,th{padding:.25rem .25rem}.bar{min-width:2.2rem}
.tiles{grid-template-columns:repeat(3,1fr)}}
"""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large figure."""

    figure: str
    about: str
    bad: bool = False
    """Shown in the colour of trouble."""


@dataclass
class Branch:
    """A node of a collapsible tree; siblings are shown heaviest first."""

    weight: int = 0
    below: dict[str, Branch] = field(default_factory=dict)


def shown(value: object) -> str:
    """Untrusted text as HTML: shortened, escaped, without control characters."""
    text = str(value)
    short = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in short))


def write_page(path: Path, title: str, about: str, tiles: Sequence[Tile], sections: Sequence[tuple[str, str]]) -> None:
    """Write a page, atomically.

    Args:
        path: the HTML file.
        title: its heading.
        about: the line below it.
        tiles: large figures.
        sections: headings and their HTML, already escaped.
    """
    grid = "".join(
        f'<div class="tile{" bad" * tile.bad}"><b>{shown(tile.figure)}</b><span>{shown(tile.about)}</span></div>'
        for tile in tiles
    )
    body = "".join(f"<section><h2>{shown(heading)}</h2>{html}</section>" for heading, html in sections)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{shown(title)}</title>'
        f'<style>{STYLE}</style><h1>{shown(title)}</h1><p class="sub">{shown(about)}</p>'
        f'<div class="tiles">{grid}</div>{body}</html>\n'
    )
    write_text(path, page)


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: frozenset[int] = frozenset(),
    wide: frozenset[int] = frozenset(),
    stack: bool = False,
) -> str:
    """A table of cells that are HTML already.

    Args:
        heads: column heads, plain text.
        rows: cells.
        numeric: places of columns that are set right.
        wide: places of columns of bars.
        stack: on a narrow screen show each row as a block.
    """
    if not rows:
        return "<p>None.</p>"
    kinds = ["n" if place in numeric else "w" if place in wide else "" for place in range(len(heads))]
    top = "".join(f'<th class="{kind}">{escape(head)}</th>' for kind, head in zip(kinds, heads, strict=True))
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}" data-head="{escape(head)}">{cell}</td>'
            for kind, head, cell in zip(kinds, heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="{"stack" if stack else ""}"><tr>{top}</tr>{lines}</table>'


def bar(share: float, label: str = "") -> str:
    """A horizontal bar; `label` is read to those who do not see it."""
    percent = 100 * min(max(share, 0.0), 1.0)
    said = escape(label or f"{percent:.1f} %")
    return f'<span class="bar" role="img" aria-label="{said}"><i style="width:{percent:.1f}%"></i></span>'


def tree(root: Branch) -> str:
    """A collapsible tree; bars are relative to the heaviest branch of all."""
    heaviest = max((branch.weight for branch in root.below.values()), default=1)
    return f'<div class="tree">{_branches(root, max(heaviest, 1))}</div>' if root.below else "<p>None.</p>"


def _branches(branch: Branch, heaviest: int) -> str:
    html = []
    for text, child in sorted(branch.below.items(), key=lambda item: (-item[1].weight, item[0])):
        line = (
            f'<span class="line"><span class="t">{shown(text)}</span><span class="c">{child.weight:,}</span>'
            f"{bar(child.weight / heaviest)}</span>"
        )
        if child.below:
            html.append(f"<details><summary>{line}</summary>{_branches(child, heaviest)}</details>")
        else:
            html.append(f'<div class="leaf">{line}</div>')
    return "".join(html)
