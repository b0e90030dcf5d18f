"""More machines: the chunks of the job spread by Ray Data over actors, each with its own vLLM.

Questions go out as Arrow blocks, answers come back through Ray's object store, and only this process writes parts: the
machines need the same software and model, but no shared disk. An actor that is lost is started again by Ray and its
chunk asked once more; what even that does not answer is asked in ever smaller pieces, as `workers` does it, so one
prompt cannot end the job. Order is not kept; keys are.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from airserve.artifact_schemas import PARTS_SCHEMA
from airserve.errors import EngineError, UserError
from airserve.intents.answers import Answer, Tokens, model_identity, write_part
from airserve.intents.engines import Engine, Question, Task, make_engine
from airserve.intents.settings import GenerateSettings
from airserve.intents.workers import PoolResult, Watcher

WAVE = 4_000_000
"""Prompts handed to Ray at a time (0.5 GB of blocks, spilled where they do not fit); engines start once a wave."""
PIECES = 32
"""A chunk that failed is asked again in this many pieces, so 1,024 prompts are single in two more rounds."""
OBJECT_STORE_BYTES = 512 << 20
"""Of a Ray that is started here."""
PATIENCE = {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_worker_niceness": "0",
}
"""Of a Ray that is started here: on a machine that is busy with other work its own limits end it, and its workers,
which Ray runs at nice 15, do not get to start."""
START_TRIES = 5
"""`ray.init` gives its node 30 s, a constant in its source; on two busy cores the first start took longer."""
OK, AGAIN, FATAL = 0, 1, 2
"""State of a block of answers: kept; its engine broke, ask another; no engine here will ever answer."""

BLOCK_SCHEMA = pa.schema(
    [("key", pa.string()), ("action", pa.string()), ("segment_text", pa.string()), ("title", pa.string())]
)
RESULT_SCHEMA = pa.schema(
    [
        *PARTS_SCHEMA,
        ("state", pa.int8()),
        ("engine", pa.string()),
        ("ready_at_s", pa.float64()),
    ]
)
log = logging.getLogger(__name__)


class Answerer:
    """What each actor holds: an engine, made once.

    Args:
        settings: of the job.
        identity: of the model that the keys were made for; the model on this machine must be the same.
    """

    def __init__(self, settings: GenerateSettings, identity: str) -> None:
        self.name = uuid.uuid4().hex
        self.engine: Engine | None = None
        self.broken = ""
        try:
            found = model_identity(settings.model)
            if found != identity:
                raise EngineError(f"{settings.model}: expected {identity} on every machine, got {found}; copy it anew")
            self.engine = make_engine(settings)
        except Exception as error:
            traceback.print_exc()
            self.broken = f"{type(error).__name__}: {error}"
        self.ready_at_s = time.time()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer one block, `BLOCK_SCHEMA`; returns `RESULT_SCHEMA`, in its order."""
        keys = block.column("key").to_pylist()
        if self.engine is None:
            return self._result(keys, [_no_answer(self.broken)] * len(keys), FATAL)
        if self.broken:
            # Ray starts a fresh process and asks it; a broken engine cannot be trusted to end properly.
            os._exit(1)
        questions = [Question(**row) for row in block.drop_columns("key").to_pylist()]
        try:
            return self._result(keys, self.engine.answer(questions), OK)
        except Exception as error:
            traceback.print_exc()
            self.broken = f"{type(error).__name__}: {error}"
            return self._result(keys, [_no_answer(self.broken)] * len(keys), AGAIN)

    def _result(self, keys: Sequence[str], answers: Sequence[Answer], state: int) -> pa.Table:
        columns: dict[str, Any] = {"key": list(keys)}
        for name in PARTS_SCHEMA.names[1:]:
            columns[name] = [getattr(answer, name) for answer in answers]
        ours = {"state": state, "engine": self.name, "ready_at_s": self.ready_at_s}
        columns |= {name: [value] * len(answers) for name, value in ours.items()}
        return pa.table(columns, schema=RESULT_SCHEMA)


def _no_answer(error: str) -> Answer:
    return Answer(raw="", paths=(), valid=False, error=error[:500])


def run_ray(
    tasks: Iterator[Task],
    settings: GenerateSettings,
    identity: str,
    folder: Path,
    watcher: Watcher,
) -> PoolResult:
    """Answer all tasks on Ray; parts are in `folder` afterwards.

    Args:
        tasks: chunks; at most `WAVE` prompts are taken in at a time.
        settings: of the job; `workers` actors at most, each with `ray_cpus` and `ray_gpus`.
        identity: of `model_identity`.
        folder: the job's folder.
        watcher: told of progress; of readiness when the first answers have come.

    Raises:
        UserError: if Ray is not installed or cannot be reached, or no machine has room for an actor.
        EngineError: if the engine starts nowhere, or `settings.max_restarts` rounds left something unanswered.
    """
    with _cluster(settings):
        job = _RayJob(settings, identity, folder, watcher)
        for first in tasks:
            job.run_wave(_wave(chain([first], tasks)))
        return job.result


@dataclass(frozen=True)
class _Block:
    """A chunk that lies in Ray's object store."""

    reference: Any
    rows: int


def _wave(tasks: Iterator[Task]) -> dict[str, _Block]:
    """Put chunks into Ray's store, by their first key, until they have `WAVE` prompts."""
    blocks: dict[str, _Block] = {}
    taken = 0
    for task in tasks:
        columns = {"key": list(task.keys)}
        for name in BLOCK_SCHEMA.names[1:]:
            columns[name] = [getattr(question, name) for question in task.questions]
        blocks[task.keys[0]] = _put(pa.table(columns, schema=BLOCK_SCHEMA))
        taken += len(task.keys)
        if taken >= WAVE:
            break
    return blocks


def _put(table: pa.Table) -> _Block:
    import ray

    return _Block(reference=ray.put(table), rows=table.num_rows)


class _RayJob:
    def __init__(self, settings: GenerateSettings, identity: str, folder: Path, watcher: Watcher) -> None:
        self.settings = settings
        self.identity = identity
        self.folder = folder
        self.watcher = watcher
        self.result = PoolResult()
        self.started_at_s = time.time()
        self.said = "the actors died; Ray's logs say why"

    def run_wave(self, waiting: dict[str, _Block]) -> None:
        """Ask until every prompt has an answer or is known to break the engine."""
        first = True
        while waiting:
            before = len(waiting)
            self._round(waiting, in_flight=2 if first else 1)
            if not waiting:
                return
            self.result.restarts += 1
            self.result.errors.append(self.said)
            if before == len(waiting) > 1 or self.result.restarts > self.settings.max_restarts:
                said = f"{len(waiting)} chunks failed, the last: {self.said}"
                raise EngineError(f"ray with {self.settings.model}: {said}")
            waiting = self._smaller(waiting, give_up=not first)
            first = False

    def _round(self, waiting: dict[str, _Block], *, in_flight: int) -> None:
        """Ask all of `waiting` once; what was answered is written and taken out of it."""
        import ray

        blocks = ray.data.from_arrow_refs([block.reference for block in waiting.values()])
        answered = blocks.map_batches(
            Answerer,
            fn_constructor_args=(self._of_an_actor(), self.identity),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=self.settings.workers,
                initial_size=self.settings.workers,
                max_tasks_in_flight_per_actor=in_flight,
            ),
            num_cpus=self.settings.ray_cpus,
            num_gpus=self.settings.ray_gpus,
            # Ray restarts a lost actor without end; a prompt that kills its process must not be asked so often.
            max_task_retries=1,
        )
        engines: set[str] = set()
        try:
            for table in answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                self._take(table, waiting, engines)
        except ray.exceptions.RayError as error:
            self.said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            log.warning("Ray ended a round: %s", self.said)
        lost = len(engines) - self.settings.workers
        if lost > 0:
            self.result.errors.append(f"actors lost and replaced: {lost}")

    def _of_an_actor(self) -> GenerateSettings:
        share = self.settings.ray_gpus
        return replace(self.settings, engine="vllm", workers=round(1 / share) if 0 < share < 1 else 1)

    def _take(self, table: pa.Table, waiting: dict[str, _Block], engines: set[str]) -> None:
        if not table.num_rows:
            return
        head = table.slice(0, 1).to_pylist()[0]
        engines.add(head["engine"])
        if head["state"] != OK:
            self.said = head["error"]
            if head["state"] == FATAL:
                raise EngineError(f"ray actor with {self.settings.model}: did not start: {self.said}")
            return
        if waiting.pop(head["key"], None) is None:
            return
        if not self.result.engine_ready_s:
            self.result.engine_ready_s = max(head["ready_at_s"] - self.started_at_s, 0.0)
            self.watcher.ready()
        rows = table.select(PARTS_SCHEMA.names).to_pylist()
        keys = [row.pop("key") for row in rows]
        answers = [Answer(**row) for row in rows]
        write_part(self.folder, keys, answers)
        self.watcher.count(Tokens.of(answers))
        self.watcher.advance(len(keys))

    def _smaller(self, waiting: dict[str, _Block], *, give_up: bool) -> dict[str, _Block]:
        """Cut what failed into pieces; a prompt that failed alone is left without an answer."""
        import ray

        pieces: dict[str, _Block] = {}
        for key, block in waiting.items():
            if block.rows == 1 and give_up:
                self.result.unanswered[key] = self.said
                self.watcher.advance(1)
                continue
            table = ray.get(block.reference)
            size = -(-block.rows // PIECES)
            for start in range(0, block.rows, size):
                piece = table.slice(start, size).combine_chunks()
                pieces[piece.column("key")[0].as_py()] = _put(piece)
        return pieces


@contextmanager
def _cluster(settings: GenerateSettings) -> Iterator[None]:
    """Join the cluster that the settings name, or start a Ray on this machine for the time of the job."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not settings.ray_address:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            "--engine ray", expected="Ray Data installed", got=str(error), remedy="pip install 'ray[data]==2.60.0'"
        ) from error
    _start(settings)
    try:
        _check_room(ray.cluster_resources(), settings)
        _set_up_data(ray.data.DataContext.get_current())
        yield
    finally:
        ray.shutdown()


def _start(settings: GenerateSettings) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    here = {
        "num_cpus": max(os.cpu_count() or 1, settings.workers),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    where: dict[str, Any] = {"address": settings.ray_address} if settings.ray_address else here
    tries = 1 if settings.ray_address else START_TRIES
    for left in reversed(range(tries)):
        try:
            ray.init(**where, **quiet)
            return
        except Exception as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            ray.shutdown()
            # A bare Exception is what Ray raises when its own node was too slow.
            if left and type(error) is Exception:
                log.warning("Ray did not start, trying again: %s", said)
                continue
            raise UserError(
                "--ray-address" if settings.ray_address else "--engine ray",
                expected="a Ray cluster that can be reached" if settings.ray_address else "a Ray that starts here",
                got=said,
                remedy="see `ray status`, and the logs below Ray's folder",
            ) from error


def _check_room(resources: dict[str, float], settings: GenerateSettings) -> None:
    for name, wanted in (("CPU", settings.ray_cpus), ("GPU", settings.ray_gpus)):
        if resources.get(name, 0) < wanted:
            raise UserError(
                f"--ray-{name.lower()}s",
                expected=f"at most the {resources.get(name, 0):g} {name}s of the cluster",
                got=f"{wanted:g}",
                remedy="lower it, or add machines",
            )


def _set_up_data(context: Any) -> None:
    # Ray 2.60 names no other way to bound a task's retries than the one it warns of.
    warnings.filterwarnings("ignore", message=".*ray_remote_args")
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A block that fails is asked again in pieces; it must not end the others.
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = 2
    # A slow engine is no stuck one.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
