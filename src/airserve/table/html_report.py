"""The report of a table build, for people: the vocabulary as a tree, and which nodes were merged into which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airserve import contract
from airserve.html_page import Branch, Tile, bar, shown, table, tree, write_page
from airserve.table.merges import Merge
from airserve.table.vocabulary import Vocabulary

VERSION = contract.TABLE_VERSION.name
TREE_NODES = 5000
"""Nodes of the tree, the most frequent; a node's parents are at least as frequent."""
SHOWN = 500
"""Merges listed, the least similar first: those are the ones to look at."""


def write_table_report(
    path: Path, vocabulary: Vocabulary, merged: Sequence[Merge], figures: Mapping[str, Any], threshold: float
) -> None:
    """Write the report of a build.

    Args:
        path: the HTML file.
        vocabulary: all nodes.
        merged: near-duplicates that went into others, also those of earlier runs.
        figures: of `build_tables`.
        threshold: cosine from which siblings are one node.
    """
    tiles = [
        Tile(figure=f"{figures['nodes']:,}", about="nodes"),
        Tile(figure=f"{figures['leaves']:,}", about="leaves"),
        Tile(figure=f"{figures['paths']:,}", about="paths"),
        Tile(figure=f"{figures['kinds']:,}", about="event kinds"),
        Tile(figure=f"{figures['items']:,}", about="items"),
        Tile(figure=f"{figures['item_coverage']:.1%}", about="of the items with intents"),
        Tile(figure=f"{len(merged):,}", about="nodes merged into others"),
    ]
    sections = [
        ("Nodes by level", _levels(vocabulary)),
        (f"Merged near-duplicates ({len(merged):,})", _merges(merged, threshold)),
        ("Vocabulary by answers", tree(_branches(vocabulary))),
    ]
    write_page(path, "Intent vocabulary", f"table version {figures[VERSION]}", tiles, sections)


def _levels(vocabulary: Vocabulary) -> str:
    counts = Counter(node.level for node in vocabulary.nodes)
    most = max(counts.values(), default=1)
    rows = [[str(level + 1), f"{count:,}", bar(count / most, f"{count:,}")] for level, count in sorted(counts.items())]
    return table(["level", "nodes", ""], rows, numeric=frozenset({1}), wide=frozenset({2}))


def _merges(merged: Sequence[Merge], threshold: float) -> str:
    rows = [
        [
            shown(" > ".join(merge.path)),
            shown(" > ".join(merge.into)),
            f"{merge.similarity:.3f}",
            bar((merge.similarity - threshold) / max(1 - threshold, 1e-6), f"{merge.similarity:.3f}"),
        ]
        for merge in sorted(merged, key=lambda merge: (merge.similarity, merge.path))[:SHOWN]
    ]
    note = (
        f"<p>Siblings with a cosine of at least {threshold:g}; the bar runs from there to 1. To keep two of them "
        "apart, copy their line of <code>merges.json</code> into a file for <code>--rejected-merges</code>. Texts are "
        "folded: lower case, no plural endings.</p>"
    )
    heads = ["node", "goes into", "cosine", ""]
    return note * bool(rows) + table(heads, rows, numeric=frozenset({2}), wide=frozenset({3}), stack=True)


def _branches(vocabulary: Vocabulary) -> Branch:
    kept = sorted(vocabulary.nodes, key=lambda node: (-node.count, node.node_id))[:TREE_NODES]
    branches: dict[int, Branch] = {0: Branch()}
    for node in sorted(kept, key=lambda node: node.node_id):
        above = branches.get(node.parent_id)
        if above is not None:
            branches[node.node_id] = Branch(weight=node.count)
            above.below[node.text] = branches[node.node_id]
    return branches[0]
