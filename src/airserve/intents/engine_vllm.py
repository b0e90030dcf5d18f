"""vLLM in this process: prompts in, checked answers out.

vLLM is imported when an engine is made, after its environment is set. Answers are greedy and bound to the answer schema
by xgrammar; they are decoded here in one go, because vLLM's token-by-token detokenisation costs more than a small
model. What limits a small model on a CPU is the engine's Python work per token and attention over the prompt's constant
prefix; the prefix itself is computed once (prefix cache).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from airserve.errors import EngineError
from airserve.intents.answers import Answer
from airserve.intents.engines import Question, Report, checked, failed, most_refused, second_try
from airserve.intents.prompt import messages, render
from airserve.intents.schema import ANSWER_SCHEMA
from airserve.intents.settings import GenerateSettings

MIB = 1 << 20
ROOM_FOR = 32
"""Full-length prompts that the KV cache holds by default, on a CPU."""
GPU_MEMORY_SHARE = 0.9


def set_environment(settings: GenerateSettings) -> None:
    """Set what vLLM and torch read at import; call before either is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # vLLM would pin every worker's thread to the same core.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(settings.omp_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Torch tells on stderr how memory is bound to NUMA nodes, and that Triton, which no CPU needs, is not there.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    if settings.is_local:
        os.environ["HF_HUB_OFFLINE"] = "1"


def vllm_version() -> str | None:
    """Return the installed vLLM's version, None where there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


class VllmEngine:
    """One vLLM engine.

    Args:
        settings: of the job.
        overrides: further arguments of `vllm.LLM`, which win.

    Raises:
        EngineError: if vLLM cannot be imported or does not start with this model.
    """

    def __init__(self, settings: GenerateSettings, **overrides: Any) -> None:
        set_environment(settings)
        self.settings = settings
        try:
            from vllm import LLM

            arguments = {**_engine_arguments(settings), **overrides}
            self.llm: Any = LLM(settings.model, **arguments)
            self.tokenizer: Any = self.llm.get_tokenizer()
            self.max_prompt_tokens: int = self.llm.model_config.max_model_len - settings.max_output_tokens
        except Exception as error:
            raise EngineError(f"vLLM with {settings.model}: did not start: {type(error).__name__}: {error}") from error
        self.is_chat = bool(getattr(self.tokenizer, "chat_template", None))

    def prompt_tokens(self, question: Question) -> list[int]:
        """Tokenise one prompt; where it does not fit, the title is cut.

        Raises:
            EngineError: if not even a prompt without a title fits.
        """
        title = question.title
        while True:
            ids = self._tokenise(question, title)
            if len(ids) <= self.max_prompt_tokens:
                return ids
            if not title:
                raise EngineError(
                    f"max_model_len: the prompt without a title takes {len(ids)} tokens, at most "
                    f"{self.max_prompt_tokens} fit; raise max_model_len or lower max_output_tokens"
                )
            title = title[: len(title) // 2]

    def chat_tokens(self, said: list[dict[str, str]]) -> list[int]:
        """Tokenise messages by the model's chat template, thinking off."""
        encoded = self.tokenizer.apply_chat_template(
            said, add_generation_prompt=True, enable_thinking=False, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def answer(self, questions: Sequence[Question], report: Report | None = None) -> list[Answer]:
        """Answer every question, in order; an invalid answer is asked for once more.

        A prompt that vLLM refuses harms no other: the chunk is halved in this process until the prompt is alone.

        Args:
            questions: a chunk.
            report: told of progress.

        Raises:
            EngineError: if most of a chunk fails: then it is the engine that is broken.
        """
        prompts = [self.prompt_tokens(question) for question in questions]
        answers = self._isolated(prompts, 0.0, report)
        if said := most_refused(answers):
            raise EngineError(f"vLLM: {said}")
        again = [place for place, answer in enumerate(answers) if not answer.valid and not answer.error]
        if again and self.settings.retry_temperature > 0:
            second = self._isolated([prompts[place] for place in again], self.settings.retry_temperature, None)
            for place, answer in zip(again, second, strict=True):
                answers[place] = answers[place] if answer.error else second_try(answers[place], answer)
        return answers

    def _isolated(self, prompts: Sequence[list[int]], temperature: float, report: Report | None) -> list[Answer]:
        try:
            return self.complete(prompts, temperature=temperature, report=report)
        except Exception as error:
            if type(error).__name__ == "EngineDeadError":
                raise
            self._drop_pending()
            if len(prompts) == 1:
                return [failed(error)]
        middle = len(prompts) // 2
        return self._isolated(prompts[:middle], temperature, report) + self._isolated(
            prompts[middle:], temperature, report
        )

    def _drop_pending(self) -> None:
        """Take back what a failed `generate` left in the engine, or the next call would answer it too."""
        engine = self.llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)

    def complete(
        self, prompts: Sequence[list[int]], *, temperature: float = 0.0, report: Report | None = None
    ) -> list[Answer]:
        """Answer tokenised prompts once, in order.

        Args:
            prompts: token ids.
            temperature: 0 is greedy.
            report: told of progress.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        sampling = SamplingParams(
            temperature=temperature,
            max_tokens=self.settings.max_output_tokens,
            seed=self.settings.seed if temperature else None,
            detokenize=False,
            structured_outputs=StructuredOutputsParams(json=ANSWER_SCHEMA),
            skip_clone=True,
        )
        bar = _bar_class(report) if report else False
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=bar)
        tokens = [output.outputs[0].token_ids for output in outputs]
        raws = self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [
            checked(raw, len(output.prompt_token_ids), output.num_cached_tokens or 0, len(ids))
            for raw, output, ids in zip(raws, outputs, tokens, strict=True)
        ]

    def _tokenise(self, question: Question, title: str) -> list[int]:
        if self.is_chat:
            return self.chat_tokens(messages(question.action, question.segment_text, title))
        return list(self.tokenizer(render(question.action, question.segment_text, title))["input_ids"])


def _engine_arguments(settings: GenerateSettings) -> dict[str, Any]:
    from transformers import AutoConfig
    from vllm.platforms import current_platform

    config = AutoConfig.from_pretrained(settings.model)
    longest = int(getattr(config, "max_position_embeddings", settings.max_model_len))
    length = min(settings.max_model_len, longest)
    arguments: dict[str, Any] = {
        "max_model_len": length,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": max(settings.max_num_batched_tokens, length),
        "enable_prefix_caching": True,
        "seed": settings.seed,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if current_platform.is_cpu():
        arguments |= {
            "enforce_eager": True,
            "block_size": settings.block_size,
            "kv_cache_memory_bytes": settings.kv_cache_mib * MIB or _default_kv_bytes(config, length),
            # Overlapping steps only helps where a device works beside the CPU.
            "async_scheduling": False,
        }
    else:
        arguments["gpu_memory_utilization"] = GPU_MEMORY_SHARE / settings.workers
    return arguments


def _default_kv_bytes(config: Any, length: int) -> int:
    heads = int(getattr(config, "num_key_value_heads", config.num_attention_heads))
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    token_bytes = 2 * 4 * int(config.num_hidden_layers) * heads * width
    return min(max(ROOM_FOR * length * token_bytes, 256 * MIB), 4096 * MIB)


def _bar_class(report: Report) -> Callable[..., Any]:
    """Make what `LLM.generate` takes in place of tqdm, to hear of every prompt that is done.

    vLLM makes two: one around the prompts as it takes them in, one that it updates as they are done.
    """

    class Bar:
        def __init__(self, prompts: Iterable[Any] = (), **_appearance: Any) -> None:
            self.prompts = prompts
            self.n = 0
            self.postfix = ""
            self.format_dict = {"elapsed": 1.0}

        def __iter__(self) -> Iterator[Any]:
            return iter(self.prompts)

        def update(self, n: int = 1) -> None:
            self.n += n
            report(n)

        def refresh(self) -> None:
            pass

        def close(self) -> None:
            pass

    return Bar
