"""The whole of training the shipped intent model: data, tokenizer, network, accuracy, checkpoint, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from airserve.artifacts import LM_CARD_FILE, LM_REPORT_FILE
from airserve.contract import CONTRACT_VERSION
from airserve.files import write_json, write_text
from airserve.intents.prompt import PROMPT_VERSION, prefix
from airserve.lm import export
from airserve.lm.evaluation import Accuracy, accuracy
from airserve.lm.examples import KINDS, ExampleWriter, encode
from airserve.lm.network import IntentNetwork, NetworkSettings
from airserve.lm.tokenizer import AnswerCodec, TokenizerSettings, build_tokenizer
from airserve.lm.training import Trainer, TrainingSettings
from airserve.world.ontology import Ontology

TOKENIZER_TITLES = 30_000
TARGET_LEAF_ACCURACY = 0.9


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """All settings of one training job."""

    training: TrainingSettings = field(default_factory=TrainingSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    hidden_size: int = 192
    layers: int = 4
    evaluation_titles: int = 2_000
    """Held-out titles of each kind to report on."""
    command: str = ""
    """The command line, for the report."""

    def __post_init__(self) -> None:
        if self.evaluation_titles < 1 or self.hidden_size < 64 or self.layers < 1:
            raise ValueError(f"job settings: expected positive sizes and a width of at least 64, got {self}")


def train_intent_model(
    ontology: Ontology, out: Path, settings: JobSettings, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Train, evaluate and save the intent model; returns what `report.json` holds.

    Args:
        out: folder of the checkpoint, created if missing.
        checkpoint: state of an unfinished run to go on with, see `Trainer`; removed at the end.
    """
    start = time.monotonic()
    seed = settings.training.seed
    torch.manual_seed(seed)
    writer = ExampleWriter(ontology)
    titles = [example.title for example in writer.training(seed, -1, TOKENIZER_TITLES)]
    tokenizer = build_tokenizer(titles, ontology.nodes, settings.tokenizer)
    codec = AnswerCodec(tokenizer, ontology.nodes)
    prefix_ids: list[int] = tokenizer(prefix(), add_special_tokens=False)["input_ids"]
    sizes = NetworkSettings(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        layers=settings.layers,
        heads=settings.hidden_size // 64,
    )
    network = IntentNetwork(sizes, prefix_ids)
    result = Trainer(network, writer, tokenizer, codec, settings.training, checkpoint).run()
    held_out = {kind: writer.evaluation(seed, settings.evaluation_titles, kind) for kind in KINDS}
    unseen_writer = ExampleWriter(ontology, "unseen")
    unseen = {kind: unseen_writer.evaluation(seed, settings.evaluation_titles // 2, kind) for kind in KINDS}
    found = {
        **{f"{kind}_titles": accuracy(network, examples, tokenizer, codec) for kind, examples in held_out.items()},
        **{f"{kind}_unseen_wordings": accuracy(network, rows, tokenizer, codec) for kind, rows in unseen.items()},
    }
    probes = [row.query_ids for row in encode(held_out["product"][:8], tokenizer, codec)]
    difference = export.save(network, tokenizer, codec.end_id, probes, out)
    both = [found[f"{kind}_titles"] for kind in KINDS]
    report = {
        "leaf_accuracy": round(sum(a.leaf * a.titles for a in both) / sum(a.titles for a in both), 4),
        "target": TARGET_LEAF_ACCURACY,
        "accuracy": {name: asdict(value) for name, value in found.items()},
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "vocabulary": len(tokenizer),
        "prefix_tokens": len(prefix_ids),
        "leaves": len(ontology.leaves),
        "training": asdict(result),
        "seconds": round(time.monotonic() - start, 1),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "command": settings.command,
        "logit_difference": round(difference, 6),
        "prompt_version": PROMPT_VERSION,
        "contract_version": CONTRACT_VERSION,
        "torch": torch.__version__,
    }
    write_report(report, out)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return report


def write_report(report: Mapping[str, Any], out: Path) -> None:
    """Write `report.json` and `REPORT.md` into the model's folder."""
    write_json(out / LM_REPORT_FILE, report)
    write_text(out / LM_CARD_FILE, render_report(report))


def render_report(report: Mapping[str, Any]) -> str:
    """Return the model's card in Markdown."""
    found = {name: Accuracy(**values) for name, values in report["accuracy"].items()}
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {a.titles} | {a.domain:.1%} | {a.category:.1%} | {a.leaf:.1%} | {a.answer:.1%} |"
        for name, a in found.items()
    )
    return f"""# The shipped intent model

A Qwen3-shaped language model of {report["parameters"] / 1e6:.1f} million parameters (bf16) that answers the prompt
`{report["prompt_version"]}` for the {report["leaves"]} leaf intents of the project's ontology. It exists so that the
whole pipeline runs without a model hub; for real shops use a real model, e.g. `Qwen/Qwen3-4B`.

Leaf accuracy on titles that it never saw: **{report["leaf_accuracy"]:.1%}** (target {report["target"]:.0%}).

| titles | count | domain right | and category | and leaf | whole answer |
|---|---|---|---|---|---|
{rows}

- *product / content titles*: synthetic titles held out of training by their hash, made of wordings that training used
  in other titles. *Unseen wordings*: titles made of the product phrases and video lines (about a tenth) that training
  never used in any title; a small model has no world knowledge to bridge these, video lines least of all.
- Greedy answers; *whole answer* counts all paths, those of like, cart and order have two.
- The accuracy on people's own titles is lower; see `docs/LOG.md`.
- Trained {report["training"]["seconds"]:.0f} s, {report["training"]["steps"]} steps, {report["training"]["rows"]} rows,
  {report["threads"]} threads, seed {report["seed"]}; all of the job took {report["seconds"]:.0f} s:

      {report["command"]}

  The schedule follows the clock; `--steps {report["training"]["steps"]}` trains as long on a machine of any speed.
- Largest difference of its fp32 logits to `Qwen3ForCausalLM` on full prompts: {report["logit_difference"]:.1e}.
- Prompt prefix: {report["prefix_tokens"]} tokens; an answer takes 6 (one path) or 10 (two paths).
"""
