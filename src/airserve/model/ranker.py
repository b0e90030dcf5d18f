"""The ranker: ids in, scores and the intents behind them out.

score(v) = base_scale * h.t_v + intent_scale * (f(z_v, s_v) - f(0, 0)),
f(z, s) = MLP([z, q_v, z * q_v, s]), s_v = (best chain score, sum of kept chain scores),

where h is the user's vector of the sequence tower, t_v the candidate's token, q_v its query (of its vector and of the
nodes of its own intents) and z_v its composed intents. What a candidate scores without any intent of the user is taken
off: else this part learns popularity, which the base knows better. All that depends on an item or a node alone is
folded into tables before export, so serving gathers rows and multiplies small matrices (about 10 M multiply-adds at
L=128, C=128, R=64, U=128).

Inputs and outputs are those of `contract.RANKER_INPUTS` and `contract.RANKER_OUTPUTS`, in that order.

Shapes: B requests, L behaviours, P paths, U nodes, R chains, D levels, C candidates, K chains per candidate,
M evidence, H width, E vector size, N catalogue rows, V vocabulary nodes.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve import contract
from airserve.errors import UserError
from airserve.model.composition import Composition
from airserve.model.gather import every_row, gather_rows
from airserve.model.retrieval import MASKED_KEY, Retrieved, TargetAwareRetrieval, select_evidence
from airserve.model.sequence import FoldedTokens, SequenceModel, SequenceSettings
from airserve.model.tree import TreeWeights, chain_support, leaves_alone


@dataclass(frozen=True, kw_only=True)
class RankerSettings:
    """Sizes of the ranker."""

    sequence: SequenceSettings = field(default_factory=SequenceSettings)
    """The sequence tower; its width is also the intents'."""
    heads: int = 2
    """Heads of the composition; divides the width."""
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
        if self.heads < 1 or self.hidden < 1 or self.sequence.width % self.heads:
            raise UserError(
                "RankerSettings",
                expected="heads and hidden >= 1, heads dividing the width",
                got=f"heads {self.heads}, hidden {self.hidden}, width {self.sequence.width}",
                remedy="change the settings",
            )


def of_distinct(rows: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute(rows)`, row by row, with the work done once per distinct row; only used in training."""
    distinct, places = torch.unique(rows, return_inverse=True)
    return F.embedding(places, compute(distinct))


def zero_embedding(rows: int, width: int) -> nn.Embedding:
    """Learned vectors that start as nothing, so that what is never seen in training stays nothing."""
    embedding = nn.Embedding(rows, width)
    nn.init.zeros_(embedding.weight)
    return embedding


def mean_of_nodes(embedding: nn.Embedding, nodes_NX: Tensor) -> Tensor:
    """Mean embedding of the nodes that are there, float32 [N, H]; zeros where none."""
    real_NX1 = (nodes_NX != contract.PAD_NODE).float().unsqueeze(-1)
    mean_NH: Tensor = (embedding(nodes_NX) * real_NX1).sum(1) / real_NX1.sum(1).clamp(min=1.0)
    return mean_NH


class VectorTokens(nn.Module):
    """Row of a frozen table -> learned projection of its vector; float32 [..., H]."""

    def __init__(self, vectors_NE: Tensor, width: int, levels_N: Tensor | None = None, *, ids: bool = False) -> None:
        super().__init__()
        self.ids = zero_embedding(len(vectors_NE), width) if ids else None
        self.register_buffer("vectors_NE", vectors_NE, persistent=False)
        self.register_buffer("levels_N", levels_N, persistent=False)
        n_levels = contract.MAX_DEPTH if levels_N is not None else 1
        self.project = nn.ModuleList(nn.Linear(vectors_NE.shape[1], width, bias=False) for _ in range(n_levels))

    def forward(self, rows: Tensor) -> Tensor:
        """Tokens of int32 rows [...]; each through its own level's projection."""
        return of_distinct(rows, self._tokens)

    def _tokens(self, rows_N: Tensor) -> Tensor:
        vectors_NE = F.embedding(rows_N, cast(Tensor, self.vectors_NE))
        if self.levels_N is None:
            tokens_NH: Tensor = self.project[0](vectors_NE)
            return tokens_NH
        levels_N = cast(Tensor, self.levels_N)[rows_N.long()]
        parts = [(levels_N == level).unsqueeze(-1) * project(vectors_NE) for level, project in enumerate(self.project)]
        tokens_NH = torch.stack(parts).sum(0)
        if self.ids is not None:
            tokens_NH = tokens_NH + self.ids(rows_N)
        return tokens_NH

    def table(self) -> Tensor:
        """All tokens, float32 [N, H]."""
        return self._tokens(every_row(cast(Tensor, self.vectors_NE)))


class Queries(nn.Module):
    """Candidate row -> its query, the query projected for the attention, and its part of the head's hidden layer.

    Side by side in one row of 2 H + hidden numbers, so that serving gathers once.
    """

    def __init__(
        self, item_vectors_NE: Tensor, item_nodes_NX: Tensor, n_nodes: int, width: int, hidden: int, query_scale: float
    ) -> None:
        super().__init__()
        self.query_scale = query_scale
        self.register_buffer("item_nodes_NX", item_nodes_NX, persistent=False)
        self.main_nodes, self.other_nodes = zero_embedding(n_nodes, width), zero_embedding(n_nodes, width)
        self.tokens = VectorTokens(item_vectors_NE, width)
        self.attention = nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, hidden)

    def _query(self, rows_N: Tensor) -> Tensor:
        nodes_NX = F.embedding(rows_N, cast(Tensor, self.item_nodes_NX))
        main_NH = mean_of_nodes(self.main_nodes, nodes_NX[:, : contract.MAX_DEPTH])
        other_NH = mean_of_nodes(self.other_nodes, nodes_NX[:, contract.MAX_DEPTH :])
        return main_NH + other_NH + self.tokens._tokens(rows_N)

    def _parts(self, query: Tensor) -> Tensor:
        return torch.cat([query, self.attention(query) * self.query_scale, self.hidden(query)], dim=-1)

    def forward(self, rows: Tensor) -> Tensor:
        """Of int32 rows [...]; float32 [..., 2 H + hidden]."""
        return of_distinct(rows, lambda distinct: self._parts(self._query(distinct)))

    def table(self) -> Tensor:
        """Of all rows, float32 [N, 2 H + hidden]."""
        return self._parts(self._query(every_row(cast(Tensor, self.item_nodes_NX))))


class UserTree(NamedTuple):
    """What is computed once per request, before any candidate."""

    tokens_BRH: Tensor
    vectors_BRE: Tensor
    real_BR: Tensor
    chain_nodes_BRD: Tensor
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
        width = settings.sequence.width
        self.settings = settings
        self.register_buffer("item_vectors_NE", item_vectors_NE, persistent=False)
        self.register_buffer("node_vectors_VE", node_vectors_VE, persistent=False)
        self.base = SequenceModel(item_vectors_NE if base_vectors_NE is None else base_vectors_NE, settings.sequence)
        self.tree = TreeWeights(merged=settings.use_tree)
        self.retrieval = TargetAwareRetrieval()
        self.node_tokens: nn.Module = VectorTokens(node_vectors_VE, width, node_levels_V, ids=True)
        self.evidence_tokens: nn.Module = VectorTokens(item_vectors_NE, width)
        self.composition = Composition(width, settings.heads)
        if item_nodes_NX is None:
            item_nodes_NX = torch.zeros(len(item_vectors_NE), contract.MAX_DEPTH + 1, dtype=torch.int32)
        self.queries: nn.Module = Queries(
            item_vectors_NE, item_nodes_NX, len(node_vectors_VE), width, settings.hidden, self.composition.query_scale
        )
        # The head's first layer, one matrix per input, so that none of the inputs need be joined.
        self.head_composed = nn.Linear(width, settings.hidden, bias=False)
        self.head_product = nn.Linear(width, settings.hidden, bias=False)
        self.head_scores = nn.Linear(2, settings.hidden, bias=False)
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(settings.hidden, 1))
        self.base_scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("intent_scale", torch.ones(()))

    def user_tree(
        self,
        behaviour_rows_BL: Tensor,
        actions_BL: Tensor,
        ages_s_BL: Tensor,
        behaviour_chains_BLP: Tensor,
        tree_nodes_BU: Tensor,
        chain_slots_BRD: Tensor,
    ) -> UserTree:
        """Weigh the tree, and make a token, a retrieval vector and the evidence of each of its chains."""
        n_chains, n_nodes = chain_slots_BRD.shape[1], tree_nodes_BU.shape[1]
        node_vectors_VE = cast(Tensor, self.node_vectors_VE)
        if not self.settings.use_tree:
            chain_slots_BRD = leaves_alone(chain_slots_BRD)
        exists_BRD = chain_slots_BRD != contract.PAD_SLOT
        freshness_BL = self.tree.freshness(ages_s_BL)
        support_BLR = chain_support(behaviour_chains_BLP, n_chains)
        weights_BU = self.tree(actions_BL, freshness_BL, support_BLR, chain_slots_BRD, n_nodes)
        log_weights_BRD = gather_rows(torch.log1p(weights_BU).unsqueeze(-1), chain_slots_BRD)[..., 0]
        nodes_BRD = gather_rows(tree_nodes_BU.unsqueeze(-1), chain_slots_BRD)[..., 0] * exists_BRD.int()
        vectors_BRDE = self.compared(F.embedding(nodes_BRD, node_vectors_VE))
        leaves_BR = nodes_BRD[:, :, 0]
        for level in range(1, contract.MAX_DEPTH):
            leaves_BR = torch.where(exists_BRD[:, :, level], nodes_BRD[:, :, level], leaves_BR)
        leaf_vectors_BRE = F.embedding(leaves_BR, node_vectors_VE)
        behaviour_vectors_BLE = F.embedding(behaviour_rows_BL, cast(Tensor, self.item_vectors_NE))
        evidence_BRM = select_evidence(behaviour_vectors_BLE, leaf_vectors_BRE, freshness_BL, support_BLR)
        shown_BRM = (evidence_BRM != contract.NO_EVIDENCE).int()
        evidence_rows_BRM = gather_rows(behaviour_rows_BL.unsqueeze(-1), evidence_BRM * shown_BRM)[..., 0]
        shown_BRM1 = shown_BRM.float().unsqueeze(-1)
        evidence_BRH = (self.evidence_tokens(evidence_rows_BRM) * shown_BRM1).sum(2) / shown_BRM1.sum(2).clamp(min=1.0)
        tokens_BRH = self.composition.chain_tokens(self.node_tokens(nodes_BRD).sum(2), evidence_BRH, log_weights_BRD)
        chain_vectors_BRE = self.retrieval.chain_vectors(log_weights_BRD, exists_BRD, vectors_BRDE)
        return UserTree(tokens_BRH, chain_vectors_BRE, exists_BRD[:, :, 0], nodes_BRD, evidence_BRM)

    def compared(self, vectors: Tensor) -> Tensor:
        """What retrieval takes the cosine of; without target-aware retrieval the same unit vector for everything."""
        if self.settings.use_target:
            return vectors
        return torch.full_like(vectors, 1.0 / math.sqrt(vectors.shape[-1]))

    def intent_score(self, tree: UserTree, candidate_rows_BC: Tensor) -> tuple[Tensor, Retrieved]:
        """Score candidates by the user's intents; float32 [B, C], and what was retrieved."""
        candidate_vectors_BCE = self.compared(F.embedding(candidate_rows_BC, cast(Tensor, self.item_vectors_NE)))
        found = self.retrieval(candidate_vectors_BCE, tree.vectors_BRE, tree.real_BR)
        width = self.settings.sequence.width
        queries = self.queries(candidate_rows_BC)
        query_BCH, asked_BCH, hidden = queries[..., :width], queries[..., width : 2 * width], queries[..., 2 * width :]
        composed_BCH = self.composition(asked_BCH, tree.tokens_BRH, found.scores_BCR, found.kept_BCR)
        kept_BCR = found.kept_BCR.float()
        kept_scores_BCR = found.scores_BCR * kept_BCR
        best_BC1 = (kept_scores_BCR + (kept_BCR - 1.0) * -MASKED_KEY).amax(-1, keepdim=True)
        best_BC1 = best_BC1 * kept_BCR.amax(-1, keepdim=True)
        scores_BC2 = torch.cat([best_BC1, kept_scores_BCR.sum(-1, keepdim=True)], dim=-1)
        nothing = self.head(hidden)[..., 0]
        hidden = hidden + self.head_composed(composed_BCH) + self.head_product(composed_BCH * query_BCH)
        return self.head(hidden + self.head_scores(scores_BC2))[..., 0] - nothing, found

    def forward(
        self,
        behaviour_rows: Tensor,
        behaviour_actions: Tensor,
        behaviour_ages_s: Tensor,
        behaviour_chains: Tensor,
        tree_nodes: Tensor,
        chain_slots: Tensor,
        candidate_rows: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rank candidates; inputs and outputs as in the contract.

        Returns:
            scores float32 [B, C] (-inf where padded), chain_nodes int32 [B, C, K, D], chain_weights float32
            [B, C, K], evidence int32 [B, C, K, M].
        """
        user_BH = self.base.user_vector(behaviour_rows, behaviour_actions, behaviour_ages_s)
        scores_BC = self.base.score(user_BH, candidate_rows) * self.base_scale
        tree = self.user_tree(
            behaviour_rows, behaviour_actions, behaviour_ages_s, behaviour_chains, tree_nodes, chain_slots
        )
        intent_BC, found = self.intent_score(tree, candidate_rows)
        if self.settings.use_intents:
            scores_BC = scores_BC + intent_BC * cast(Tensor, self.intent_scale)
        padded = torch.full((1, 1), float("-inf"), device=scores_BC.device)
        scores_BC = torch.where(candidate_rows != contract.PAD_ROW, scores_BC, padded)
        shown_BCK1 = found.found_BCK.unsqueeze(-1).int()
        nodes_BCKD = gather_rows(tree.chain_nodes_BRD, found.index_BCK) * shown_BCK1
        evidence_BCKM = gather_rows(tree.evidence_BRM, found.index_BCK) * shown_BCK1
        evidence_BCKM = evidence_BCKM + (shown_BCK1 - 1) * -contract.NO_EVIDENCE
        return scores_BC, nodes_BCKD, found.weights_BCK, evidence_BCKM

    def folded(self) -> Ranker:
        """A copy for serving: everything that depends on one item or one node alone is looked up, not computed."""
        with torch.no_grad():
            serving = copy.deepcopy(self).eval()
            for owner, name in (
                (serving.base, "items"),
                (serving, "node_tokens"),
                (serving, "queries"),
                (serving, "evidence_tokens"),
            ):
                setattr(owner, name, FoldedTokens(getattr(owner, name).table()))
        return serving
