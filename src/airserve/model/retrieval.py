"""Target-aware retrieval: each candidate's best chains of the tree, and the behaviours behind each chain.

score(u; v) = cos(e_u, e_v) * log(1 + w_u) is linear in e_u, so a chain's score for every candidate is one dot product
with a chain vector made once per request: O(B*C*R*E), and no gather per candidate and node. The search is exhaustive
over the request's chains, which is what a beam of unlimited width finds from the top of the tree down.

Ties: chains whose scores are equal are taken lowest index first; behaviours of equal relevance youngest first. TopK
leaves ties open in TensorRT and PyTorch, so `contract.TIE_STEP` per index is taken off the sorting key; the weights of
kept chains are that key (at most 2.6e-4 below the score).

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

MASKED_KEY = -1e4
"""Below any score; fp16 holds it."""


class Retrieved(NamedTuple):
    """What retrieval found."""

    scores_BCR: Tensor
    """float32, score of every chain; 0 for padded chains."""
    kept_BCR: Tensor
    """bool, the at most K chains kept of each candidate."""
    index_BCK: Tensor
    """int32, kept chains, best first; `NO_CHAIN` where none."""
    weights_BCK: Tensor
    """float32, scores of the kept chains; 0 where none."""


def retrieve(candidate_vectors_BCE: Tensor, chain_vectors_BRE: Tensor, chain_bias_BR: Tensor) -> Retrieved:
    """Keep each candidate's best chains.

    Args:
        candidate_vectors_BCE: float32, unit rows (zeros: unknown item).
        chain_vectors_BRE: float32, see `LevelWeights`; R >= K.
        chain_bias_BR: float32, see `chain_bias`.
    """
    k = contract.CHAINS_PER_CANDIDATE
    scores_BCR = torch.matmul(candidate_vectors_BCE, chain_vectors_BRE.transpose(1, 2))
    keys_BCR = scores_BCR + chain_bias_BR.unsqueeze(1)
    best_BCK, index_BCK = torch.topk(keys_BCR, k, dim=-1)
    half = 0.5 * contract.PADDED_CHAIN
    kept_BCR = keys_BCR >= best_BCK[:, :, k - 1 :].clamp(min=half)
    found_BCK = best_BCK > half
    zero = torch.zeros((1, 1, 1), device=best_BCK.device)
    none = torch.full((1, 1, 1), contract.NO_CHAIN, dtype=torch.int32, device=best_BCK.device)
    return Retrieved(
        scores_BCR, kept_BCR, torch.where(found_BCK, index_BCK.int(), none), torch.where(found_BCK, best_BCK, zero)
    )


def chain_bias(real_BR: Tensor) -> Tensor:
    """What is added to a chain's score before the best are taken, float32 [B, R]; see `contract.CHAIN_BIAS`."""
    step_R = torch.arange(real_BR.shape[1], device=real_BR.device).float() * -contract.TIE_STEP
    return torch.where(real_BR, step_R, torch.full_like(step_R, contract.PADDED_CHAIN))


class LevelWeights(nn.Module):
    """How much each level of a chain counts in its score.

    A chain's score is the mean of its nodes' scores, levels weighing differently (learned, >= 0) and the weights of the
    levels that a chain has adding up to one, so that deep and shallow chains compare.

    Source: the level weights are ours; AIR (arXiv 2606.10357) gives a node's score.
    """

    def __init__(self) -> None:
        super().__init__()
        start = [0.25 * 2.0**level for level in range(contract.MAX_DEPTH)]
        self.raw_level_D = nn.Parameter(torch.tensor([inverse_softplus(weight) for weight in start]))

    def forward(self) -> Tensor:
        """Weight of each level, >= 0, float32 [D], coarse to fine."""
        weights_D: Tensor = F.softplus(self.raw_level_D)
        return weights_D

    def norms(self) -> Tensor:
        """Sum of the weights of the levels down to each, float32 [D]."""
        norms_D: Tensor = self().cumsum(0)
        return norms_D

    def over_norm(self, log_weights_BRD: Tensor, exists_BRD: Tensor) -> Tensor:
        """`contract.LEVEL_WEIGHTS`: log(1 + w_u) over the norm of the chain's depth, 0 where there is no level."""
        depth_BR1 = exists_BRD.sum(-1, keepdim=True)
        norm_BR1 = self.norms()[(depth_BR1 - 1).clamp(min=0)]
        weights_BRD: Tensor = log_weights_BRD * exists_BRD.float() / norm_BR1
        return weights_BRD


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
        step_L = torch.arange(behaviour_vectors_BLE.shape[1], device=freshness_BL.device).float() * contract.TIE_STEP
        masked = torch.full((1, 1, 1), MASKED_KEY, device=freshness_BL.device)
        keys_BRL = torch.where(support_BLR.transpose(1, 2), relevance_BRL + step_L, masked)
        best_BRM, index_BRM = torch.topk(F.pad(keys_BRL, (0, m), value=MASKED_KEY), m, dim=-1)
        found_BRM = best_BRM > MASKED_KEY / 2
        none = torch.full((1, 1, 1), contract.NO_EVIDENCE, dtype=torch.int32, device=freshness_BL.device)
        return torch.where(found_BRM, index_BRM.int(), none)
