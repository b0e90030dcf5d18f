"""Run a chain of role scripts, each only when something that it reads has changed.

A step is a command with the files it reads and the folders it writes. Its fingerprint covers the command, the content
of what it reads and the source of the library; a step whose outputs are there and whose fingerprint is unchanged is
skipped and its earlier result reused.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airserve.errors import AirserveError
from airserve.files import write_json

SKIPPED_SUFFIXES = {".pyc", ".log", ".tmp"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One script of a chain."""

    name: str
    about: str
    """What it does, for the person who watches."""
    command: tuple[str, ...]
    """Script and arguments; run with this Python."""
    reads: tuple[Path, ...]
    """Files and folders; their content is part of the fingerprint."""
    writes: tuple[Path, ...]
    """Must exist afterwards."""


class StepError(AirserveError):
    """A step failed; what it said is on stderr above."""


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                p
                for p in path.rglob("*")
                if p.is_file() and p.suffix not in SKIPPED_SUFFIXES and "__pycache__" not in p.parts
            )
        else:
            yield path


def fingerprint(step: Step) -> str:
    """sha256 over the command and the content of all that the step reads."""
    digest = hashlib.sha256(json.dumps(step.command).encode())
    for path in _files(step.reads):
        digest.update(str(path).encode())
        if path.exists():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def run_step(step: Step, state: Path, *, number: int, of: int, reuse: bool = True) -> dict[str, Any]:
    """Run a step, or reuse its result.

    Args:
        step: what to run.
        state: folder that remembers fingerprints and results.
        number: place in the chain, from 1.
        of: length of the chain.
        reuse: skip the step when nothing that it reads has changed.

    Returns:
        The JSON object that the script printed as its last line.

    Raises:
        StepError: if the script fails, prints no JSON, or does not write what it should.
    """
    memory = state / f"{step.name}.json"
    mark = fingerprint(step)
    head = f"[{number}/{of}] {step.about}"
    if reuse and memory.exists() and all(path.exists() for path in step.writes):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["fingerprint"] == mark:
            print(f"{head}: unchanged, reused", file=sys.stderr, flush=True)
            return dict(known["result"])
    print(head, file=sys.stderr, flush=True)
    # A failure from here on may leave half of the outputs: what an earlier run remembered no longer holds.
    memory.unlink(missing_ok=True)
    start = time.monotonic()
    done = subprocess.run([sys.executable, *step.command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StepError(f"{step.command[0]}: ended with status {done.returncode}; its message is above")
    missing = [str(path) for path in step.writes if not path.exists()]
    if missing:
        raise StepError(f"{step.command[0]}: did not write {', '.join(missing)}")
    try:
        result = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise StepError(f"{step.command[0]}: its last line is no JSON object: {done.stdout[-200:]!r}")
    write_json(memory, {"fingerprint": mark, "result": result})
    wrote = ", ".join(str(path) for path in step.writes)
    tail = f", wrote {wrote}" if wrote else ""
    print(f"      {time.monotonic() - start:.0f} s{tail}", file=sys.stderr, flush=True)
    return result


def run_chain(steps: list[Step], state: Path) -> dict[str, dict[str, Any]]:
    """Run all steps in order; returns the result of each by its name."""
    return {
        step.name: run_step(step, state, number=number, of=len(steps) + 1) for number, step in enumerate(steps, start=1)
    }
