"""The request network: rows of behaviours, chains and candidates in, scores and kept chains out.

The dense part of a trained ranker, in the form that serves: constants are folded, linear layers run on flat rows, masks
and index arithmetic came with the inputs. What limits it: some 120 small kernels and 10 M multiply-adds at C=128, R=64,
H=64, E=128. Inputs and outputs are `contract.RANKER_INPUTS` and `contract.RANKER_OUTPUTS`, in that order.

Shapes: B requests, T window, C candidates, R chains, D levels, M evidence, K chains per candidate, N = B * T, G heads,
H width, h width of a head, E vector size, X = E + H, A contexts.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve import contract
from airserve.errors import UserError
from airserve.model.ranker import Ranker
from airserve.model.retrieval import retrieve
from airserve.model.sequence import MASKED_LOGIT, Block, SequenceModel, scaled


class ServedBlock(nn.Module):
    """`sequence.Block` on flat rows, so that every linear layer is one kernel with its bias.

    Distances and causality are one constant bias of the logits. A key's bias adds the same to all logits of a query and
    falls out of the softmax; a value's bias is added behind it, since shares add up to one.

    Args:
        block: trained.
        last_only: answer for the last position alone.
    """

    def __init__(self, block: Block, *, last_only: bool) -> None:
        super().__init__()
        self.last_only, self.heads, self.width = last_only, block.heads, block.query.in_features
        self.attention_norm, self.feed_norm, self.feed = block.attention_norm, block.feed_norm, block.feed
        scale = 1.0 / math.sqrt(self.width / self.heads)
        query_HH, query_H = block.query.weight.detach() * scale, block.query.bias.detach() * scale
        value_H = block.key_value.bias.detach()[self.width :]
        self.query, self.key_value = _linear(query_HH, query_H), _linear(block.key_value.weight.detach())
        out_HH = block.out.weight.detach()
        self.out = _linear(out_HH, block.out.bias.detach() + out_HH @ value_H)
        place_T = torch.arange(contract.WINDOW)
        distance_TT = place_T.unsqueeze(1) - place_T
        bias_GTT = block.distance_GT.detach()[:, distance_TT.clamp(min=0)]
        bias_GTT = torch.where(distance_TT >= 0, bias_GTT, torch.tensor(MASKED_LOGIT))
        self.register_buffer("bias_GTT", bias_GTT[:, -1:] if last_only else bias_GTT)

    def _by_head(self, flat_NX: Tensor, parts: int) -> Tensor:
        """Rows [B*T, parts * H] as [B, parts * G, T, h]."""
        split_BTPh = flat_NX.reshape(-1, contract.WINDOW, parts * self.heads, self.width // self.heads)
        return split_BTPh.transpose(1, 2)

    def forward(self, x_NH: Tensor, padding_B11T: Tensor) -> Tensor:
        """One block.

        Args:
            x_NH: float32 [B * T, H].
            padding_B11T: float32, 0, or `MASKED_LOGIT` where there is no behaviour.

        Returns:
            float32 [B * T, H], or [B, H].
        """
        normed_NH = self.attention_norm(x_NH)
        keys_values_BGTh = self._by_head(self.key_value(normed_NH), 2)
        key_BGTh, value_BGTh = keys_values_BGTh[:, : self.heads], keys_values_BGTh[:, self.heads :]
        if self.last_only:
            x_NH = x_NH.reshape(-1, contract.WINDOW, self.width)[:, -1]
            # One row: cheaper normed again than taken out of the normed ones.
            query_BGTh = self.query(self.attention_norm(x_NH)).reshape(-1, self.heads, 1, self.width // self.heads)
        else:
            query_BGTh = self._by_head(self.query(normed_NH), 1)
        logits_BGTT = torch.matmul(query_BGTh, key_BGTh.transpose(2, 3)) + (padding_B11T + cast(Tensor, self.bias_GTT))
        mixed_BGTh = torch.matmul(torch.softmax(logits_BGTT, dim=-1), value_BGTh)
        # Of one position the heads lie side by side already.
        mixed_NH = (mixed_BGTh if self.last_only else mixed_BGTh.transpose(1, 2)).reshape(-1, self.width)
        x_NH = x_NH + self.out(mixed_NH)
        y_NH: Tensor = x_NH + self.feed(self.feed_norm(x_NH))
        return y_NH


def _linear(weight_OH: Tensor, bias_O: Tensor | None = None) -> nn.Linear:
    """A linear layer of given weights; zeros for a bias that is None, for a kernel with one is as fast."""
    layer = nn.Linear(weight_OH.shape[1], weight_OH.shape[0])
    layer.weight.data.copy_(weight_OH)
    layer.bias.data.copy_(torch.zeros(len(weight_OH)) if bias_O is None else bias_O)
    return layer


class ServedTower(nn.Module):
    """`SequenceModel` over a gathered window.

    Args:
        tower: trained.
        scale: what the user vector is multiplied by.
    """

    def __init__(self, tower: SequenceModel, scale: float) -> None:
        super().__init__()
        last = len(tower.blocks)
        self.blocks = nn.ModuleList(
            ServedBlock(cast(Block, block), last_only=number == last)
            for number, block in enumerate(tower.blocks, start=1)
        )
        self.input_norm, self.out_norm = tower.input_norm, tower.out_norm
        self.temperature, self.scale = tower.settings.temperature, scale
        reached_GZ = torch.tril(torch.ones(contract.N_GAPS, contract.N_GAPS - 1), diagonal=-1)
        gaps_GH = reached_GZ @ tower.gaps.weight.detach().transpose(0, 1)
        contexts_AH = (tower.actions.weight.detach().unsqueeze(1) + gaps_GH).flatten(0, 1)
        self.register_buffer("contexts_AH", F.pad(contexts_AH, (0, 0, 1, 0)))
        padding_A = torch.zeros(len(contexts_AH) + 1)
        padding_A[contract.PAD_CONTEXT] = MASKED_LOGIT
        self.register_buffer("padding_A", padding_A)

    def forward(self, tokens_BTH: Tensor, context_BT: Tensor) -> Tensor:
        """The user's vector, float32 [B, H]; meaningless for an empty history."""
        padding_B11T = cast(Tensor, self.padding_A)[context_BT].reshape(-1, 1, 1, contract.WINDOW)
        x_BTH = tokens_BTH + F.embedding(context_BT, cast(Tensor, self.contexts_AH))
        x_NH = self.input_norm(x_BTH.reshape(-1, x_BTH.shape[2]))
        for block in self.blocks:
            x_NH = block(x_NH, padding_B11T)
        user_BH: Tensor = scaled(self.out_norm(x_NH), self.temperature) * self.scale
        return user_BH


class RequestNetwork(nn.Module):
    """What the engine computes.

    Args:
        ranker: trained, with intents, tree and target.

    Raises:
        UserError: for a ranker of an ablation, which has no served form.
    """

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        s = ranker.settings
        if not (s.use_tree and s.use_target):
            raise UserError("ranker", expected="a whole one", got="an ablation", remedy="train without the ablation")
        self.vector_size = cast(Tensor, ranker.item_vectors_NE).shape[1]
        self.tower = ServedTower(ranker.base, float(ranker.base_scale))
        self.evidence, self.composition, self.ranker_head = ranker.evidence, ranker.composition, ranker.head
        self.head_in, self.head_out = ranker.head_in, ranker.head_out
        self.intent_scale = float(cast(Tensor, ranker.intent_scale)) if s.use_intents else 0.0

    def forward(
        self,
        window_tokens: Tensor,
        window_context: Tensor,
        chain_rows: Tensor,
        level_weights: Tensor,
        chain_bias: Tensor,
        evidence_tokens: Tensor,
        candidate_tokens: Tensor,
        candidate_targets: Tensor,
        candidate_prior: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rank candidates; inputs and outputs as in the contract.

        Returns:
            scores float32 [B, C], chain_index int32 [B, C, K], chain_weights float32 [B, C, K].
        """
        user_BH = self.tower(window_tokens.float(), window_context)
        base_BC = torch.matmul(candidate_tokens.float(), user_BH.unsqueeze(-1))[..., 0]
        chains_BRX = (level_weights.unsqueeze(-1) * chain_rows.float()).sum(2)
        targets_BCX = candidate_targets.float()
        evidence_BRX = evidence_tokens.float().reshape(evidence_tokens.shape[0], evidence_tokens.shape[1], -1)
        evidence_BRH = self.evidence(evidence_BRX)
        tokens_BRH = self.composition.norm(chains_BRX[..., self.vector_size :] + evidence_BRH)
        found = retrieve(targets_BCX[..., : self.vector_size], chains_BRX[..., : self.vector_size], chain_bias)
        intent_BC = self.ranker_head(targets_BCX[..., self.vector_size :], tokens_BRH, found)
        scores_BC = base_BC + candidate_prior + intent_BC * self.intent_scale
        return scores_BC, found.index_BCK, found.weights_BCK
