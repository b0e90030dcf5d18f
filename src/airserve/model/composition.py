"""Compose a user's retrieved intent chains into one vector per candidate.

Multi-head attention: the candidate asks, its kept chains answer. Keys and values are made once per chain, not per
candidate, and attention runs over all R chains under a mask: two small matrix products, O(B*C*R*H), instead of a
gather of [B, C, K, H] keys and values. What depends on candidate and chain both (the chain's score) enters through
its linearity: q.(k + s*k') = q.k + s*(q.k'). The query's projection depends on the item alone and is the caller's.

Shapes: B requests, C candidates, R chains, D levels, H width, G heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from airserve import contract


class Composition(nn.Module):
    """Target-conditioned intent vectors.

    Source: AIR (arXiv 2606.10357), target-aware composition; sizes are ours.

    Args:
        width: H.
        heads: G, divides H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.features = nn.Linear(contract.MAX_DEPTH, width)
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.score_key_H = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.score_value_H = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.out = nn.Linear(width, width, bias=False)

    @property
    def query_scale(self) -> float:
        """1 / sqrt(width of a head); applied before the product, so that TensorRT can fuse the attention."""
        return 1.0 / math.sqrt(self.score_key_H.numel() / self.heads)

    def chain_tokens(self, nodes_BRH: Tensor, evidence_BRH: Tensor, log_weights_BRD: Tensor) -> Tensor:
        """One token per chain from its nodes, its evidence and its nodes' log weights; float32 [B, R, H]."""
        tokens_BRH: Tensor = self.norm(nodes_BRH + evidence_BRH + self.features(log_weights_BRD))
        return tokens_BRH

    def _split(self, x_BNH: Tensor) -> Tensor:
        batch, rows, width = x_BNH.shape
        return x_BNH.reshape(batch, rows, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, asked_BCH: Tensor, tokens_BRH: Tensor, scores_BCR: Tensor, kept_BCR: Tensor) -> Tensor:
        """Blend each candidate's kept chains.

        Args:
            asked_BCH: float32, projected queries, already scaled by `query_scale`.
            tokens_BRH: float32, see `chain_tokens`.
            scores_BCR: float32, target-aware chain scores.
            kept_BCR: bool, the chains that retrieval kept.

        Returns:
            float32 [B, C, H]; zeros where no chain was kept.
        """
        batch, candidates, width = asked_BCH.shape
        query_BGCh = self._split(asked_BCH)
        key_BGRh, value_BGRh = self._split(self.key(tokens_BRH)), self._split(self.value(tokens_BRH))
        score_key_Gh1 = self.score_key_H.reshape(self.heads, -1, 1)
        kept_B1CR, scores_B1CR = kept_BCR.unsqueeze(1), scores_BCR.unsqueeze(1)
        logits_BGCR = torch.matmul(query_BGCh, key_BGRh.transpose(2, 3))
        logits_BGCR = logits_BGCR + scores_B1CR * torch.matmul(query_BGCh, score_key_Gh1)
        masked = torch.full((1, 1, 1, 1), -1e4, device=logits_BGCR.device)
        shares_BGCR = torch.softmax(torch.where(kept_B1CR, logits_BGCR, masked), dim=-1) * kept_B1CR.float()
        mean_score_BGC1 = (shares_BGCR * scores_B1CR).sum(-1, keepdim=True)
        blend_BGCh = torch.matmul(shares_BGCR, value_BGRh)
        blend_BGCh = blend_BGCh + mean_score_BGC1 * self.score_value_H.reshape(self.heads, 1, -1)
        composed_BCH: Tensor = self.out(blend_BGCh.transpose(1, 2).reshape(batch, candidates, width))
        return composed_BCH
