"""Settings of the generation job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airserve.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """How a language model is asked for atomic intents.

    The defaults are for a small model on two CPU cores; with a GPU, one worker and vLLM's own choices are taken for
    what only concerns CPUs (see each field).
    """

    model: str
    """A folder with a Hugging Face checkpoint, or a name on a hub; in production `Qwen/Qwen3-4B`."""
    workers: int = 2
    """vLLM processes, each with its own copy of the model; on a GPU one."""
    chunk: int = 1024
    """Prompts handed to a worker at a time; each becomes one file that a later run can reuse."""
    max_output_tokens: int = 192
    """An answer that is longer is cut off, and so invalid."""
    retry_temperature: float = 0.3
    """Invalid answers are asked for once more at this temperature; 0 never asks again."""
    max_num_seqs: int = 256
    """Prompts decoded together."""
    max_num_batched_tokens: int = 8192
    """Tokens in one step of the engine."""
    max_model_len: int = 2048
    """Tokens of prompt and answer together; less where the model has less."""
    omp_threads: int = 1
    """OpenMP threads a worker (CPU only). More workers are faster than more threads."""
    block_size: int = 32
    """Tokens in a block of the KV cache (CPU only); the smallest that vLLM's CPU attention takes."""
    kv_cache_mib: int = 0
    """Memory of the KV cache (CPU only); 0 has room for 32 full-length prompts, 256 MiB to 4 GiB."""
    seed: int = 0
    """Of the engine and of the second try."""
    max_restarts: int = 8
    """Failed workers are restarted this often in all, on half the chunk, to isolate a prompt that breaks the engine."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("model", expected="a folder or a name on a hub", got="nothing", remedy="name one")
        for name in (
            "workers",
            "chunk",
            "max_output_tokens",
            "max_num_seqs",
            "max_num_batched_tokens",
            "omp_threads",
            "block_size",
        ):
            if getattr(self, name) < 1:
                raise UserError(name, expected="at least 1", got=str(getattr(self, name)), remedy="raise it")
        for name in ("kv_cache_mib", "max_restarts", "retry_temperature"):
            if not getattr(self, name) >= 0:
                raise UserError(name, expected="at least 0", got=str(getattr(self, name)), remedy="raise it")
        if self.max_output_tokens >= self.max_model_len:
            raise UserError(
                "max_output_tokens",
                expected=f"less than max_model_len ({self.max_model_len})",
                got=str(self.max_output_tokens),
                remedy="leave room for the prompt",
            )

    @property
    def is_local(self) -> bool:
        """True where `model` is a folder on this machine: then no hub is ever contacted."""
        return Path(self.model).is_dir()
