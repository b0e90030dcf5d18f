"""The trained network as a checkpoint that transformers and vLLM load: `Qwen3ForCausalLM`, bf16 safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from airserve.artifacts import CHECKPOINT_CONFIG_FILE
from airserve.errors import ArtifactError
from airserve.files import atomic_files
from airserve.lm.network import IntentNetwork, NetworkSettings

MAX_POSITIONS = 1024
LOGIT_TOLERANCE = 2e-3
"""Largest fp32 difference allowed to `Qwen3ForCausalLM`; sums run in another order."""


def to_transformers(network: IntentNetwork, end_id: int) -> Qwen3ForCausalLM:
    """Return the same model as transformers' Qwen3, fp32."""
    s = network.settings
    config = Qwen3Config(
        vocab_size=s.vocab_size,
        hidden_size=s.hidden_size,
        intermediate_size=s.intermediate_size,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta},
        rms_norm_eps=s.norm_eps,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    model = Qwen3ForCausalLM(config).eval()
    found = model.load_state_dict(network.state_dict(), strict=False)
    if found.unexpected_keys or set(found.missing_keys) - {"lm_head.weight"}:
        raise AssertionError(f"parameter names differ: {found}")
    model.tie_weights()
    return model


@torch.inference_mode()
def logit_difference(network: IntentNetwork, model: Qwen3ForCausalLM, query_ids: list[list[int]]) -> float:
    """Return the largest difference of the last position's logits between both, on full prompts."""
    past = network.prefix_cache()
    worst = 0.0
    for ids in query_ids:
        ours = network.logits(network.hidden(torch.tensor([ids]), past)[0][:, -1])
        theirs = model(input_ids=torch.tensor([network.prefix_ids + ids])).logits[:, -1]
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def save(
    network: IntentNetwork, tokenizer: PreTrainedTokenizerFast, end_id: int, probes: list[list[int]], out: Path
) -> float:
    """Write checkpoint and tokenizer into a folder; each file appears whole or not at all.

    Args:
        probes: query token ids to compare with `Qwen3ForCausalLM` before anything is written.

    Returns:
        The largest logit difference found.

    Raises:
        ArtifactError: if the logits differ by more than `LOGIT_TOLERANCE`.
    """
    model = to_transformers(network, end_id)
    difference = logit_difference(network, model, probes)
    if difference > LOGIT_TOLERANCE:
        raise ArtifactError(
            "exported model",
            expected=f"Qwen3ForCausalLM's logits within {LOGIT_TOLERANCE}",
            got=f"a difference of {difference:.4f}",
            remedy="compare network.py with the installed transformers",
        )
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=end_id, pad_token_id=end_id, do_sample=False)
    with atomic_files(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return difference


def load(folder: Path, prefix_ids: list[int]) -> IntentNetwork:
    """Load a checkpoint that `save` wrote, fp32.

    Raises:
        ArtifactError: if the folder holds no such checkpoint.
    """
    if not (folder / CHECKPOINT_CONFIG_FILE).exists():
        raise ArtifactError(
            str(folder),
            expected="a trained intent model",
            got=f"no {CHECKPOINT_CONFIG_FILE}",
            remedy="run train_intent_lm.py",
        )
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    c = model.config
    settings = NetworkSettings(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        layers=c.num_hidden_layers,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        intermediate_size=c.intermediate_size,
        rope_theta=c.rope_parameters["rope_theta"],
        norm_eps=c.rms_norm_eps,
    )
    network = IntentNetwork(settings, prefix_ids).eval()
    network.load_state_dict({name: value for name, value in model.state_dict().items() if name != "lm_head.weight"})
    return network
