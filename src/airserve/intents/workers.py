"""Worker processes with an engine each: chunks of questions go out, finished parts are written by the workers.

A worker is a spawned process, so that an engine's death costs one chunk and not the job. The parent hands out chunks as
workers become free. When a worker dies or reports an error its chunk is halved and asked again by a fresh one, down to
the single prompt that breaks the engine, which is left without an answer. A worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from airserve.errors import EngineError, UserError
from airserve.intents.answers import Tokens, write_part
from airserve.intents.engines import Engine, RefusesAllError, Task, make_engine
from airserve.intents.settings import GenerateSettings

REPORT_EVERY_S = 0.2
LOG_TAIL_LINES = 12
DISK = "the disk is full"


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    log: Path
    ready: bool = False
    task: Task | None = None
    reported: int = 0
    """Prompts of the task that were counted as done."""


class Watcher(Protocol):
    """Who is told how a pool gets on."""

    def ready(self) -> None:
        """The first engine is up."""

    def advance(self, prompts: int) -> None:
        """So many prompts more are done; negative where a failed chunk is asked again."""

    def count(self, tokens: Tokens) -> None:
        """A chunk is done and took this."""


@dataclass
class PoolResult:
    """What a pool did."""

    unanswered: dict[str, str] = field(default_factory=dict)
    """Keys of prompts that broke the engine, each alone, and what it said; refused ones are in the parts."""
    restarts: int = 0
    engine_ready_s: float = 0.0
    """Until the first engine had started."""
    errors: list[str] = field(default_factory=list)


def run_pool(
    tasks: Iterator[Task],
    settings: GenerateSettings,
    folder: Path,
    watcher: Watcher,
) -> PoolResult:
    """Answer all tasks; parts are in `folder` afterwards.

    Args:
        tasks: chunks; taken one at a time, as workers become free.
        settings: of the job.
        folder: the job's folder; workers log to `worker-N.log` there.
        watcher: told of progress.

    Raises:
        EngineError: if an engine does not start, or after `settings.max_restarts` failures.
    """
    pool = _Pool(tasks, settings, folder, watcher)
    try:
        return pool.run()
    finally:
        pool.close()


class _Pool:
    def __init__(self, tasks: Iterator[Task], settings: GenerateSettings, folder: Path, watcher: Watcher) -> None:
        self.tasks = tasks
        self.halved: deque[Task] = deque()
        self.settings = settings
        self.folder = folder
        self.watcher = watcher
        self.result = PoolResult()
        self.context = multiprocessing.get_context("spawn")
        self.started = time.monotonic()
        self.workers = [self._start(number) for number in range(settings.workers)]

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
            self.watcher.advance(value)
        elif kind == "useless":
            raise EngineError(f"{self.settings.engine} with {self.settings.model}: {value}")
        elif kind == "failed":
            self._recover(worker, number, value)
        else:
            if kind == "ready":
                worker.ready = True
                if not self.result.engine_ready_s:
                    self.result.engine_ready_s = time.monotonic() - self.started
                    self.watcher.ready()
            elif worker.task:
                self.watcher.count(value)
                self.watcher.advance(len(worker.task.keys) - worker.reported)
            self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        worker.reported = 0
        worker.task = self._next()
        try:
            worker.connection.send(worker.task)
        except (BrokenPipeError, ConnectionResetError):
            # Its end is seen, and its task given back, when the connection is read next.
            return
        if worker.task is None:
            worker.connection.close()
            worker.process.join()

    def _next(self) -> Task | None:
        return self.halved.popleft() if self.halved else next(self.tasks, None)

    def _recover(self, worker: _Worker, number: int, what: str) -> None:
        worker.connection.close()
        worker.process.join()
        said = f"{what} (status {worker.process.exitcode})\n{_tail(worker.log)}"
        task = worker.task
        if not worker.ready or task is None:
            raise EngineError(f"{self.settings.engine} worker with {self.settings.model}: did not start: {said}")
        if what.startswith(DISK):
            raise disk_error(what, self.folder)
        self.result.restarts += 1
        self.result.errors.append(what.splitlines()[-1])
        if self.result.restarts > self.settings.max_restarts:
            raise EngineError(
                f"{self.settings.engine} worker: failed {self.result.restarts} times, the last time: {said}"
            )
        self.watcher.advance(-worker.reported)
        halves = task.halves()
        self.halved.extendleft(reversed(halves))
        if not halves:
            self.result.unanswered[task.keys[0]] = what.splitlines()[-1]
            self.watcher.advance(1)
        waiting = self._next()
        if waiting is not None:
            self.halved.appendleft(waiting)
            self.workers[number] = self._start(number)


def do_task(engine: Engine, task: Task, folder: Path, report: Callable[[int], None] | None = None) -> Tokens:
    """Answer one chunk and write its part; returns what it took."""
    answers = engine.answer(task.questions, report)
    write_part(folder, task.keys, answers)
    return Tokens.of(answers)


def is_disk_full(error: BaseException) -> bool:
    """True where a write failed because there is no room, or none is allowed."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)


def disk_error(what: str, folder: Path) -> UserError:
    """Say what to do about a full disk."""
    return UserError(
        str(folder),
        expected="room for the answers",
        got=what.removeprefix(DISK).strip(" :"),
        remedy="make room and start the job again; what is written is not asked again",
    )


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join(lines[-LOG_TAIL_LINES:])


def _serve_tasks(connection: Connection, settings: GenerateSettings, folder: Path, log: Path) -> None:
    """Body of a worker process; all that vLLM prints goes to its log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        engine = make_engine(settings)
        connection.send(("ready", None))
        while (task := connection.recv()) is not None:
            connection.send(("done", do_task(engine, task, folder, _Throttle(connection))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # The parent is gone.
    except RefusesAllError as error:
        connection.send(("useless", str(error)))
    except Exception as error:
        what = DISK if is_disk_full(error) else type(error).__name__
        # First of all: with a full disk the log cannot be written.
        with suppress(OSError):
            connection.send(("failed", f"{what}: {error}"))
        with suppress(OSError):
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
