"""The prompt that every language model gets, small or large: one template file, one version.

A prompt is a constant prefix (task, answer form, rules, three examples), which the engine's prefix cache holds, and one
query line. A title is data: it is brought onto one short line, so that it cannot start a line of its own and pass for
an example or a rule.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib import resources

from airserve.contract import ACTIONS
from airserve.errors import DataError

PROMPT_VERSION = "intent_v1"
"""Name of the template file; part of every answer's content key."""

SEGMENTS = ("general", "family", "young adult")
"""What the prompt says for user segments 0, 1 and 2."""

MAX_TITLE_CHARS = 160


@cache
def prefix() -> str:
    """Return the constant part of every prompt; ends with a newline."""
    return resources.files("airserve.intents").joinpath("prompts", f"{PROMPT_VERSION}.txt").read_text(encoding="utf-8")


def segment_text(segment: int) -> str:
    """Return the words for a user segment; `segment N` where the project has none."""
    return SEGMENTS[segment] if 0 <= segment < len(SEGMENTS) else f"segment {segment}"


def clean_title(title: str) -> str:
    """Bring a title onto one line of at most `MAX_TITLE_CHARS` characters.

    Control, format and separator characters become blanks, blanks are collapsed. Emoji joiners go with them.
    """
    kept = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in title)
    return " ".join(kept.split())[:MAX_TITLE_CHARS].rstrip()


def query(action: str, segment_text: str, title: str) -> str:
    """Return the query line, without a newline.

    Raises:
        DataError: for an action that the contract does not name.
    """
    if action not in ACTIONS:
        raise DataError("action", expected=f"one of {', '.join(ACTIONS)}", got=repr(action), remedy="map it to these")
    return f"action: {action} | segment: {clean_title(segment_text)} | title: {clean_title(title)}"


def render(action: str, segment_text: str, title: str) -> str:
    """Return the prompt of a completion model; the JSON answer begins right behind it.

    Args:
        action: a name of `contract.ACTIONS`.
        segment_text: see `segment_text`.
        title: the item's text, untrusted.
    """
    return f"{prefix()}{query(action, segment_text, title)}\n"


def messages(action: str, segment_text: str, title: str) -> list[dict[str, str]]:
    """Return the same prompt for a chat model: the prefix as system message, the query as the user's."""
    return [
        {"role": "system", "content": prefix().rstrip("\n")},
        {"role": "user", "content": query(action, segment_text, title)},
    ]
