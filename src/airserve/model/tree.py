"""Weigh the nodes of a request's unified intent tree.

The lookup step has merged the behaviours' intent paths into R chains over U distinct nodes. Here each node gets its
weight from the behaviours that support it, with a gradient for what is learned. Served weights come from
`airserve/table/tree.py`, which computes the same without one; a property test holds the two equal.

Shapes: B requests, L behaviours, P paths per behaviour, R chains, D levels, U nodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from airserve import contract

SECONDS_PER_DAY = 86400.0
START_HALF_LIFE_DAYS = 14.0
DECAY_PACE = 10.0
"""The decay moves this much faster in training than other parameters: it starts where a log of weeks would have it, and
may have to go a long way."""
START_ACTION_WEIGHTS = {"view": 0.5, "like": 1.0, "click": 1.0, "cart": 1.5, "order": 2.0}
"""Where training starts from; the weights are learned."""


def inverse_softplus(value: float) -> float:
    """The x with softplus(x) = value, value > 0."""
    return value + math.log(-math.expm1(-value))


def chain_support(behaviour_chains_BLP: Tensor, n_chains: int) -> Tensor:
    """Which chains each behaviour supports.

    Args:
        behaviour_chains_BLP: int32, chain indices, `PAD_CHAIN` where none.
        n_chains: R.

    Returns:
        bool [B, L, R].
    """
    chain_R = torch.arange(n_chains, dtype=torch.int32, device=behaviour_chains_BLP.device)
    support_BLR = behaviour_chains_BLP[:, :, 0].unsqueeze(-1) == chain_R
    for path in range(1, contract.MAX_PATHS):
        support_BLR = support_BLR | (behaviour_chains_BLP[:, :, path].unsqueeze(-1) == chain_R)
    return support_BLR


def chain_passes(chain_slots_BRD: Tensor, n_nodes: int) -> Tensor:
    """Which nodes each chain passes through; slot 0 (none) is passed by no chain.

    Args:
        chain_slots_BRD: int32, slots of the tree's nodes, coarse to fine, `PAD_SLOT` where none.
        n_nodes: U.

    Returns:
        bool [B, R, U].
    """
    slot_U = torch.arange(n_nodes, dtype=torch.int32, device=chain_slots_BRD.device)
    passes_BRU = chain_slots_BRD[:, :, 0].unsqueeze(-1) == slot_U
    for level in range(1, contract.MAX_DEPTH):
        passes_BRU = passes_BRU | (chain_slots_BRD[:, :, level].unsqueeze(-1) == slot_U)
    return passes_BRU & (slot_U != contract.PAD_SLOT)


def leaves_alone(chain_slots_BRD: Tensor) -> Tensor:
    """Chains cut down to their finest node, as chains of one level; int32 [B, R, D], `PAD_SLOT` behind the first."""
    leaf_BR = chain_slots_BRD[:, :, 0]
    for level in range(1, contract.MAX_DEPTH):
        deeper_BR = chain_slots_BRD[:, :, level]
        leaf_BR = torch.where(deeper_BR != contract.PAD_SLOT, deeper_BR, leaf_BR)
    return nn.functional.pad(leaf_BR.unsqueeze(-1), (0, contract.MAX_DEPTH - 1), value=contract.PAD_SLOT)


class TreeWeights(nn.Module):
    """Node weights w_u = log(1 + N(u)) * sum_k a(action_k) * exp(-lambda * dt_k).

    N(u) behaviours k support node u; dt_k is a behaviour's age in days. Learned: a(action) >= 0 and lambda >= 0
    (per day), both through softplus.

    Args:
        merged: False, an ablation: w_u = max_k a(action_k) * exp(-lambda * dt_k), behaviours do not add up.

    Source: AIR (arXiv 2606.10357), unified intent tree.
    """

    def __init__(self, *, merged: bool = True) -> None:
        super().__init__()
        self.merged = merged
        start = [START_ACTION_WEIGHTS.get(contract.ACTION_NAMES.get(n, ""), 1.0) for n in range(contract.N_ACTIONS)]
        self.raw_action_A = nn.Parameter(torch.tensor([inverse_softplus(weight) for weight in start]))
        self.raw_decay = nn.Parameter(torch.tensor(inverse_softplus(math.log(2) / START_HALF_LIFE_DAYS) / DECAY_PACE))

    def action_weights(self) -> Tensor:
        """Weight of each action number, >= 0, float32 [N_ACTIONS]; padding weighs nothing."""
        weights_A = nn.functional.softplus(self.raw_action_A)
        real_A = torch.arange(contract.N_ACTIONS, device=weights_A.device) != contract.PAD_ACTION
        return weights_A * real_A.to(weights_A.dtype)

    def decay_per_day(self) -> Tensor:
        """Lambda, per day, >= 0."""
        return nn.functional.softplus(self.raw_decay * DECAY_PACE)

    def freshness(self, ages_s_BL: Tensor) -> Tensor:
        """exp(-lambda * age), float32 [B, L], for ages in seconds."""
        return torch.exp(ages_s_BL * (-self.decay_per_day() / SECONDS_PER_DAY))

    def forward(
        self, actions_BL: Tensor, freshness_BL: Tensor, support_BLR: Tensor, chain_slots_BRD: Tensor, n_nodes: int
    ) -> Tensor:
        """Weigh every node of the tree.

        Args:
            actions_BL: int32 action numbers.
            freshness_BL: float32, see `freshness`.
            support_BLR: bool, see `chain_support`.
            chain_slots_BRD: int32.
            n_nodes: U.

        Returns:
            float32 [B, U], >= 0; 0 in slot 0 and for nodes without support.
        """
        passes_BRU = chain_passes(chain_slots_BRD, n_nodes)
        # A behaviour counts once per node, however many of its chains pass it: hence the comparison.
        member_BLU = (torch.matmul(support_BLR.float(), passes_BRU.float()) > 0).float()
        strength_BL = nn.functional.embedding(actions_BL, self.action_weights().unsqueeze(-1))[..., 0] * freshness_BL
        if not self.merged:
            return (strength_BL.unsqueeze(-1) * member_BLU).amax(1)
        terms_B2L = torch.stack([torch.ones_like(strength_BL), strength_BL], dim=1)
        sums_B2U = torch.matmul(terms_B2L, member_BLU)
        return torch.log1p(sums_B2U[:, 0]) * sums_B2U[:, 1]
