"""Fixtures shared by all tests: the main job on a small world, and a real Triton that serves it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = 0.25
"""Size of the world that tests run the main job on: 1,000 items, 1,250 users, 50,000 events."""


@pytest.fixture(scope="session")
def small_job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The main job up to the model repository, on a small world, with the real vLLM; `(job, results)`."""
    from airserve.main_job import MainJob, steps
    from airserve.pipeline import run_chain

    before = Path.cwd()
    os.chdir(ROOT)
    try:
        folder = tmp_path_factory.mktemp("job")
        job = MainJob(folder=folder, size=SMALL, train_minutes=1.0)
        chain = [step for step in steps(job) if step.name != "llm_online"]
        results = run_chain(chain, folder / "steps")
    finally:
        os.chdir(before)
    return job, results


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random tables and an untrained ranker, in `tables/` and `engine/`."""
    from airserve.bench.synthetic import write_all

    folder = tmp_path_factory.mktemp("synthetic")
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def local(synthetic: Path) -> Any:
    """What the synthetic ranker computes without a server, as `InProcess`."""
    from airserve.bench.inprocess import InProcess

    return InProcess(synthetic / "tables", synthetic / "engine")


@pytest.fixture(scope="session")
def synthetic_server(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Function that makes a server of the synthetic ranker, not started, from serving settings and the server's own."""
    from airserve.triton.repository import RepositorySource, write_repository
    from airserve.triton.server import ServerSettings, TritonServer

    def make(settings: Any, **server: Any) -> Any:
        source = RepositorySource(tables=synthetic / "tables", engine=synthetic / "engine", settings=settings)
        repository = write_repository(source, tmp_path_factory.mktemp("repository") / "model_repository")
        return TritonServer(ServerSettings(repository=repository, environment=ROOT / ".venv-triton", **server))

    return make


@pytest.fixture(scope="session")
def served(small_job: Any) -> Iterator[Any]:
    """A real Triton that serves the small job's repository."""
    from airserve.triton.server import ServerSettings, TritonServer

    job, _ = small_job
    settings = ServerSettings(repository=job.folder / "model_repository", environment=ROOT / ".venv-triton")
    with TritonServer(settings) as server:
        yield server


@pytest.fixture(scope="session")
def logged(small_job: Any) -> Any:
    """Forty users of the small world's test split as `LoggedUser`."""
    from airserve.showcase import Catalogue, logged_users

    data = small_job[0].folder / "data"
    return logged_users(data, Catalogue.open(data), count=40, candidates=50)
