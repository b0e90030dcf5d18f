"""Runs of a study on disk: each (model, seed) is trained once and ranked once, whatever interrupts the study.

A run's folder is named by a hash of all that its training depends on: data, settings, seed, the run it starts from and
the source of the code that trains it (without comments and docstrings). Its files, each written atomically:

- `resume-*.pt`: state of a training that is under way; taken up again after a kill.
- `state.safetensors`, then `run.json`: what was learned and how; a folder with `run.json` is trained.
- `ranks-HASH.npz`: ranks under the protocol of that hash. Another number of draws ranks again, without training.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from airserve.artifacts import RUN_FILE, RUN_STATE_FILE
from airserve.files import atomic_path, atomic_stream, write_json
from airserve.study.protocol import Ranks

State = dict[str, Tensor]


def digest(value: object) -> str:
    """Hash of anything that JSON can hold, 16 hex digits; what it cannot is taken by its `repr`."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_digest(objects: Sequence[Any]) -> str:
    """Hash of what modules, classes and functions do: of their source without comments, docstrings and layout."""
    texts = []
    for thing in objects:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
        texts.append(ast.dump(tree))
    return digest(texts)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The place of one training."""

    folder: Path

    @property
    def report(self) -> dict[str, Any] | None:
        """How the training went; None while it is not finished."""
        try:
            report: dict[str, Any] = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
            return report
        except (OSError, ValueError):
            return None

    def state(self) -> State | None:
        """What was learned; None where it is missing or damaged."""
        try:
            state: State = load_file(self.folder / RUN_STATE_FILE)
            return state
        except (OSError, SafetensorError):
            return None

    def finish(self, state: Mapping[str, Tensor], report: dict[str, Any]) -> None:
        """Keep a finished training and drop what it would have been resumed from."""
        with atomic_path(self.folder / RUN_STATE_FILE) as part:
            save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, part)
        write_json(self.folder / RUN_FILE, report)
        for left in self.folder.glob("resume-*"):
            left.unlink()

    def ranks(self, protocol: str) -> Ranks | None:
        """Ranks under a protocol's hash; None where they are missing or damaged."""
        try:
            with np.load(self._ranks_path(protocol), allow_pickle=False) as stored:
                return Ranks(drawn_WX=stored["drawn_WX"], full_X=stored["full_X"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def keep_ranks(self, protocol: str, ranks: Ranks) -> None:
        """Write ranks atomically."""
        with atomic_stream(self._ranks_path(protocol)) as stream:
            np.savez_compressed(stream, drawn_WX=ranks.drawn_WX, full_X=ranks.full_X)

    def _ranks_path(self, protocol: str) -> Path:
        return self.folder / f"ranks-{protocol}.npz"
