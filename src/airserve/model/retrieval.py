"""Target-aware retrieval: each candidate's best chains of the tree, and the behaviours behind each chain.

score(u; v) = cos(e_u, e_v) * log(1 + w_u) is linear in e_u, so a chain's score for every candidate is one dot product
with a chain vector made once per request: O(B*C*R*E), and no gather per candidate and node. The search is exhaustive
over the kept chains, which is what a beam of unlimited width finds from the top of the tree down.

Ties: chains whose scores are equal are taken lowest index first; behaviours of equal relevance youngest first. TopK
leaves ties open in TensorRT and PyTorch, so `TIE_STEP` per index is taken off the sorting key, never off the score.

Shapes: B requests, L behaviours, C candidates, R chains, D levels, K chains per candidate, M evidence per chain,
E vector size.
"""

# ruff: noqa: N815 - tensors are named name_AXES, fields too
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve import contract
from airserve.model.tree import inverse_softplus

TIE_STEP = 1e-6
"""Scores closer than this per index are ties; float32 resolves it up to a score of 8."""
MASKED_KEY = -1e4
"""Below any score; fp16 holds it."""


class Retrieved(NamedTuple):
    """What retrieval found."""

    scores_BCR: Tensor
    """float32, score of every chain; 0 for padded chains."""
    kept_BCR: Tensor
    """bool, the at most K chains kept of each candidate."""
    index_BCK: Tensor
    """int32, kept chains, best first; 0 where none."""
    found_BCK: Tensor
    """bool, whether there was one."""
    weights_BCK: Tensor
    """float32, scores of the kept chains; 0 where none."""


class TargetAwareRetrieval(nn.Module):
    """Score chains against candidates and keep the best K of each candidate.

    A chain's score is the mean of its nodes' scores, levels weighing differently (learned, >= 0) and the weights of the
    levels that a chain has adding up to one, so that deep and shallow chains compare.

    Source: AIR (arXiv 2606.10357), target-aware retrieval; the level weights are ours.
    """

    def __init__(self) -> None:
        super().__init__()
        start = [0.25 * 2.0**level for level in range(contract.MAX_DEPTH)]
        self.raw_level_D = nn.Parameter(torch.tensor([inverse_softplus(weight) for weight in start]))

    def level_weights(self) -> Tensor:
        """Weight of each level, >= 0, float32 [D], coarse to fine."""
        return F.softplus(self.raw_level_D)

    def chain_vectors(self, log_weights_BRD: Tensor, exists_BRD: Tensor, node_vectors_BRDE: Tensor) -> Tensor:
        """One vector per chain whose dot product with e_v is the chain's score.

        Args:
            log_weights_BRD: float32, log(1 + w_u) of each chain's nodes.
            exists_BRD: bool, whether the chain has this level.
            node_vectors_BRDE: float32, unit rows.

        Returns:
            float32 [B, R, E]; zeros for padded chains.
        """
        level_BRD = self.level_weights() * exists_BRD.float()
        share_BRD = level_BRD / (level_BRD.sum(-1, keepdim=True) + 1e-9)
        return ((share_BRD * log_weights_BRD).unsqueeze(-1) * node_vectors_BRDE).sum(2)

    def forward(self, candidate_vectors_BCE: Tensor, chain_vectors_BRE: Tensor, real_BR: Tensor) -> Retrieved:
        """Keep each candidate's best chains.

        Args:
            candidate_vectors_BCE: float32, unit rows (zeros: unknown item).
            chain_vectors_BRE: float32, see `chain_vectors`.
            real_BR: bool, false for padded chains.
        """
        n_chains = chain_vectors_BRE.shape[1]
        k = contract.CHAINS_PER_CANDIDATE
        scores_BCR = torch.matmul(candidate_vectors_BCE, chain_vectors_BRE.transpose(1, 2))
        with torch.no_grad():
            step_R = torch.arange(n_chains, device=real_BR.device).float() * TIE_STEP
            masked = torch.full((1, 1, 1), MASKED_KEY, device=real_BR.device)
            keys_BCR = torch.where(real_BR.unsqueeze(1), scores_BCR - step_R, masked)
            # R may be below K: padding makes TopK valid for any R.
            best_BCK, index_BCK = torch.topk(F.pad(keys_BCR, (0, k), value=MASKED_KEY), k, dim=-1)
            kept_BCR = (keys_BCR >= best_BCK[:, :, k - 1 :]) & real_BR.unsqueeze(1)
            found_BCK = best_BCK > MASKED_KEY / 2
            index_BCK = index_BCK.int() * found_BCK.int()
        step_BCK = index_BCK.float() * TIE_STEP
        weights_BCK = (best_BCK + step_BCK) * found_BCK.float()
        return Retrieved(scores_BCR, kept_BCR, index_BCK, found_BCK, weights_BCK)


def select_evidence(
    behaviour_vectors_BLE: Tensor, leaf_vectors_BRE: Tensor, freshness_BL: Tensor, support_BLR: Tensor
) -> Tensor:
    """The M behaviours shown as evidence of each chain.

    Ranked by (1 + cos(item, leaf)) / 2 * exp(-lambda * age): in [0, 1], rising with likeness and falling with age.

    Args:
        behaviour_vectors_BLE: float32, unit rows (zeros: unknown item).
        leaf_vectors_BRE: float32, unit rows, the finest node of each chain.
        freshness_BL: float32, exp(-lambda * age).
        support_BLR: bool.

    Returns:
        int32 [B, R, M], indices into the behaviours, best first, `NO_EVIDENCE` where none.
    """
    m = contract.MAX_EVIDENCE
    with torch.no_grad():
        likeness_BRL = torch.matmul(leaf_vectors_BRE, behaviour_vectors_BLE.transpose(1, 2))
        relevance_BRL = (likeness_BRL * 0.5 + 0.5) * freshness_BL.unsqueeze(1)
        step_L = torch.arange(behaviour_vectors_BLE.shape[1], device=freshness_BL.device).float() * TIE_STEP
        masked = torch.full((1, 1, 1), MASKED_KEY, device=freshness_BL.device)
        keys_BRL = torch.where(support_BLR.transpose(1, 2), relevance_BRL + step_L, masked)
        best_BRM, index_BRM = torch.topk(F.pad(keys_BRL, (0, m), value=MASKED_KEY), m, dim=-1)
        found_BRM = best_BRM > MASKED_KEY / 2
        none = torch.full((1, 1, 1), contract.NO_EVIDENCE, dtype=torch.int32, device=freshness_BL.device)
        return torch.where(found_BRM, index_BRM.int(), none)
