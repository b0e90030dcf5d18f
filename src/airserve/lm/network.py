"""Qwen3's forward pass, written out so that one constant prompt prefix is computed once for a whole batch.

A prompt is a prefix of about 280 tokens that never changes and about 35 tokens that do. Here the prefix runs as a batch
of one, and every row attends to the same keys and values; a plain forward would spend nine tenths of
its time on the prefix. Parameters carry the names of `Qwen3ForCausalLM`, which loads them as they are.

Shapes: B rows, T tokens of a row, P tokens of the prefix, E width, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, [B, G, T, D] each; also a pair of cosines and sines, [T, D] each."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Sizes of the network."""

    vocab_size: int
    hidden_size: int = 192
    layers: int = 4
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 64
    """vLLM's CPU attention takes 64 and 128, among others."""
    intermediate_size: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"heads: expected a multiple of kv_heads={self.kv_heads} and an even head_dim, got {self.heads} and "
                f"{self.head_dim}; change one"
            )


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; the dtype is kept."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


def _rotate(x_BNTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    first, second = x_BNTD.chunk(2, dim=-1)
    cos_TD, sin_TD = cos_TD.to(x_BNTD.dtype), sin_TD.to(x_BNTD.dtype)
    return x_BNTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys; rows share the prefix's keys and values."""

    def __init__(self, s: NetworkSettings) -> None:
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.hidden_size, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden_size, bias=False)
        self.q_norm = RMSNorm(s.head_dim, s.norm_eps)
        self.k_norm = RMSNorm(s.head_dim, s.norm_eps)

    def forward(self, x_BTE: Tensor, rope: KeyValue, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """Attend causally to the row itself and fully to `past`, keys and values of a batch of one."""
        batch, length, _ = x_BTE.shape
        s = self.s
        q = self.q_norm(self.q_proj(x_BTE).view(batch, length, s.heads, s.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x_BTE).view(batch, length, s.kv_heads, s.head_dim)).transpose(1, 2)
        v = self.v_proj(x_BTE).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = _rotate(q, *rope), _rotate(k, *rope)
        scores = self._scores(q, k).masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        if past is not None:
            scores = torch.cat((self._scores(q, past[0]), scores), dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        y = self._blend(weights[..., -length:], v)
        if past is not None:
            y = y + self._blend(weights[..., :-length], past[1])
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1)), (k, v)

    def _scores(self, q_BHTD: Tensor, k_BGTD: Tensor) -> Tensor:
        """Scaled products; keys of a batch of one meet all rows in one matrix product."""
        batch, heads, length, width = q_BHTD.shape
        groups, keys = k_BGTD.shape[1], k_BGTD.shape[2]
        q_BHTD = q_BHTD * width**-0.5
        if k_BGTD.shape[0] == batch:
            q = q_BHTD.reshape(batch * groups, -1, width)
            return (q @ k_BGTD.reshape(batch * groups, keys, width).mT).view(batch, heads, length, keys)
        q = q_BHTD.reshape(batch, groups, -1, width).transpose(0, 1).reshape(groups, -1, width)
        return (q @ k_BGTD[0].mT).view(groups, batch, -1, keys).transpose(0, 1).reshape(batch, heads, length, keys)

    def _blend(self, weights_BHTK: Tensor, v_BGKD: Tensor) -> Tensor:
        batch, heads, length, keys = weights_BHTK.shape
        groups, width = v_BGKD.shape[1], v_BGKD.shape[3]
        if v_BGKD.shape[0] == batch:
            w = weights_BHTK.reshape(batch * groups, -1, keys)
            return (w @ v_BGKD.reshape(batch * groups, keys, width)).view(batch, heads, length, width)
        w = weights_BHTK.reshape(batch, groups, -1, keys).transpose(0, 1).reshape(groups, -1, keys)
        return (w @ v_BGKD[0]).view(groups, batch, -1, width).transpose(0, 1).reshape(batch, heads, length, width)


class MLP(nn.Module):
    """Gated feed-forward."""

    def __init__(self, s: NetworkSettings) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position on its own."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, s: NetworkSettings) -> None:
        super().__init__()
        self.self_attn = Attention(s)
        self.mlp = MLP(s)
        self.input_layernorm = RMSNorm(s.hidden_size, s.norm_eps)
        self.post_attention_layernorm = RMSNorm(s.hidden_size, s.norm_eps)

    def forward(
        self, x_BTE: Tensor, rope: KeyValue, past: KeyValue | None, asked: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Return the layer's output and its keys and values; only of the flat positions `asked`, if given."""
        y, present = self.self_attn(self.input_layernorm(x_BTE), rope, past)
        x = x_BTE + y if asked is None else (x_BTE + y).flatten(0, 1)[asked]
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Decoder(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, s: NetworkSettings) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = RMSNorm(s.hidden_size, s.norm_eps)


class IntentNetwork(nn.Module):
    """A Qwen3 language model with tied embeddings.

    Args:
        settings: the sizes.
        prefix_ids: tokens of the constant prompt prefix.
    """

    def __init__(self, settings: NetworkSettings, prefix_ids: list[int]) -> None:
        super().__init__()
        self.settings = settings
        self.prefix_ids = prefix_ids
        self.model = Decoder(settings)
        deep = (2 * settings.layers) ** -0.5
        for name, weights in self.named_parameters():
            if weights.ndim == 2:
                scale = deep if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weights, std=0.02 * scale if "embed" in name else scale * weights.shape[1] ** -0.5)

    def _rope(self, start: int, length: int) -> KeyValue:
        s = self.settings
        rates = s.rope_theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        angles = torch.outer(torch.arange(start, start + length).float(), rates).repeat(1, 2)
        return angles.cos(), angles.sin()

    def hidden(
        self, ids_BT: Tensor, past: list[KeyValue] | None, asked: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Return the last hidden states [B, T, E] and every layer's keys and values of these tokens.

        Args:
            ids_BT: int64 token ids, right-padded; what stands behind the padding must be ignored.
            past: what `prefix_cache` gave, None for the prefix itself.
            asked: flat positions [N] in `ids_BT`; the states are then [N, E], of these positions only.
        """
        start = 0 if past is None else past[0][0].shape[2]
        rope = self._rope(start, ids_BT.shape[1])
        x = self.model.embed_tokens(ids_BT)
        presents: list[KeyValue] = []
        last = len(self.model.layers) - 1
        for number, layer in enumerate(self.model.layers):
            before = None if past is None else past[number]
            x, present = layer(x, rope, before, asked if number == last else None)
            presents.append(present)
        return self.model.norm(x), presents

    @torch.no_grad()
    def prefix_cache(self) -> list[KeyValue]:
        """Return the prefix's keys and values, a batch of one, without gradients: rows alone train the weights."""
        return self.hidden(torch.tensor([self.prefix_ids]), None)[1]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the vocabulary's logits of hidden states, fp32."""
        return F.linear(hidden, self.model.embed_tokens.weight).float()
