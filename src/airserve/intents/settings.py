"""Settings of the generation job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airserve.errors import UserError

ENGINES = ("vllm", "openai", "ray")
APIS = ("chat", "completions")


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
    engine: str = "vllm"
    """`vllm` (in worker processes here), `ray` (vLLM in Ray actors) or `openai` (any OpenAI-compatible server)."""
    base_url: str = "http://localhost:8000/v1"
    """Of the server (openai only)."""
    api: str = "chat"
    """`chat`, or `completions` for a model without a chat template, such as the shipped one (openai only)."""
    served_model: str = ""
    """The model's name on the server where it is not `model` (openai only)."""
    vllm_extras: bool = True
    """Send vLLM's own fields: thinking off, structured completions. Other servers may refuse them (openai only)."""
    concurrency: int = 32
    """Requests in flight, of each worker (openai only)."""
    timeout_s: float = 120.0
    """Of one request (openai only)."""
    http_tries: int = 8
    """A server that is busy or away is asked this often, with pauses that double (openai only)."""
    ray_address: str = ""
    """A Ray cluster, `auto` or `host:port`; empty starts one on this machine (ray only)."""
    ray_cpus: float = 1
    """CPUs that Ray reserves for an actor (ray only)."""
    ray_gpus: float = 0
    """GPUs of an actor; 0.5 puts two on one (ray only)."""
    ask_refused: bool = False
    """Ask prompts again that the engine refused in an earlier run; else they stay dead letters."""
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
            "concurrency",
            "http_tries",
        ):
            if getattr(self, name) < 1:
                raise UserError(name, expected="at least 1", got=str(getattr(self, name)), remedy="raise it")
        for name in ("kv_cache_mib", "max_restarts", "retry_temperature", "ray_cpus", "ray_gpus"):
            if not getattr(self, name) >= 0:
                raise UserError(name, expected="at least 0", got=str(getattr(self, name)), remedy="raise it")
        for name, known in (("engine", ENGINES), ("api", APIS)):
            if getattr(self, name) not in known:
                raise UserError(
                    name, expected=f"one of {', '.join(known)}", got=getattr(self, name), remedy="choose one"
                )
        if not self.timeout_s > 0:
            raise UserError("timeout_s", expected="more than 0", got=str(self.timeout_s), remedy="raise it")
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
