"""Any OpenAI-compatible server, `vllm serve` among them: the same prompts and the same answer schema over HTTP.

Requests run in parallel, as many as the settings allow. A server that is busy, restarts or cannot be reached is asked
again after a pause that doubles, or as long as it says. The key is read from `OPENAI_API_KEY`; it stands in no file.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from airserve.errors import EngineError
from airserve.intents.answers import Answer
from airserve.intents.engines import (
    Question,
    RefusesAllError,
    Report,
    checked,
    failed,
    most_refused,
    second_try,
)
from airserve.intents.prompt import messages, render
from airserve.intents.schema import ANSWER_SCHEMA
from airserve.intents.settings import GenerateSettings

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE_S = 30.0
API_KEY_VARIABLE = "OPENAI_API_KEY"


class RefusedError(Exception):
    """The server will not answer this prompt, however often it is asked."""


class OpenAiEngine:
    """Client of one server.

    Args:
        settings: `base_url` (ends in `/v1`), `api`, `served_model`, `concurrency`, `timeout_s`, `http_tries`.
        transport: of httpx, for tests.

    Raises:
        EngineError: if the server cannot be reached, or refuses the key.
    """

    def __init__(self, settings: GenerateSettings, transport: httpx.BaseTransport | None = None) -> None:
        self.settings = settings
        key = os.environ.get(API_KEY_VARIABLE, "")
        self.client = httpx.Client(
            base_url=settings.base_url.rstrip("/") + "/",
            timeout=settings.timeout_s,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=settings.concurrency),
            transport=transport,
        )
        self.pool = ThreadPoolExecutor(max_workers=settings.concurrency)
        try:
            self._send("GET", "models", None)
        except RefusedError as error:
            # Some servers have no list of models; only a refused key is the end.
            if "401" in str(error) or "403" in str(error):
                raise EngineError(f"{settings.base_url}: {error}; set {API_KEY_VARIABLE}") from error

    def answer(self, questions: Sequence[Question], report: Report | None = None) -> list[Answer]:
        """See `Engine.answer`.

        Raises:
            EngineError: if the server stays busy or away after `settings.http_tries` tries, or refuses most prompts
                (`RefusesAllError`).
        """
        answers = []
        for answer in self.pool.map(self._answer_one, questions):
            answers.append(answer)
            if report:
                report(1)
        if said := most_refused(answers):
            raise RefusesAllError(f"{self.settings.base_url}: {said}")
        return answers

    def _answer_one(self, question: Question) -> Answer:
        try:
            first = self._ask(question, 0.0)
        except RefusedError as error:
            return failed(error)
        if first.valid or not self.settings.retry_temperature:
            return first
        try:
            return second_try(first, self._ask(question, self.settings.retry_temperature))
        except RefusedError:
            return first

    def _ask(self, question: Question, temperature: float) -> Answer:
        settings = self.settings
        body: dict[str, Any] = {
            "model": settings.served_model or settings.model,
            "temperature": temperature,
            "max_tokens": settings.max_output_tokens,
            "seed": settings.seed,
        }
        if settings.api == "chat":
            form = {"name": "intents", "schema": ANSWER_SCHEMA, "strict": True}
            body["messages"] = messages(question.action, question.segment_text, question.title)
            body["response_format"] = {"type": "json_schema", "json_schema": form}
            if settings.vllm_extras:
                body["chat_template_kwargs"] = {"enable_thinking": False}
            said = self._send("POST", "chat/completions", body)
        else:
            body["prompt"] = render(question.action, question.segment_text, question.title)
            if settings.vllm_extras:
                body["structured_outputs"] = {"json": ANSWER_SCHEMA, "disable_any_whitespace": True}
            said = self._send("POST", "completions", body)
        try:
            choice = said["choices"][0]
            raw = choice["message"]["content"] if settings.api == "chat" else choice["text"]
        except (KeyError, IndexError, TypeError) as error:
            raise RefusedError(f"not an OpenAI answer: {str(said)[:200]}") from error
        usage = said.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return checked(raw or "", usage.get("prompt_tokens", 0), cached, usage.get("completion_tokens", 0))

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        said = ""
        for attempt in range(self.settings.http_tries):
            pause_s = min(0.5 * 2**attempt, LONGEST_PAUSE_S)
            try:
                response = self.client.request(method, path, json=body)
                if response.status_code < 400:
                    return response.json()
                said = f"status {response.status_code}: {response.text[:200]}"
                if response.status_code not in BUSY:
                    raise RefusedError(said)
                pause_s = _asked_pause_s(response) or pause_s
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
            except ValueError as error:
                raise RefusedError(f"no JSON from {path}: {error}") from error
            if attempt + 1 < self.settings.http_tries:
                time.sleep(pause_s * (0.5 + random.random() / 2))
        raise EngineError(f"{self.settings.base_url}: no answer in {self.settings.http_tries} tries, the last: {said}")


def _asked_pause_s(response: httpx.Response) -> float | None:
    try:
        return min(float(response.headers["retry-after"]), LONGEST_PAUSE_S)
    except (KeyError, ValueError):
        return None
