"""What depends on one item or one node alone, computed when a table is made: its served rows.

Two small networks out of a trained ranker, with the ranker's own weights. They know no catalogue: learned vectors come
in as inputs, *none* where there are none, so a row of a new item or a new node is made like any other.

Shapes: N items or nodes, E vector size, H width, X = E + H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from airserve.model.ranker import Ranker


class ItemEncoder(nn.Module):
    """An item's served row: its token, and its target (retrieval vector and query)."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.tokens, self.queries = ranker.base.items, ranker.queries

    def forward(self, ids_NH: Tensor, vectors_NE: Tensor, main_NH: Tensor, other_NH: Tensor) -> tuple[Tensor, Tensor]:
        """Encode items.

        Args:
            ids_NH: float32, learned id vectors, or *none*.
            vectors_NE: float32, of title and intents; unit rows, zeros where nothing is known.
            main_NH: float32, mean learned vector of the nodes of the item's first path.
            other_NH: float32, of its other paths.

        Returns:
            tokens float32 [N, H], targets float32 [N, X].
        """
        queries_NH = self.queries.encode(main_NH, other_NH, vectors_NE)
        tokens_NH: Tensor = self.tokens.encode(ids_NH, vectors_NE)
        return tokens_NH, torch.cat([vectors_NE, queries_NH], dim=-1)


class NodeEncoder(nn.Module):
    """A node's served row: its retrieval vector, times its level's weight, and its token."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.tokens, self.levels = ranker.node_tokens, ranker.levels

    def forward(self, ids_NH: Tensor, vectors_NE: Tensor, levels_N: Tensor) -> Tensor:
        """Encode nodes.

        Args:
            ids_NH: float32, learned vectors, or *none*.
            vectors_NE: float32, of the text; unit rows.
            levels_N: int64, 0 for a root.

        Returns:
            float32 [N, X].
        """
        weights_N1 = self.levels()[levels_N].unsqueeze(-1)
        return torch.cat([vectors_NE * weights_N1, self.tokens.encode(ids_NH, vectors_NE, levels_N)], dim=-1)
