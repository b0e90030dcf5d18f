"""What every engine is: questions in, checked answers out, in order, one bad prompt harming no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from airserve.errors import EngineError
from airserve.intents.answers import Answer
from airserve.intents.schema import InvalidAnswerError, parse_answer
from airserve.intents.settings import GenerateSettings

FEW = 4
"""So many refused prompts say nothing of the engine, even if they are all of a chunk."""
Report = Callable[[int], None]
"""Called with the number of prompts that are done since the last call."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one prompt is about."""

    action: str
    segment_text: str
    title: str


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


class Engine(Protocol):
    """A language model."""

    def answer(self, questions: Sequence[Question], report: Report | None = None) -> list[Answer]:
        """Answer every question, in order; `Answer.error` says why one has no answer."""


def checked(raw: str, prompt_tokens: int = 0, cached_tokens: int = 0, output_tokens: int = 0) -> Answer:
    """Make an `Answer` of what a model wrote."""
    try:
        paths = parse_answer(raw)
    except InvalidAnswerError:
        paths = ()
    return Answer(
        raw=raw,
        paths=paths,
        valid=bool(paths),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
    )


def failed(error: BaseException) -> Answer:
    """Make the `Answer` of a prompt that the engine could not take."""
    line = (str(error).splitlines() or [""])[0]
    return Answer(raw="", paths=(), valid=False, error=f"{type(error).__name__}: {line}"[:500])


class RefusesAllError(EngineError):
    """The engine is up and takes hardly a prompt: a setting is wrong, and asking again is of no use."""


def most_refused(answers: Sequence[Answer]) -> str:
    """Tell a broken engine from bad prompts: a message where more than half of a chunk has no answer, else nothing."""
    broken = [answer.error for answer in answers if answer.error]
    if len(broken) <= max(FEW, len(answers) // 2):
        return ""
    return f"{len(broken)} of {len(answers)} prompts were refused, the last: {broken[-1]}"


def second_try(first: Answer, second: Answer) -> Answer:
    """What is kept when an invalid answer was asked for again; tokens of both are counted."""
    kept = second if second.valid or first.error else first
    return Answer(
        raw=kept.raw,
        paths=kept.paths,
        valid=kept.valid,
        error=kept.error,
        retried=True,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
    )


def make_engine(settings: GenerateSettings) -> Engine:
    """Start the engine that the settings name.

    Raises:
        EngineError: if it does not start.
    """
    if settings.engine == "openai":
        from airserve.intents.engine_openai import OpenAiEngine

        return OpenAiEngine(settings)
    from airserve.intents.engine_vllm import VllmEngine

    return VllmEngine(settings)
