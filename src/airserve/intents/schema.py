"""The form of a language model's answer: `{"paths":[["pet supplies","cat furniture","cat tree"]]}`.

The engine constrains decoding by `ANSWER_SCHEMA`, so every answer that is not cut off is valid; `parse_answer` checks
all the same, because answers also come from files and from engines without a grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from airserve.contract import MAX_DEPTH, MAX_PATHS
from airserve.errors import DataError

Path = tuple[str, ...]
"""Nodes of one intent, coarse to fine."""

MIN_DEPTH = 2
NODE_PATTERN = "^[a-z0-9][a-z0-9 &'-]{1,39}$"
"""A pattern, not `maxLength`: grammars built from the latter let control characters through."""

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "paths": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_PATHS,
            "items": {
                "type": "array",
                "minItems": MIN_DEPTH,
                "maxItems": MAX_DEPTH,
                "items": {"type": "string", "pattern": NODE_PATTERN},
            },
        }
    },
    "required": ["paths"],
    "additionalProperties": False,
}

_NODE = re.compile(NODE_PATTERN)
_SHAPE = f'{{"paths":[...]}} with 1 to {MAX_PATHS} paths of {MIN_DEPTH} to {MAX_DEPTH} nodes'


class InvalidAnswerError(DataError):
    """A language model's answer that is not in the documented form."""

    def __init__(self, got: str) -> None:
        super().__init__("answer", expected=_SHAPE, got=got, remedy="ask again, or keep it as invalid")


def parse_answer(raw: str) -> tuple[Path, ...]:
    """Parse one answer; nodes are stripped of outer blanks, paths said twice are kept once.

    Raises:
        InvalidAnswerError: for anything that `ANSWER_SCHEMA` does not allow.
    """
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswerError(f"no JSON ({str(error)[:60]}): {raw[:80]!r}") from error
    if not isinstance(answer, dict) or set(answer) != {"paths"} or not isinstance(answer["paths"], list):
        raise InvalidAnswerError(f"{raw[:80]!r}")
    if not 1 <= len(answer["paths"]) <= MAX_PATHS:
        raise InvalidAnswerError(f"{len(answer['paths'])} paths")
    paths: dict[Path, None] = {}
    for nodes in answer["paths"]:
        if not isinstance(nodes, list) or not MIN_DEPTH <= len(nodes) <= MAX_DEPTH:
            raise InvalidAnswerError(f"the path {str(nodes)[:80]}")
        for node in nodes:
            if not isinstance(node, str) or not _NODE.fullmatch(node):
                raise InvalidAnswerError(f"the node {str(node)[:60]!r}")
        paths[tuple(node.strip() for node in nodes)] = None
    return tuple(paths)


def format_answer(paths: Sequence[Path]) -> str:
    """Write paths as an answer, in the one spelling that the engine's grammar allows (no blanks)."""
    return json.dumps({"paths": [list(path) for path in paths]}, separators=(",", ":"))
