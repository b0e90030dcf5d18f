"""Measure the generation job's tokens per second over bare `LLM.generate` on the same prompts, paired in one run.

    python perf/bench_generate.py --data artifacts/demo/data --prompts 2048

What limits it: the engine. The job adds the search for kinds, keys, checks of the answers and files; all of that is
counted on its side. Chunks alternate between the two on one engine, which goes first alternates too, and the prefix
cache is emptied and warmed before each, so that neither finds what the other computed.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cyclopts

from airserve.artifacts import ANSWERS_FILE
from airserve.cli import run_script
from airserve.data.sources import bounded_duckdb
from airserve.intents.answers import model_identity
from airserve.intents.engine_vllm import VllmEngine, vllm_version
from airserve.intents.engines import Task
from airserve.intents.generate import JobInput
from airserve.intents.prompt import render
from airserve.intents.schema import ANSWER_SCHEMA
from airserve.intents.settings import GenerateSettings
from airserve.intents.store import JobStore
from airserve.intents.workers import do_task
from airserve.progress import track


def bare(engine: VllmEngine, task: Task) -> int:
    """What a script without the job would do; returns the tokens written."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    sampling = SamplingParams(
        temperature=0,
        max_tokens=engine.settings.max_output_tokens,
        structured_outputs=StructuredOutputsParams(json=ANSWER_SCHEMA),
    )
    prompts = [render(one.action, one.segment_text, one.title) for one in task.questions]
    outputs = engine.llm.generate(prompts, sampling, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def fresh(engine: VllmEngine, task: Task) -> None:
    """Leave only the constant prefix in the cache."""
    engine.llm.reset_prefix_cache()
    engine.answer(task.questions[:1])


def main(
    *, data: str, model: str = "offline/intent_lm", prompts: int = 2048, chunk: int = 256, omp_threads: int = 1
) -> dict[str, object]:
    """Print `pipeline_over_bare` and `prefix_hit_share`.

    Args:
        data: data folder.
        model: a checkpoint's folder without a chat template, or its name on a hub.
        prompts: how many, at most.
        chunk: prompts handed to the engine at a time.
        omp_threads: OpenMP threads, on a CPU.
    """
    settings = GenerateSettings(model=model, workers=1, chunk=chunk, omp_threads=omp_threads, retry_temperature=0)
    engine = VllmEngine(settings)
    bare_s = job_s = 0.0
    bare_tokens = 0
    source = JobInput(data=data, limit=prompts)
    with TemporaryDirectory(prefix="airserve-") as folder, bounded_duckdb(source.memory) as connection:
        start = time.perf_counter()
        store = JobStore(connection, Path(folder))
        counts = store.load(*source.sources(), settings, model_identity(model), source.limit)
        tasks = list(store.tasks(chunk))
        job_s += time.perf_counter() - start
        fresh(engine, tasks[0])
        for place, task in enumerate(track(tasks, "benching", len(tasks), "chunks")):
            for turn in ("bare", "job") if place % 2 else ("job", "bare"):
                fresh(engine, task)
                start = time.perf_counter()
                if turn == "job":
                    do_task(engine, task, store.folder)
                    job_s += time.perf_counter() - start
                else:
                    bare_tokens += bare(engine, task)
                    bare_s += time.perf_counter() - start
        start = time.perf_counter()
        store.read_answers()
        store.write_answers(store.folder / ANSWERS_FILE)
        job_s += time.perf_counter() - start
        figures, job_tokens = store.figures(), store.output_tokens()
    return {
        "pipeline_over_bare": round((job_tokens / job_s) / (bare_tokens / bare_s), 4),
        "prefix_hit_share": round(figures["cached"], 4),
        "job_tokens_per_s": round(job_tokens / job_s, 1),
        "bare_tokens_per_s": round(bare_tokens / bare_s, 1),
        "prompts": counts.missing,
        "valid_share": round(figures["valid"], 4),
        "vllm_version": vllm_version(),
    }


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
