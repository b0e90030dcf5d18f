"""The ranker as it is trained: catalogue rows in, scores and the intents behind them out.

score(v) = base_scale * h.t_v + intent_scale * f(z_v, s_v),
f(z, s) = MLP([z, z * q_v, s]), without biases, so that no intent scores nothing,

where h is the user's vector of the sequence tower, t_v the candidate's token, q_v its query (of its vector and of the
nodes of its own intents), z_v its composed intents and s_v the scores of its kept chains. The query enters only where
it meets the user's intents: else this part would learn popularity, which the base knows better.

Served is the same computation, cut where something depends on one item or one node alone (`encoders.py`, run when a
table is made) and where it is sparse (`airserve/table/lookup.py`); what is left is dense (`request.py`, the engine).

Shapes: B requests, L behaviours, P paths, U nodes, R chains, D levels, C candidates, K chains per candidate,
M evidence, H width, E vector size, N catalogue rows, V vocabulary nodes.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve import contract
from airserve.errors import UserError
from airserve.model.composition import Composition
from airserve.model.gather import every_row, gather_rows
from airserve.model.retrieval import LevelWeights, Retrieved, chain_bias, retrieve, select_evidence
from airserve.model.sequence import IdVectors, SequenceModel, SequenceSettings
from airserve.model.tree import TreeWeights, chain_support, leaves_alone


@dataclass(frozen=True, kw_only=True)
class RankerSettings:
    """Sizes of the ranker."""

    sequence: SequenceSettings = field(default_factory=SequenceSettings)
    """The sequence tower; its width is also the intents'."""
    heads: int = 2
    """Heads of the composition."""
    hidden: int = 64
    """Hidden units of the intent head."""
    dropout: float = 0.0
    """In the intent head, during training."""
    use_intents: bool = True
    """False: the base score alone, an ablation."""
    use_tree: bool = True
    """False: the behaviours' paths stay apart, an ablation. A leaf weighs what its strongest behaviour weighs,
    a(action) * exp(-lambda * age): neither N(u) nor sums over behaviours, and no coarser level is scored or composed.
    """
    use_target: bool = True
    """False: no target-aware retrieval, an ablation. Chains are kept and scored by their weight alone, the same for
    every candidate; the composition still asks with the candidate."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden < 1:
            raise UserError(
                "RankerSettings",
                expected="heads and hidden >= 1",
                got=f"heads {self.heads}, hidden {self.hidden}",
                remedy="change the settings",
            )


def of_distinct(rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute(rows)`, row by row, with the work done once per distinct row; only used in training."""
    distinct, places = torch.unique(rows, return_inverse=True)
    return F.embedding(places, compute(distinct))


class NodeTokens(nn.Module):
    """Vocabulary node -> token: a projection of its text vector by level, with a bias, and a learned vector."""

    def __init__(self, vectors_VE: Tensor, levels_V: Tensor, width: int, drop_share: float) -> None:
        super().__init__()
        self.register_buffer("vectors_VE", vectors_VE, persistent=False)
        self.register_buffer("levels_V", levels_V, persistent=False)
        self.ids = node_ids(len(vectors_VE), width, drop_share)
        self.project_DEH = nn.Parameter(torch.randn(contract.MAX_DEPTH, vectors_VE.shape[1], width) * 0.05)
        self.bias_DH = nn.Parameter(torch.zeros(contract.MAX_DEPTH, width))

    def forward(self, rows: Tensor) -> Tensor:
        """Tokens of int32 rows [...]; float32 [..., H], zeros for node 0."""

        def compute(rows_N: Tensor) -> Tensor:
            levels_N = cast(Tensor, self.levels_V)[rows_N.long()]
            return self.encode(self.ids(rows_N), F.embedding(rows_N, cast(Tensor, self.vectors_VE)), levels_N)

        real = (rows != contract.PAD_NODE).unsqueeze(-1)
        return of_distinct(rows, compute) * real.float()

    def encode(self, ids_NH: Tensor, vectors_NE: Tensor, levels_N: Tensor) -> Tensor:
        """Tokens float32 [N, H] of learned vectors, text vectors and levels."""
        tokens_NH = ids_NH + self.bias_DH[levels_N.long()]
        for level in range(contract.MAX_DEPTH):
            at_level_N1 = (levels_N == level).float().unsqueeze(-1)
            tokens_NH = tokens_NH + torch.matmul(vectors_NE * at_level_N1, self.project_DEH[level])
        return tokens_NH


def node_ids(count: int, width: int, drop_share: float) -> IdVectors:
    """Learned vectors of nodes, all nothing at the start; *none* for node 0 and for nodes of later vocabularies."""
    ids = IdVectors(count, width, std=0.0, drop_share=drop_share)
    ids.set_known(torch.arange(count) != contract.PAD_NODE)
    return ids


class Queries(nn.Module):
    """Candidate row -> its query: of its frozen vector, and of the nodes of its own intents, the first path apart."""

    def __init__(
        self, item_vectors_NE: Tensor, item_nodes_NX: Tensor, n_nodes: int, width: int, drop_share: float
    ) -> None:
        super().__init__()
        self.register_buffer("vectors_NE", item_vectors_NE, persistent=False)
        self.register_buffer("item_nodes_NX", item_nodes_NX, persistent=False)
        self.main_nodes, self.other_nodes = (node_ids(n_nodes, width, drop_share) for _ in range(2))
        self.project = nn.Linear(item_vectors_NE.shape[1], width, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Queries of int32 rows [...]; float32 [..., H]."""
        return of_distinct(rows, self._queries)

    def _queries(self, rows_N: Tensor) -> Tensor:
        nodes_NX = F.embedding(rows_N, cast(Tensor, self.item_nodes_NX))
        main_NH = mean_of_nodes(self.main_nodes, nodes_NX[:, : contract.MAX_DEPTH])
        other_NH = mean_of_nodes(self.other_nodes, nodes_NX[:, contract.MAX_DEPTH :])
        return self.encode(main_NH, other_NH, F.embedding(rows_N, cast(Tensor, self.vectors_NE)))

    def encode(self, main_NH: Tensor, other_NH: Tensor, vectors_NE: Tensor) -> Tensor:
        """Queries float32 [N, H] of the mean vectors of an item's own nodes and its frozen vector."""
        queries_NH: Tensor = main_NH + other_NH + self.project(vectors_NE)
        return queries_NH

    def table(self) -> Tensor:
        """Queries of all rows, float32 [N, H]."""
        return self._queries(every_row(cast(Tensor, self.item_nodes_NX)))


def mean_of_nodes(ids: IdVectors, nodes_NX: Tensor) -> Tensor:
    """Mean learned vector of the nodes that are there, float32 [N, H]; zeros where none."""
    real_NX1 = (nodes_NX != contract.PAD_NODE).float().unsqueeze(-1)
    mean_NH: Tensor = (ids(nodes_NX) * real_NX1).sum(1) / real_NX1.sum(1).clamp(min=1.0)
    return mean_NH


class UserTree(NamedTuple):
    """What is computed once per request, before any candidate."""

    tokens_BRH: Tensor
    vectors_BRE: Tensor
    real_BR: Tensor
    evidence_BRM: Tensor


class Ranker(nn.Module):
    """Atomic Intent Reasoning's online network.

    Args:
        item_vectors_NE: float32, unit rows or zeros; frozen.
        node_vectors_VE: float32, unit rows, row 0 zeros; frozen.
        node_levels_V: int64, level of each node (0 for a root).
        settings: sizes.
        item_nodes_NX: int32, the nodes of each item's own intents, a path after the other, `PAD_NODE` where none; None
            for no nodes.
        base_vectors_NE: what the sequence tower sees of an item; None for `item_vectors_NE`. Title vectors keep the
            intents out of the base.

    Source: AIR (arXiv 2606.10357), online part; the base score and all sizes are ours.
    """

    def __init__(
        self,
        item_vectors_NE: Tensor,
        node_vectors_VE: Tensor,
        node_levels_V: Tensor,
        settings: RankerSettings,
        item_nodes_NX: Tensor | None = None,
        base_vectors_NE: Tensor | None = None,
    ) -> None:
        super().__init__()
        width, drop_share = settings.sequence.width, settings.sequence.id_dropout
        self.settings = settings
        self.register_buffer("item_vectors_NE", item_vectors_NE, persistent=False)
        self.register_buffer("node_vectors_VE", node_vectors_VE, persistent=False)
        self.base = SequenceModel(item_vectors_NE if base_vectors_NE is None else base_vectors_NE, settings.sequence)
        self.tree = TreeWeights(merged=settings.use_tree)
        self.levels = LevelWeights()
        self.node_tokens = NodeTokens(node_vectors_VE, node_levels_V, width, drop_share)
        self.evidence = nn.Linear(contract.MAX_EVIDENCE * width, width, bias=False)
        self.composition = Composition(width, settings.heads)
        if item_nodes_NX is None:
            item_nodes_NX = torch.zeros(len(item_vectors_NE), contract.MAX_DEPTH + 1, dtype=torch.int32)
        self.queries = Queries(item_vectors_NE, item_nodes_NX, len(node_vectors_VE), width, drop_share)
        self.head_in = nn.Linear(2 * width + contract.CHAINS_PER_CANDIDATE, settings.hidden, bias=False)
        self.head_dropout = nn.Dropout(settings.dropout)
        self.head_out = nn.Linear(settings.hidden, 1, bias=False)
        self.base_scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("intent_scale", torch.ones(()))

    def redraw(self, rng: np.random.Generator) -> None:
        """Draw anew which items and nodes are seen without their learned vectors; once a training step."""
        for module in self.modules():
            if isinstance(module, IdVectors):
                module.redraw(rng)

    def user_tree(
        self,
        behaviour_rows_BL: Tensor,
        actions_BL: Tensor,
        ages_s_BL: Tensor,
        behaviour_chains_BLP: Tensor,
        tree_nodes_BU: Tensor,
        chain_slots_BRD: Tensor,
    ) -> UserTree:
        """Weigh the tree, and make a token, a retrieval vector and the evidence of each of its chains.

        Args:
            behaviour_rows_BL: int32 catalogue rows, 0 padding.
            actions_BL: int32 action numbers.
            ages_s_BL: float32, seconds.
            behaviour_chains_BLP: int32, indices into the tree's chains, `PAD_CHAIN` where none.
            tree_nodes_BU: int32, distinct node ids; slot 0 holds node 0.
            chain_slots_BRD: int32, each chain as slots of the nodes, coarse to fine, `PAD_SLOT` where none; R >= K.
        """
        n_chains, n_nodes = chain_slots_BRD.shape[1], tree_nodes_BU.shape[1]
        node_vectors_VE = cast(Tensor, self.node_vectors_VE)
        if not self.settings.use_tree:
            chain_slots_BRD = leaves_alone(chain_slots_BRD)
        exists_BRD = chain_slots_BRD != contract.PAD_SLOT
        freshness_BL = self.tree.freshness(ages_s_BL)
        support_BLR = chain_support(behaviour_chains_BLP, n_chains)
        weights_BU = self.tree(actions_BL, freshness_BL, support_BLR, chain_slots_BRD, n_nodes)
        log_weights_BRD = gather_rows(torch.log1p(weights_BU).unsqueeze(-1), chain_slots_BRD)[..., 0]
        level_weights_BRD = self.levels.over_norm(log_weights_BRD, exists_BRD)
        nodes_BRD = gather_rows(tree_nodes_BU.unsqueeze(-1), chain_slots_BRD)[..., 0] * exists_BRD.int()
        vectors_BRDE = self.compared(F.embedding(nodes_BRD, node_vectors_VE))
        leaves_BR = nodes_BRD[:, :, 0]
        for level in range(1, contract.MAX_DEPTH):
            leaves_BR = torch.where(exists_BRD[:, :, level], nodes_BRD[:, :, level], leaves_BR)
        evidence_BRM = select_evidence(
            F.embedding(behaviour_rows_BL, cast(Tensor, self.item_vectors_NE)),
            F.embedding(leaves_BR, node_vectors_VE),
            freshness_BL,
            support_BLR,
        )
        vectors_BRE = ((level_weights_BRD * self.levels()).unsqueeze(-1) * vectors_BRDE).sum(2)
        tokens_BRH = (level_weights_BRD.unsqueeze(-1) * self.node_tokens(nodes_BRD)).sum(2)
        tokens_BRH = self.composition.norm(tokens_BRH + self._evidence_tokens(behaviour_rows_BL, evidence_BRM))
        return UserTree(tokens_BRH, vectors_BRE, exists_BRD[:, :, 0], evidence_BRM)

    def _evidence_tokens(self, behaviour_rows_BL: Tensor, evidence_BRM: Tensor) -> Tensor:
        shown_BRM = evidence_BRM != contract.NO_EVIDENCE
        rows_BRM = gather_rows(behaviour_rows_BL.unsqueeze(-1), evidence_BRM * shown_BRM.int())[..., 0]
        tokens_BRMH = of_distinct(rows_BRM, self.base.items) * shown_BRM.unsqueeze(-1).float()
        projected_BRH: Tensor = self.evidence(tokens_BRMH.flatten(2))
        return projected_BRH

    def compared(self, vectors: Tensor) -> Tensor:
        """What retrieval takes the cosine of; without target-aware retrieval the same unit vector for everything."""
        if self.settings.use_target:
            return vectors
        return torch.full_like(vectors, 1.0 / math.sqrt(vectors.shape[-1]))

    def intent_score(
        self, tree: UserTree, candidate_rows_BC: Tensor, queries_NH: Tensor | None = None
    ) -> tuple[Tensor, Retrieved]:
        """Score candidates by the user's intents; float32 [B, C], and what was retrieved.

        Args:
            tree: of `user_tree`.
            candidate_rows_BC: int32.
            queries_NH: of `Queries.table`, where they were made before.
        """
        candidate_vectors_BCE = self.compared(F.embedding(candidate_rows_BC, cast(Tensor, self.item_vectors_NE)))
        queries_BCH = (
            self.queries(candidate_rows_BC) if queries_NH is None else F.embedding(candidate_rows_BC, queries_NH)
        )
        found = retrieve(candidate_vectors_BCE, tree.vectors_BRE, chain_bias(tree.real_BR))
        return self.head(queries_BCH, tree.tokens_BRH, found), found

    def head(self, queries_BCH: Tensor, tokens_BRH: Tensor, found: Retrieved) -> Tensor:
        """f(z, s) of candidates, float32 [B, C]; 0 where a request has no chain."""
        composed_BCH = self.composition(queries_BCH, tokens_BRH, found.scores_BCR, found.kept_BCR)
        seen_BCX = torch.cat([composed_BCH, composed_BCH * queries_BCH, found.weights_BCK], dim=-1)
        scores_BC: Tensor = self.head_out(self.head_dropout(F.relu(self.head_in(seen_BCX))))[..., 0]
        return scores_BC

    def forward(
        self,
        behaviour_rows_BL: Tensor,
        actions_BL: Tensor,
        ages_s_BL: Tensor,
        behaviour_chains_BLP: Tensor,
        tree_nodes_BU: Tensor,
        chain_slots_BRD: Tensor,
        candidate_rows_BC: Tensor,
    ) -> tuple[Tensor, Retrieved, UserTree]:
        """Rank candidates; see `user_tree` for the inputs. Without priors, and padding is scored too.

        Returns:
            scores float32 [B, C], what was retrieved, and the tree.
        """
        user_BH = self.base.user_vector(behaviour_rows_BL, actions_BL, ages_s_BL)
        scores_BC = self.base.score(user_BH, candidate_rows_BC) * self.base_scale
        tree = self.user_tree(
            behaviour_rows_BL, actions_BL, ages_s_BL, behaviour_chains_BLP, tree_nodes_BU, chain_slots_BRD
        )
        intent_BC, found = self.intent_score(tree, candidate_rows_BC)
        if self.settings.use_intents:
            scores_BC = scores_BC + intent_BC * cast(Tensor, self.intent_scale)
        return scores_BC, found, tree
