"""Print a table's intent tree, or the intents of one item.

python offline/inspect_table.py artifacts/demo/tables
python offline/inspect_table.py artifacts/demo/tables --item 17
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cyclopts import App
from rich.console import Console

from airserve.errors import UserError
from airserve.table.report import item_tree, vocabulary_tree

app = App(help=__doc__)


@app.default
def main(tables: Path, *, item: int | None = None, max_children: int = 50) -> None:
    """Print the tree on stderr and the figures on stdout.

    Args:
        tables: a tables folder.
        item: show this item's intents instead of the whole vocabulary.
        max_children: nodes shown below one node.
    """
    tree, figures = vocabulary_tree(tables, max_children) if item is None else item_tree(tables, item)
    Console(stderr=True).print(tree)
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
