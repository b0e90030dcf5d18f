"""Compose the kept chains of a request into one vector per candidate.

Multi-head attention whose query is the candidate. Every head sees whole tokens through a matrix of its own, and adds
the target-aware score, times a learned factor, to its logits: so a head can follow the score, or look elsewhere. A
candidate attends to its own chains only, by a mask over all R: a gather of K chains per candidate would copy
C*K*H numbers.

Shapes: B requests, C candidates, R chains, K kept, H width, G heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MASKED_LOGIT = -1e4


class Composition(nn.Module):
    """Target-conditioned intent vectors.

    Source: AIR (arXiv 2606.10357), target-aware composition; sizes are ours.

    Args:
        width: H.
        heads: G.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Without a bias, so that the token of no chain is zeros, and what is composed of none too.
        self.norm = nn.LayerNorm(width, bias=False)
        self.key_GHH = nn.Parameter((torch.rand(heads, width, width) * 2 - 1) / math.sqrt(width))
        self.value_GHH = nn.Parameter((torch.rand(heads, width, width) * 2 - 1) / math.sqrt(width))
        self.score_gain_G = nn.Parameter(torch.ones(heads))

    def forward(self, queries_BCH: Tensor, tokens_BRH: Tensor, scores_BCR: Tensor, kept_BCR: Tensor) -> Tensor:
        """Blend each candidate's kept chains.

        Args:
            queries_BCH: float32.
            tokens_BRH: float32, normed; zeros for padded chains.
            scores_BCR: float32, target-aware chain scores.
            kept_BCR: bool, the chains that retrieval kept.

        Returns:
            float32 [B, C, H]; zeros where a request has no chain.
        """
        tokens_B1RH, scale = tokens_BRH.unsqueeze(1), 1.0 / math.sqrt(tokens_BRH.shape[-1])
        # Heads lie side by side along the chains (X = G * R), so one product serves all of them.
        keys_BXH = _joined_heads(torch.matmul(tokens_B1RH, self.key_GHH * scale))
        values_BXH = _joined_heads(torch.matmul(tokens_B1RH, self.value_GHH))
        logits_BCX = torch.matmul(queries_BCH, keys_BXH.transpose(1, 2))
        logits_BCGR = logits_BCX.reshape(logits_BCX.shape[0], logits_BCX.shape[1], self.heads, -1)
        # Added, not chosen: a mask per head and chain is slow to broadcast.
        mask_BCR = (kept_BCR.float() - 1.0) * -MASKED_LOGIT
        bias_BCGR = scores_BCR.unsqueeze(2) * self.score_gain_G.unsqueeze(-1) + mask_BCR.unsqueeze(2)
        shares_BCGR = torch.softmax(logits_BCGR + bias_BCGR, dim=-1)
        shares_BCX = shares_BCGR.reshape(shares_BCGR.shape[0], shares_BCGR.shape[1], -1)
        composed_BCH: Tensor = torch.matmul(shares_BCX, values_BXH)
        return composed_BCH


def _joined_heads(by_head_BGRH: Tensor) -> Tensor:
    """[B, G, R, H] as [B, G * R, H]; sizes are read off the tensor itself, so that the export can drop them."""
    joined_BXH: Tensor = by_head_BGRH.reshape(by_head_BGRH.shape[0], -1, by_head_BGRH.shape[3])
    return joined_BXH
