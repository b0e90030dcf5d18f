"""Training of the intent model on examples that are made on the fly; loss on the answer's tokens only.

What limits it on a CPU is the matrix products of about 35 tokens a row; bf16 autocast halves their time where the CPU
has such instructions. Matrices are trained with Muon, embeddings and norms with AdamW, both under one cosine schedule,
over a number of steps or a budget of minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from airserve.errors import ArtifactError
from airserve.files import atomic_stream
from airserve.lm.examples import ExampleWriter, Row, encode
from airserve.lm.network import IntentNetwork
from airserve.lm.tokenizer import AnswerCodec
from airserve.progress import Progress

SAVE_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast to train."""

    minutes: float = 20.0
    """Budget of the loop; the schedule follows the clock. Not used when `steps` is given."""
    steps: int = 0
    """Fixed number of steps, which makes a run repeatable; 0 for a budget of minutes."""
    seed: int = 0
    batch_rows: int = 128
    chunk_rows: int = 8192
    """Rows made and sorted by length at a time."""
    adam_lr: float = 5e-3
    muon_lr: float = 4e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.03
    prefix_from_share: float = 0.75
    """From here on every step sees the prompt's prefix; before, only one step in `prefix_every` does, which is cheaper
    and lets the network learn words before it learns to overlook 290 constant tokens."""
    prefix_every: int = 8
    plain_shares: tuple[float, float] = (0.85, 0.15)
    """Share of bare nouns and lines at the start, and from half of the run on; linear in between."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.steps < 0 or self.batch_rows < 1 or self.chunk_rows < self.batch_rows:
            raise ValueError(f"training settings: expected positive sizes and a chunk of at least a batch, got {self}")


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run did."""

    steps: int
    rows: int
    seconds: float
    """Time in the loop, over all resumed parts."""
    last_loss: float
    """Mean answer-token loss of the last steps, nats."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as tensors."""

    ids: Tensor
    """int64 [B, T], right-padded."""
    asked: Tensor
    """int64 [N], flat positions whose next token belongs to an answer."""
    targets: Tensor
    """int64 [N], those next tokens."""
    row_of: Tensor
    """int64 [N], the row of each."""


def collate(rows: list[Row], pad_id: int) -> Batch:
    """Pad rows and mark the positions that predict answer tokens."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    asked: list[int] = []
    targets: list[int] = []
    row_of: list[int] = []
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row.query_ids + row.answer_ids)
        first = number * longest + len(row.query_ids) - 1
        asked.extend(range(first, first + len(row.answer_ids)))
        targets.extend(row.answer_ids)
        row_of.extend([number] * len(row.answer_ids))
    return Batch(ids=ids, asked=torch.tensor(asked), targets=torch.tensor(targets), row_of=torch.tensor(row_of))


def answer_logits(network: IntentNetwork, batch: Batch, *, with_prefix: bool = True) -> Tensor:
    """Return logits [N, vocabulary] of the positions that predict answer tokens."""
    past = network.prefix_cache() if with_prefix else None
    hidden, _ = network.hidden(batch.ids, past, batch.asked)
    return network.logits(hidden)


class Trainer:
    """One resumable training run.

    Args:
        checkpoint: file that holds the run's state between processes; None keeps none.
    """

    def __init__(
        self,
        network: IntentNetwork,
        writer: ExampleWriter,
        tokenizer: PreTrainedTokenizerFast,
        codec: AnswerCodec,
        settings: TrainingSettings,
        checkpoint: Path | None = None,
    ) -> None:
        self.network, self.writer, self.tokenizer, self.codec = network, writer, tokenizer, codec
        self.settings, self.checkpoint = settings, checkpoint
        matrices = [weights for weights in network.model.layers.parameters() if weights.ndim == 2]
        others = [weights for weights in network.parameters() if not any(weights is matrix for matrix in matrices)]
        s = settings
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=s.muon_lr, weight_decay=s.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=s.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        self.peaks = [s.muon_lr, s.adam_lr]
        self.step, self.rows, self.spent_s, self.loss = 0, 0, 0.0, float("nan")
        self.plain_share = settings.plain_shares[0]
        """Of the chunk at work; kept with the run's state, so that a resumed run makes the same chunk again."""
        self._since = time.monotonic()

    def _batches(self) -> Iterator[list[Row]]:
        """All batches of all chunks from the current step on."""
        s = self.settings
        per_chunk = s.chunk_rows // s.batch_rows
        while True:
            chunk, done = divmod(self.step, per_chunk)
            if not done:
                self.plain_share = self._plain_share()
            examples = self.writer.training(s.seed, chunk, s.chunk_rows, self.plain_share)
            rows = encode(examples, self.tokenizer, self.codec)
            rows.sort(key=len)
            batches = [rows[number * s.batch_rows : (number + 1) * s.batch_rows] for number in range(per_chunk)]
            Random(f"order-{s.seed}-{chunk}").shuffle(batches)
            yield from batches[done:]

    def _plain_share(self) -> float:
        first, last = self.settings.plain_shares
        return first + (last - first) * min(1.0, 2 * self._share())

    def _share(self) -> float:
        """How much of the run is over."""
        if self.settings.steps:
            return self.step / self.settings.steps
        return (self.spent_s + time.monotonic() - self._since) / (60 * self.settings.minutes)

    def run(self) -> TrainingResult:
        """Train to the end of the budget; picks up a checkpoint of the same run."""
        self._load()
        self.network.train()
        self._since = saved = time.monotonic()
        units = self.settings.steps or round(60 * self.settings.minutes)
        shown = 0
        with Progress("training", units, "steps" if self.settings.steps else "s") as progress:
            for rows in self._batches():
                share = self._share()
                if share >= 1:
                    break
                self._advance(rows, share)
                reached = round(units * self._share())
                progress.advance(reached - shown, f"loss {self.loss:.4f} step {self.step}")
                shown = reached
                if time.monotonic() - saved > SAVE_EVERY_S:
                    saved = time.monotonic()
                    self._save(self.spent_s + saved - self._since)
        self.spent_s += time.monotonic() - self._since
        self.network.eval()
        return TrainingResult(steps=self.step, rows=self.rows, seconds=round(self.spent_s, 1), last_loss=self.loss)

    def _advance(self, rows: list[Row], share: float) -> None:
        warm = min(1.0, (share + 1e-4) / self.settings.warmup_share)
        factor = warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        batch = collate(rows, self.codec.end_id)
        with_prefix = share >= self.settings.prefix_from_share or self.step % self.settings.prefix_every == 0
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(answer_logits(self.network, batch, with_prefix=with_prefix), batch.targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        self.loss = value if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * value
        self.step, self.rows = self.step + 1, self.rows + len(rows)

    def _identity(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "network": asdict(self.network.settings)}

    def _save(self, spent_s: float) -> None:
        if self.checkpoint is None:
            return
        state = {
            "identity": self._identity(),
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": {
                "step": self.step,
                "rows": self.rows,
                "spent_s": spent_s,
                "loss": self.loss,
                "plain_share": self.plain_share,
            },
        }
        with atomic_stream(self.checkpoint) as stream:
            torch.save(state, stream)

    def _load(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["identity"] != self._identity():
            raise ArtifactError(
                str(self.checkpoint),
                expected=f"a checkpoint of this run, {self._identity()}",
                got=str(state["identity"]),
                remedy="delete it to start anew, or repeat the settings it was made with",
            )
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done = state["progress"]
        self.step, self.rows, self.spent_s = done["step"], done["rows"], done["spent_s"]
        self.loss, self.plain_share = done["loss"], done["plain_share"]
