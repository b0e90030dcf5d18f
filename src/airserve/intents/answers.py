"""What was answered so far: one small file a finished chunk, found again by the content of what was asked.

An answer's key covers all that decides it: prompt version and text, model, answer schema and sampling. A file appears
whole or not at all, so a job killed at any point has lost only the chunks it was working on, and a later run, also of
other data, asks only what has no answer yet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airserve.artifact_schemas import PARTS_SCHEMA
from airserve.artifacts import CHECKPOINT_CONFIG_FILE, PARTS_FOLDER
from airserve.data.schema import write_parquet
from airserve.errors import ArtifactError, UserError
from airserve.intents.prompt import PROMPT_VERSION
from airserve.intents.schema import ANSWER_SCHEMA
from airserve.intents.settings import GenerateSettings

LOCK_FILE = ".lock"
KEY_BYTES = 20
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said to one prompt."""

    raw: str
    paths: tuple[tuple[str, ...], ...]
    """Empty when invalid."""
    valid: bool
    retried: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, found in the engine's prefix cache."""
    output_tokens: int = 0
    error: str = ""
    """Set where the engine refused the prompt; kept, so that it is not asked again every night."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What answers took."""

    prompt: int = 0
    cached: int = 0
    """Of `prompt`, found in the engine's prefix cache."""
    output: int = 0

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Tokens:
        """Sum over answers."""
        return cls(
            prompt=sum(answer.prompt_tokens for answer in answers),
            cached=sum(answer.cached_tokens for answer in answers),
            output=sum(answer.output_tokens for answer in answers),
        )

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            prompt=self.prompt + other.prompt, cached=self.cached + other.cached, output=self.output + other.output
        )


def model_identity(model: str) -> str:
    """Say which model this is: for a folder the SHA-256 over its config, tokenizer and weights, else the hub name.

    Raises:
        ArtifactError: for a folder without `config.json` or weights.
    """
    folder = Path(model)
    if not folder.is_dir():
        return f"hub:{model}"
    weights = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    config = folder / CHECKPOINT_CONFIG_FILE
    if not config.is_file() or not weights:
        raise ArtifactError(
            str(folder),
            expected="a Hugging Face checkpoint (config.json, tokenizer, *.safetensors)",
            got=f"no {CHECKPOINT_CONFIG_FILE}" if not config.is_file() else "no weights",
            remedy="name a model folder, or a model on a hub such as Qwen/Qwen3-4B",
        )
    names = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    digest = hashlib.sha256()
    for path in [config, *(folder / name for name in names if (folder / name).is_file()), *weights]:
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def content_keys(prompts: Sequence[str], settings: GenerateSettings, identity: str) -> list[str]:
    """Name each prompt's answer by everything that decides it.

    Args:
        prompts: rendered prompts.
        settings: for the sampling.
        identity: of `model_identity`.
    """
    sampling = {
        "temperature": 0,
        "retry_temperature": settings.retry_temperature,
        "max_output_tokens": settings.max_output_tokens,
        "max_model_len": settings.max_model_len,
        "seed": settings.seed,
    }
    common = json.dumps([PROMPT_VERSION, identity, sampling, ANSWER_SCHEMA], sort_keys=True)
    start = hashlib.blake2b(common.encode() + b"\0", digest_size=KEY_BYTES)
    keys = []
    for prompt in prompts:
        digest = start.copy()
        digest.update(prompt.encode("utf-8", "surrogatepass"))
        keys.append(digest.hexdigest())
    return keys


def write_part(folder: Path, keys: Sequence[str], answers: Sequence[Answer]) -> None:
    """Write the answers of one chunk; the file is named by the hash of keys and errors.

    Args:
        folder: the job's folder.
        keys: of `content_keys`.
        answers: one a key.
    """
    columns: dict[str, list[Any]] = {"key": list(keys)}
    for field in PARTS_SCHEMA.names[1:]:
        columns[field] = [getattr(answer, field) for answer in answers]
    content = "".join([*keys, *(answer.error for answer in answers)])
    name = hashlib.blake2b(content.encode("utf-8", "replace"), digest_size=KEY_BYTES).hexdigest()
    path = folder / PARTS_FOLDER / f"{name}.parquet"
    write_parquet(pa.table(columns, schema=PARTS_SCHEMA), path)


def read_parts(folder: Path) -> pa.Table:
    """Read every answer of a job's folder, `PARTS_SCHEMA`; a key may occur twice, with the same answer.

    Raises:
        ArtifactError: naming a part that cannot be read.
    """
    tables = [PARTS_SCHEMA.empty_table()]
    for path in sorted((folder / PARTS_FOLDER).glob("[0-9a-f]*.parquet")):
        try:
            tables.append(pq.read_table(path, schema=PARTS_SCHEMA))
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(
                str(path),
                expected="a part written by generate_intents",
                got=str(error).splitlines()[0],
                remedy="delete it; the next run asks for its answers again",
            ) from error
    return pa.concat_tables(tables)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second copy of the job; the lock ends with the process, however it ends.

    Raises:
        UserError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                str(folder),
                expected="no other generation job on this folder",
                got="one is running",
                remedy="wait for it to end, or write to another folder",
            ) from error
        yield
