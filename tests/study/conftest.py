"""A small world of themes for the study: users who stay with a theme, and intents that are the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from airserve.data.importers import import_folder
from airserve.data.schema import write_parquet
from airserve.study.models import MODELS
from airserve.study.prepare import prepare, study_settings
from airserve.study.protocol import Protocol
from airserve.study.run import Results, run_study
from airserve.study.subject import Study
from airserve.table.build import BuildSettings, build_tables

N_FOOD, N_KITCHEN, THEMES = 30, 40, 5
FEW = Protocol(negatives=12, draws=4)


class ThemeEmbedder:
    """Texts of one theme word lie near each other; enough text understanding for these tests, and instant."""

    identity = "theme words"

    def embed(self, texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 16), dtype=np.float32)
        for place, text in enumerate(texts):
            rng = np.random.default_rng(sum(map(ord, text)))
            vectors[place] = 0.1 * rng.normal(size=16)
            vectors[place, [int(word[5:]) for word in text.split() if word.startswith("theme")]] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def theme(item: int) -> int:
    return item % THEMES


def write_llmcdsr(folder: Path) -> None:
    """Users who stay with a theme: what comes next can be learned from it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    count = N_FOOD + N_KITCHEN
    lines = ["index\tdomain\tasin\ttitle"]
    lines += [f"{i}\t{'food' if i < N_FOOD else 'kitchen'}\tA{i}\ttheme{theme(i)} thing {i}" for i in range(count)]
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")

    def users(number: int, low: int, high: int) -> str:
        made = []
        for user in range(number):
            of_theme = [i for i in range(low, high) if theme(i) == user % THEMES]
            chosen = rng.permutation(of_theme)[: int(rng.integers(3, 7))]
            made.append(f"{user}\t{','.join(map(str, chosen))}")
        return "\n".join(made) + "\n"

    for name, number, low, high in (
        ("train_overlap", 60, 0, count),
        ("train_A", 40, 0, N_FOOD),
        ("train_B", 40, N_FOOD, count),
        ("valid", 30, 0, count),
        ("test", 40, 0, count),
    ):
        (folder / f"{name}.txt").write_text(users(number, low, high))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """LLMCDSR's files and the tables of true intents."""
    folder = tmp_path_factory.mktemp("study")
    write_llmcdsr(folder / "raw")
    count = N_FOOD + N_KITCHEN
    answers = pa.table(
        {
            "item_id": pa.array(range(count), pa.int64()),
            "action": ["order"] * count,
            "user_segment": pa.array([0] * count, pa.int32()),
            "text": [""] * count,
            "paths": [[["things", f"theme{theme(i)} things"]] for i in range(count)],
            "valid": [True] * count,
            "raw": [""] * count,
        }
    )
    import_folder(folder / "raw", folder / "data")
    write_parquet(answers, folder / "intents" / "answers.parquet")
    settings = BuildSettings(data=folder / "data", intents=folder / "intents", out=folder / "tables", cache=None)
    build_tables(settings, ThemeEmbedder())
    return folder / "raw", folder / "tables"


@pytest.fixture(scope="module")
def study(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Study:
    work = tmp_path_factory.mktemp("work")
    return prepare(*folders, work, train=study_settings(fast=True), protocol=FEW)


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return run_study(study, list(MODELS), [0, 1], cache, lambda results: None), cache
