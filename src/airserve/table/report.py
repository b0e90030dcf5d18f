"""Show a table to a person: its intent tree, or one item's intents."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.markup import escape
from rich.tree import Tree

from airserve import contract
from airserve.artifact_schemas import SEGMENT_COLUMN
from airserve.artifacts import ATOMIC_INTENTS_FILE, INTENTS_FOLDER, VOCABULARY_FILE
from airserve.errors import DataError
from airserve.table.format import NO_PATH
from airserve.table.intents import IntentTable
from airserve.table.vocabulary import Node, Vocabulary, read_vocabulary


def vocabulary_tree(tables: Path, max_children: int = 50) -> tuple[Tree, dict[str, Any]]:
    """The whole vocabulary as a tree, the most frequent nodes first, and the table's figures.

    Args:
        tables: a `tables/` folder.
        max_children: nodes shown below one node; the rest is counted.

    Raises:
        UserError: if the tables are missing or damaged.
    """
    table = IntentTable.open(tables / INTENTS_FOLDER)
    vocabulary = read_vocabulary(tables / VOCABULARY_FILE)
    children: dict[int, list[Node]] = defaultdict(list)
    for node in vocabulary.nodes:
        children[node.parent_id].append(node)
    manifest = table.manifest
    n_items, n_kinds, n_paths = (manifest.counts[name] for name in ("n_items", "n_kinds", "n_paths"))
    title = f"[bold]table {manifest.table_version}[/] {n_items:,} items, {n_kinds:,} kinds"
    tree = Tree(f"{title}, {len(vocabulary):,} nodes, {n_paths:,} paths")
    _grow(tree, children, 0, max_children)
    covered = table.arrays.item_paths[contract.FIRST_ITEM_ROW :, 0] != NO_PATH
    figures = {
        "table_version": manifest.table_version,
        "items": n_items,
        "kinds": n_kinds,
        "nodes": len(vocabulary),
        "leaves": len(vocabulary.leaves()),
        "paths": n_paths,
        "item_coverage": round(float(covered.mean()), 4) if len(covered) else 0.0,
    }
    return tree, figures


def _grow(branch: Tree, children: dict[int, list[Node]], parent_id: int, max_children: int) -> None:
    ordered = sorted(children[parent_id], key=lambda node: (-node.count, node.node_id))
    for node in ordered[:max_children]:
        label = f"{escape(node.text)} [dim]{node.count:,} answers, node {node.node_id}[/]"
        _grow(branch.add(label), children, node.node_id, max_children)
    if len(ordered) > max_children:
        branch.add(f"[dim]and {len(ordered) - max_children} more[/]")


def chain_text(vocabulary: Vocabulary, nodes: list[int]) -> str:
    """Node ids, coarse to fine, as `a > b > c`."""
    return " > ".join(vocabulary.nodes[node - 1].text for node in nodes if node)


def item_tree(tables: Path, item_id: int) -> tuple[Tree, dict[str, Any]]:
    """An item's intents by action and segment, its defaults and its nearest nodes.

    Raises:
        UserError: if the tables are missing or damaged, or do not have the item.
    """
    table = IntentTable.open(tables / INTENTS_FOLDER)
    vocabulary = read_vocabulary(tables / VOCABULARY_FILE)
    place = int(table.items.searchsorted(item_id))
    if place >= len(table.items) or table.items[place] != item_id:
        span = f"{table.items[0]} to {table.items[-1]}" if len(table.items) else "no items"
        raise DataError(
            f"item {item_id}", expected=f"an item of the table ({span})", got="another", remedy="look it up"
        )
    row = place + contract.FIRST_ITEM_ROW
    kinds = pq.read_table(tables / ATOMIC_INTENTS_FILE)
    kinds = kinds.filter(pc.equal(kinds["item_id"], item_id)).to_pylist()
    tree = Tree(f"[bold]item {item_id}[/] row {row}")
    for kind in kinds:
        branch = tree.add(f"{kind['action']}, segment {kind[SEGMENT_COLUMN]}")
        for nodes in kind["path_nodes"]:
            branch.add(escape(chain_text(vocabulary, nodes)))
    defaults = [
        chain_text(vocabulary, table.arrays.paths[number].tolist())
        for number in table.arrays.item_paths[row]
        if number != NO_PATH
    ]
    branch = tree.add("default")
    for text in defaults:
        branch.add(escape(text))
    nearest = (table.node_vectors @ table.item_vectors[row])[1:].argsort()[::-1][:3] + 1
    branch = tree.add("nearest nodes by vector")
    for node_id in nearest.tolist():
        branch.add(escape(chain_text(vocabulary, [node.node_id for node in vocabulary.chain(node_id)])))
    return tree, {"item_id": item_id, "row": row, "kinds": len(kinds), "default_paths": defaults}
