"""Worker processes with a vLLM engine each: chunks of questions go out, finished parts are written by the workers.

A worker is a spawned process, so that an engine's death costs one chunk and not the job. The parent hands out chunks as
workers become free. When a worker dies or reports an error its chunk is halved and asked again by a fresh one, down to
the single prompt that breaks the engine, which is left without an answer. A worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from airserve.errors import EngineError
from airserve.intents.answers import write_part
from airserve.intents.engine_vllm import Question, VllmEngine
from airserve.intents.settings import GenerateSettings

REPORT_EVERY_S = 0.2
LOG_TAIL_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Task:
    """A chunk."""

    keys: tuple[str, ...]
    questions: tuple[Question, ...]

    def halves(self) -> list[Task]:
        """Split in two; a single question cannot be split and gives nothing."""
        middle = len(self.keys) // 2
        if not middle:
            return []
        return [
            Task(keys=self.keys[:middle], questions=self.questions[:middle]),
            Task(keys=self.keys[middle:], questions=self.questions[middle:]),
        ]


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    log: Path
    ready: bool = False
    task: Task | None = None
    reported: int = 0
    """Prompts of the task that were counted as done."""


@dataclass
class PoolResult:
    """What a pool did."""

    unanswered: int = 0
    """Prompts that broke the engine."""
    restarts: int = 0
    engine_ready_s: float = 0.0
    """Until the first engine had started."""
    errors: list[str] = field(default_factory=list)


def run_pool(
    tasks: Sequence[Task],
    settings: GenerateSettings,
    folder: Path,
    *,
    on_ready: Callable[[], None],
    advance: Callable[[int], None],
) -> PoolResult:
    """Answer all tasks; parts are in `folder` afterwards.

    Args:
        tasks: chunks.
        settings: of the job.
        folder: the job's folder; workers log to `worker-N.log` there.
        on_ready: called once, when the first engine has started.
        advance: told how many prompts more are done; negative where a failed chunk is asked again.

    Raises:
        EngineError: if an engine does not start, or after `settings.max_restarts` failures.
    """
    pool = _Pool(deque(tasks), settings, folder, on_ready, advance)
    try:
        return pool.run()
    finally:
        pool.close()


class _Pool:
    def __init__(
        self,
        tasks: deque[Task],
        settings: GenerateSettings,
        folder: Path,
        on_ready: Callable[[], None],
        advance: Callable[[int], None],
    ) -> None:
        self.tasks = tasks
        self.settings = settings
        self.folder = folder
        self.on_ready = on_ready
        self.advance = advance
        self.result = PoolResult()
        self.context = multiprocessing.get_context("spawn")
        self.started = time.monotonic()
        self.workers = [self._start(number) for number in range(min(settings.workers, len(tasks)))]

    def run(self) -> PoolResult:
        while self.workers:
            connections = [worker.connection for worker in self.workers]
            for ready in wait(connections):
                number = connections.index(ready)  # type: ignore[arg-type]
                self._serve(self.workers[number], number)
            self.workers = [worker for worker in self.workers if not worker.connection.closed]
        return self.result

    def close(self) -> None:
        for worker in self.workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()

    def _start(self, number: int) -> _Worker:
        ours, theirs = self.context.Pipe()
        log = self.folder / f"worker-{number}.log"
        process = self.context.Process(target=_serve_tasks, args=(theirs, self.settings, self.folder, log))
        process.start()
        theirs.close()
        return _Worker(process=process, connection=ours, log=log)

    def _serve(self, worker: _Worker, number: int) -> None:
        try:
            kind, value = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            kind, value = "failed", "the process died"
        if kind == "progress":
            worker.reported += value
            self.advance(value)
        elif kind == "failed":
            self._recover(worker, number, value)
        else:
            if kind == "ready":
                worker.ready = True
                if not self.result.engine_ready_s:
                    self.result.engine_ready_s = time.monotonic() - self.started
                    self.on_ready()
            elif worker.task:
                self.advance(len(worker.task.keys) - worker.reported)
            self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        worker.reported = 0
        worker.task = self.tasks.popleft() if self.tasks else None
        try:
            worker.connection.send(worker.task)
        except (BrokenPipeError, ConnectionResetError):
            # Its end is seen, and its task given back, when the connection is read next.
            return
        if worker.task is None:
            worker.connection.close()
            worker.process.join()

    def _recover(self, worker: _Worker, number: int, what: str) -> None:
        worker.connection.close()
        worker.process.join()
        said = f"{what} (status {worker.process.exitcode})\n{_tail(worker.log)}"
        task = worker.task
        if not worker.ready or task is None:
            raise EngineError(f"vLLM worker with {self.settings.model}: did not start: {said}")
        self.result.restarts += 1
        self.result.errors.append(what.splitlines()[-1])
        if self.result.restarts > self.settings.max_restarts:
            raise EngineError(f"vLLM worker: failed {self.result.restarts} times, the last time: {said}")
        self.advance(-worker.reported)
        halves = task.halves()
        self.tasks.extendleft(reversed(halves))
        if not halves:
            self.result.unanswered += 1
            self.advance(1)
        if self.tasks:
            self.workers[number] = self._start(number)


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join(lines[-LOG_TAIL_LINES:])


def _serve_tasks(connection: Connection, settings: GenerateSettings, folder: Path, log: Path) -> None:
    """Body of a worker process; all that vLLM prints goes to its log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        engine = VllmEngine(settings)
        connection.send(("ready", None))
        while (task := connection.recv()) is not None:
            answers = engine.answer(task.questions, report=_Throttle(connection))
            write_part(folder, task.keys, answers)
            connection.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # The parent is gone.
    except Exception as error:
        traceback.print_exc()
        _send_failure(connection, f"{type(error).__name__}: {error}")


def _send_failure(connection: Connection, what: str) -> None:
    try:
        connection.send(("failed", what))
    except OSError:
        traceback.print_exc()


class _Throttle:
    """Sends progress at most every `REPORT_EVERY_S`."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.last = time.monotonic()
        self.waiting = 0

    def __call__(self, done: int) -> None:
        self.waiting += done
        if time.monotonic() - self.last >= REPORT_EVERY_S:
            self.connection.send(("progress", self.waiting))
            self.last, self.waiting = time.monotonic(), 0
