"""The sequence tower: a user's recent history as one vector, and the items' tokens it is matched with.

A causal transformer over the last `window` behaviours. Attention knows order through a learned bias per distance, not
through absolute positions, so every position is trained as if it were the last, and serving needs only the last one.
The window has a fixed size in serving, its last behaviour at the end, so the cost (4 M multiply-adds at H=64) does not
depend on L.

Shapes: B requests, L behaviours, T window, C candidates, H width, E item vector size, N catalogue rows, G heads,
Z steps of the gap code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from airserve import contract
from airserve.errors import UserError
from airserve.model.gather import every_row, gather_rows

MASKED_LOGIT = -1e4


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """Sizes of the sequence tower."""

    width: int = 64
    """H, of every token."""
    heads: int = 2
    """Attention heads; divides `width`."""
    blocks: int = 2
    """Transformer blocks."""
    dropout: float = 0.2
    """During training."""
    temperature: float = 0.1
    """The score is the cosine of user and item over this. Without lengths popularity has to be learned as a direction,
    and rare items are not held down by short vectors (figures in docs/LOG.md). 0: plain dot products, as in SASRec."""
    use_item_vectors: bool = True
    """Add a projection of the items' text and intent vectors to their learned ids; False: ids only."""
    id_dropout: float = 0.15
    """Share of the items that a training step sees without their learned ids, drawn anew each step: whole items, not
    positions, so that title and intents alone learn to carry an item that has no id yet."""

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.blocks) < 1 or self.width % self.heads:
            raise UserError(
                "SequenceSettings",
                expected="width, heads, blocks >= 1 and heads dividing width",
                got=f"{self.width}, {self.heads}, {self.blocks}",
                remedy="change the settings",
            )
        for name in ("dropout", "id_dropout"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise UserError(name, expected=f"0 <= {name} < 1", got=str(share), remedy="change the settings")
        if self.temperature < 0:
            raise UserError("temperature", expected=">= 0", got=str(self.temperature), remedy="change the settings")


def scaled(x: Tensor, temperature: float) -> Tensor:
    """Vectors [..., H] at such a length that a dot product of two is their cosine over `temperature`; at 0 as they are.

    Zeros stay zeros. Written out: TensorRT has no normalisation by length.
    """
    if not temperature:
        return x
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) * temperature + 1e-12)


class IdVectors(nn.Module):
    """Learned vectors of things that have a number, and one learned vector, *none*, for all others.

    Others are rows that training never saw, reserved rows, and in training the share that is dropped in a step.

    Args:
        rows: N.
        width: H.
        std: of the initial vectors; 0: all start as nothing.
        drop_share: of the things that a training step sees without their number.
    """

    def __init__(self, rows: int, width: int, *, std: float, drop_share: float) -> None:
        super().__init__()
        self.weight_NH = nn.Parameter(torch.randn(rows, width) * std)
        self.none_H = nn.Parameter(torch.randn(width) * std)
        self.register_buffer("known_N", torch.ones(rows, dtype=torch.bool))
        self.drop_share = drop_share
        self._salt = 0

    def set_known(self, known_N: Tensor) -> None:
        """Say which rows training sees, bool [N]; the others are *none*, for good."""
        cast(Tensor, self.known_N).copy_(known_N)

    def redraw(self, rng: np.random.Generator) -> None:
        """Draw anew what is dropped; once a training step."""
        self._salt = int(rng.integers(1 << 31))

    def forward(self, rows: Tensor) -> Tensor:
        """Vectors of int rows [...]; float32 [..., H]."""
        has = cast(Tensor, self.known_N)[rows.long()]
        if self.training and self.drop_share:
            has = has & ~dropped(rows, self._salt, self.drop_share)
        return torch.where(has.unsqueeze(-1), F.embedding(rows, self.weight_NH), self.none_H)


def dropped(rows: Tensor, salt: int, share: float) -> Tensor:
    """Which rows a share drops, bool in the shape of `rows`: the same answer for a row wherever it stands.

    A hash (the finaliser of MurmurHash3) instead of a draw for all N rows, of which a step sees a few thousand.
    """
    mask = 0xFFFFFFFF
    hashed = (rows.long() * 0x9E3779B1 + salt) & mask
    hashed = ((hashed ^ (hashed >> 16)) * 0x85EBCA6B) & mask
    hashed = ((hashed ^ (hashed >> 13)) * 0xC2B2AE35) & mask
    return (hashed ^ (hashed >> 16)) < int(share * (1 << 32))


class ItemTokens(nn.Module):
    """Catalogue row -> token: a learned id vector plus a projection of the item's frozen vector."""

    def __init__(self, item_vectors_NE: Tensor, settings: SequenceSettings) -> None:
        super().__init__()
        rows, size = item_vectors_NE.shape
        self.register_buffer("vectors_NE", item_vectors_NE, persistent=False)
        self.ids = IdVectors(rows, settings.width, std=0.02, drop_share=settings.id_dropout)
        self.ids.set_known(torch.arange(rows) >= contract.FIRST_ITEM_ROW)
        self.project = nn.Linear(size, settings.width, bias=False) if settings.use_item_vectors else None
        self.temperature = settings.temperature

    def forward(self, rows: Tensor) -> Tensor:
        """Tokens of int32 rows [...]; float32 [..., H]."""
        return self.encode(self.ids(rows), F.embedding(rows, cast(Tensor, self.vectors_NE)))

    def encode(self, ids: Tensor, vectors: Tensor) -> Tensor:
        """Tokens float32 [..., H] of id vectors [..., H] and frozen vectors [..., E]."""
        return scaled(ids if self.project is None else ids + self.project(vectors), self.temperature)

    def table(self) -> Tensor:
        """All tokens, float32 [N, H]."""
        table_NH: Tensor = self(every_row(cast(Tensor, self.vectors_NE)))
        return table_NH


class Block(nn.Module):
    """Pre-norm causal transformer block with a learned bias per distance."""

    def __init__(self, settings: SequenceSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.distance_GT = nn.Parameter(torch.zeros(settings.heads, contract.WINDOW))
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(settings.dropout)

    def _split(self, x_BTH: Tensor) -> Tensor:
        batch, length, width = x_BTH.shape
        return x_BTH.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x_BTH: Tensor, visible_BTT: Tensor, distance_TT: Tensor, *, last_only: bool) -> Tensor:
        """One block.

        Args:
            x_BTH: float32 tokens.
            visible_BTT: bool, may position (row) see position (column).
            distance_TT: int64, how far back the column lies, clipped at 0.
            last_only: answer for the last position alone; the last block of serving needs no other.

        Returns:
            float32 [B, T, H], or [B, 1, H].
        """
        batch, _, width = x_BTH.shape
        normed_BTH = self.attention_norm(x_BTH)
        key_BTH, value_BTH = self.key_value(normed_BTH).split(width, dim=-1)
        bias_GTT = self.distance_GT[:, distance_TT]
        if last_only:
            x_BTH, normed_BTH = x_BTH[:, -1:], normed_BTH[:, -1:]
            visible_BTT, bias_GTT = visible_BTT[:, -1:], bias_GTT[:, -1:]
        query_BGTh = self._split(self.query(normed_BTH) * (1.0 / math.sqrt(width / self.heads)))
        logits_BGTT = torch.matmul(query_BGTh, self._split(key_BTH).transpose(2, 3)) + bias_GTT
        masked = torch.full((1, 1, 1, 1), MASKED_LOGIT, device=logits_BGTT.device)
        shares_BGTT = torch.softmax(torch.where(visible_BTT.unsqueeze(1), logits_BGTT, masked), dim=-1)
        mixed_BTH = torch.matmul(shares_BGTT, self._split(value_BTH)).transpose(1, 2).reshape(batch, -1, width)
        x_BTH = x_BTH + self.dropout(self.out(mixed_BTH))
        y_BTH: Tensor = x_BTH + self.dropout(self.feed(self.feed_norm(x_BTH)))
        return y_BTH


class SequenceModel(nn.Module):
    """History -> user vector; its dot product with an item's token is the item's score.

    Also, with `use_item_vectors=False`, the ID-only baseline.
    """

    def __init__(self, item_vectors_NE: Tensor, settings: SequenceSettings) -> None:
        super().__init__()
        self.settings = settings
        self.items = ItemTokens(item_vectors_NE, settings)
        self.actions = nn.Embedding(contract.N_ACTIONS, settings.width)
        nn.init.normal_(self.actions.weight, std=0.02)
        self.gaps = nn.Linear(len(contract.GAP_STEPS_S), settings.width, bias=False)
        nn.init.normal_(self.gaps.weight, std=0.02)
        self.register_buffer("gap_steps_Z", torch.tensor(contract.GAP_STEPS_S), persistent=False)
        self.input_norm = nn.LayerNorm(settings.width)
        self.input_dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.out_norm = nn.LayerNorm(settings.width)

    def forward(self, rows_BT: Tensor, actions_BT: Tensor, ages_s_BT: Tensor, *, last_only: bool = False) -> Tensor:
        """User vectors after each behaviour.

        Args:
            rows_BT: int32, oldest first, `PAD_ROW` at the start of short rows; T <= `contract.WINDOW`.
            actions_BT: int32.
            ages_s_BT: float32, seconds; only differences matter.
            last_only: only after the last behaviour.

        Returns:
            float32 [B, T, H] (or [B, 1, H]); zeros at padding.
        """
        length = rows_BT.shape[1]
        real_BT = rows_BT != contract.PAD_ROW
        gaps_s_BT = F.pad(ages_s_BT[:, :-1] - ages_s_BT[:, 1:], (1, 0))
        gap_code_BTZ = (gaps_s_BT.unsqueeze(-1) >= cast(Tensor, self.gap_steps_Z)).float()
        x_BTH = self.items(rows_BT) + self.actions(actions_BT) + self.gaps(gap_code_BTZ)
        x_BTH = self.input_dropout(self.input_norm(x_BTH))
        place_T = torch.arange(length, device=rows_BT.device)
        distance_TT = place_T.unsqueeze(1) - place_T.unsqueeze(0)
        visible_BTT = (distance_TT >= 0).unsqueeze(0) & real_BT.unsqueeze(1)
        distance_TT = distance_TT.clamp(min=0)
        for number, block in enumerate(self.blocks, start=1):
            x_BTH = block(x_BTH, visible_BTT, distance_TT, last_only=last_only and number == len(self.blocks))
        if last_only:
            real_BT = real_BT[:, -1:]
        y_BTH: Tensor = scaled(self.out_norm(x_BTH), self.settings.temperature) * real_BT.unsqueeze(-1).float()
        return y_BTH

    def redraw(self, rng: np.random.Generator) -> None:
        """Draw anew which items are seen without their ids; once a training step."""
        self.items.ids.redraw(rng)

    def user_vector(self, rows_BL: Tensor, actions_BL: Tensor, ages_s_BL: Tensor) -> Tensor:
        """The user's vector now, from histories padded at the end (as the lookup step pads them).

        Args:
            rows_BL: int32, oldest first.
            actions_BL: int32.
            ages_s_BL: float32, seconds.

        Returns:
            float32 [B, H]; zeros for an empty history.
        """
        length, window = rows_BL.shape[1], contract.WINDOW
        place_L = torch.arange(1, length + 1, dtype=torch.int32, device=rows_BL.device)
        last_B1 = ((rows_BL != contract.PAD_ROW).int() * place_L).amax(1, keepdim=True) - 1
        index_BT = last_B1 + torch.arange(1 - window, 1, dtype=torch.int32, device=rows_BL.device)
        inside_BT = (index_BT >= 0).int()
        safe_BT = index_BT * inside_BT
        rows_BT = gather_rows(rows_BL.unsqueeze(-1), safe_BT)[..., 0] * inside_BT
        actions_BT = gather_rows(actions_BL.unsqueeze(-1), safe_BT)[..., 0] * inside_BT
        ages_s_BT = gather_rows(ages_s_BL.unsqueeze(-1), safe_BT)[..., 0]
        user_BH: Tensor = self(rows_BT, actions_BT, ages_s_BT, last_only=True)[:, 0]
        return user_BH

    def score(self, user_BH: Tensor, candidate_rows_BC: Tensor) -> Tensor:
        """Dot products of user vectors with candidate tokens; float32 [B, C]."""
        return torch.matmul(self.items(candidate_rows_BC), user_BH.unsqueeze(-1))[..., 0]
