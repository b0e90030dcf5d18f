"""An engine that knows no catalogue, on a real Triton: unknown items, new users, and tables that fit or do not.

The ranker is untrained: what is tested holds of any.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airserve import contract
from airserve.artifacts import ONNX_FILE, TABLE_FOLDER
from airserve.bench.inprocess import InProcess
from airserve.bench.synthetic import random_arrays, write_engine, write_intents, write_serving
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.client import Behaviour, ItemIds, RankClient, RankRequest, item_id
from airserve.client.wire import PLAIN_OUTPUTS
from airserve.errors import ArtifactError, EngineError
from airserve.table.format import Weighing
from airserve.table.lookup import ServedTable
from airserve.table.publish import publish_table
from airserve.triton.config import ServingSettings
from airserve.triton.repository import RepositorySource, write_repository
from airserve.triton.server import ServerSettings, TritonServer

pytestmark = pytest.mark.triton
ROOT = Path(__file__).resolve().parents[2]
FUSED = ServingSettings(variant="fused")
FIRST_OTHER = 10_000
"""First item id of a second catalogue."""
NOT_THERE = -7
"""No item of any table here."""


@pytest.fixture(scope="module", params=["fused", "stepwise"])
def server(request: pytest.FixtureRequest, synthetic_server: Any) -> Iterator[TritonServer]:
    with synthetic_server(ServingSettings(variant=request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[RankClient]:
    with RankClient(server.grpc_url, timeout_s=30) as connected:
        yield connected


def history(*items: Any) -> list[Behaviour[Any]]:
    return [Behaviour(item=item, action="view", age_s=float(60 * (len(items) - at))) for at, item in enumerate(items)]


def served_repository(tables: Path, engine: Path, out: Path) -> Path:
    return write_repository(RepositorySource(tables=tables, engine=engine, settings=FUSED), out)


def start(repository: Path) -> TritonServer:
    return TritonServer(ServerSettings(repository=repository, environment=ROOT / ".venv-triton"))


# Unknown candidates.


@pytest.mark.parametrize("behaviours", [history(1, 2, 3), history(NOT_THERE), []], ids=["known", "unknown", "none"])
def test_unknown_candidates_are_counted_told_and_ranked_below_all_others(
    client: RankClient, behaviours: list[Behaviour]
) -> None:
    candidates = [5, NOT_THERE, 9, NOT_THERE - 1, 5, NOT_THERE]
    (result,) = client.rank([RankRequest(behaviours=behaviours, candidates=candidates)], tell_unknown=True)
    assert result.unknown == (NOT_THERE, NOT_THERE - 1, NOT_THERE)
    assert result.unknown_count == 3
    assert np.isfinite(result.scores).all()
    assert {item.item for item in result.top(3)} == {5, 9}
    assert len({float(result.scores[at]) for at in (1, 3, 5)}) == 1


def test_their_number_is_told_when_their_names_are_not_asked_for(client: RankClient) -> None:
    requests = [RankRequest(behaviours=history(1), candidates=candidates) for candidates in ([1, 2], [NOT_THERE, 2, 3])]
    results = client.rank(requests)
    assert [result.unknown_count for result in results] == [0, 1]
    assert [result.unknown for result in results] == [None, None]


def test_over_the_parts_of_a_long_list_they_are_added_up_and_rank_last(client: RankClient) -> None:
    known, unknown = list(range(1, 1801)), list(range(-1800, 0))
    mixed = [item for pair in zip(known, unknown, strict=True) for item in pair]
    (result,) = client.rank([RankRequest(behaviours=history(1, 2, 3), candidates=mixed)], tell_unknown=True)
    assert result.unknown == tuple(unknown)
    assert result.unknown_count == len(unknown)
    assert {item.item for item in result.top(len(known))} == set(known)


def test_string_ids_that_the_table_does_not_know_come_back_as_strings(server: TritonServer) -> None:
    ids = ItemIds()
    with RankClient(server.grpc_url, timeout_s=30, item_ids=ids) as client:
        request = RankRequest[Any](behaviours=history("seen", 4), candidates=["new", 5, "newer"])
        (result,) = client.rank([request], tell_unknown=True)
    assert result.unknown == ("new", "newer")
    assert ids.decode(item_id("new")) == "new"


# Users without a history.


@pytest.mark.parametrize("segment", [0, 1, 99])
def test_an_empty_history_is_answered_by_what_is_popular_in_the_users_segment(
    client: RankClient, local: InProcess, segment: int
) -> None:
    candidates = local.table.items[:200]
    (result,) = client.rank([RankRequest(behaviours=[], candidates=candidates.tolist(), segment=segment)])
    prior = local.table.arrays.item_prior
    column = 1 + segment if 1 + segment < prior.shape[1] else 0
    popularity = prior[local.table.rows(candidates), column].astype(np.float32)
    assert len(np.unique(popularity)) > 10
    # The score may add what is the same for all.
    np.testing.assert_allclose(result.scores - result.scores[0], popularity - popularity[0], atol=1e-3)
    assert result.coverage == 0.0


# Tables of other catalogues, and of other encoders.


def test_one_engine_serves_two_catalogues_and_vocabularies_without_an_export(
    synthetic: Path, local: InProcess, tmp_path: Path
) -> None:
    engine = synthetic / "engine"
    graph = (engine / ONNX_FILE).read_bytes()
    arrays = random_arrays(seed=1, first_item=FIRST_OTHER, n_items=700, n_nodes=150, n_paths=90)
    write_intents(tmp_path / "tables", arrays)
    write_serving(tmp_path / "tables", engine, seed=1)
    other = InProcess(tmp_path / "tables", engine)
    assert not set(other.table.items) & set(local.table.items)
    assert other.table.manifest.catalogue_sha256 != local.table.manifest.catalogue_sha256
    for name, tables, computed in (("one", synthetic / "tables", local), ("two", tmp_path / "tables", other)):
        repository = served_repository(tables, engine, tmp_path / name)
        with start(repository) as server, RankClient(server.grpc_url, timeout_s=30) as client:
            for call in make_requests(computed.table, WorkloadSettings(behaviours=40, candidates=60, count=5)):
                served, expected = client.infer(call, PLAIN_OUTPUTS), computed.answer(call)
                for output in PLAIN_OUTPUTS:
                    np.testing.assert_allclose(served[output], expected[output], rtol=1e-4, atol=1e-4, err_msg=output)
            (result,) = client.rank([RankRequest(behaviours=[], candidates=[1, FIRST_OTHER])], tell_unknown=True)
        assert result.unknown == ((FIRST_OTHER,) if name == "one" else (1,))
        assert next(repository.rglob(ONNX_FILE)).read_bytes() == graph
    assert (engine / ONNX_FILE).read_bytes() == graph


def test_rows_of_another_encoder_stop_the_load_with_both_encoders_named(
    synthetic: Path, local: InProcess, tmp_path: Path
) -> None:
    shutil.copytree(synthetic / "tables" / "intents", tmp_path / "tables" / "intents")
    write_engine(tmp_path / "tables", tmp_path / "engine", seed=5)
    write_serving(tmp_path / "tables", tmp_path / "engine")
    theirs = ServedTable.open(tmp_path / "tables" / "serving").manifest.encoder
    assert theirs != local.table.manifest.encoder
    with pytest.raises(ArtifactError, match=f"{local.table.manifest.encoder}.*{theirs}"):
        served_repository(tmp_path / "tables", synthetic / "engine", tmp_path / "refused")
    # Swapped behind the writer's back, the model refuses it itself.
    repository = served_repository(synthetic / "tables", synthetic / "engine", tmp_path / "repository")
    replace_table(repository, tmp_path / "tables" / "serving")
    with pytest.raises(EngineError, match=f"{local.table.manifest.encoder}.*{theirs}"):
        start(repository).start()


def replace_table(repository: Path, table: Path) -> None:
    place = repository / contract.ENSEMBLE_MODEL / "1" / TABLE_FOLDER
    shutil.rmtree(place)
    shutil.copytree(table, place)


def republish(local: InProcess, folder: Path, **changed: np.ndarray) -> None:
    """The synthetic table with other arrays, in the name of the same encoder."""
    manifest = local.table.manifest
    publish_table(
        folder,
        dataclasses.replace(local.table.arrays, **changed),
        n_segments=manifest.n_segments,
        vocabulary_sha256=manifest.vocabulary_sha256,
        encoder=manifest.encoder,
        weighing=Weighing(**{name: tuple(v) if isinstance(v, list) else v for name, v in manifest.weighing.items()}),
    )


def test_rows_of_another_width_in_the_name_of_the_engines_encoder_stop_the_load(
    synthetic: Path, local: InProcess, tmp_path: Path
) -> None:
    republish(local, tmp_path / "narrow", item_tokens=local.table.arrays.item_tokens[:, :32])
    repository = served_repository(synthetic / "tables", synthetic / "engine", tmp_path / "repository")
    replace_table(repository, tmp_path / "narrow")
    with pytest.raises(EngineError, match=contract.WINDOW_TOKENS.name):
        start(repository).start()


@pytest.mark.parametrize("name", ["node_rows", "item_tokens", "item_targets", "item_prior", "neighbour_weights"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_are_neither_published_nor_opened(
    local: InProcess, tmp_path: Path, name: str, value: float
) -> None:
    bad = getattr(local.table.arrays, name).copy()
    bad[-1, -1] = value
    with pytest.raises(ArtifactError, match=f"{name}.npy: expected finite numbers"):
        republish(local, tmp_path / "bad", **{name: bad})
    assert not (tmp_path / "bad").exists()


def test_a_served_table_with_a_value_that_is_no_number_stops_the_load(synthetic: Path, tmp_path: Path) -> None:
    repository = served_repository(synthetic / "tables", synthetic / "engine", tmp_path / "repository")
    path = repository / contract.ENSEMBLE_MODEL / "1" / TABLE_FOLDER / "item_tokens.npy"
    rows = np.lib.format.open_memmap(path, mode="r+")
    rows[-1, -1] = np.nan
    rows.flush()
    with pytest.raises(EngineError, match=r"item_tokens\.npy: expected sha256"):
        start(repository).start()
