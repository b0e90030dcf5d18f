"""Half precision in a table's rows: measured, and refused where it moves scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from airserve import contract
from airserve.artifacts import INTENTS_FOLDER, ONNX_FILE, SERVING_FOLDER
from airserve.bench.synthetic import write_all
from airserve.errors import EngineError
from airserve.export.half import HALF_TOLERANCE, compare_precision, sample_requests, with_wide_rows
from airserve.export.parity import random_inputs
from airserve.table.encode import Encoder
from airserve.table.intents import IntentTable
from airserve.table.lookup import ServedTable

Parts = tuple[IntentTable, ServedTable, Encoder]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("half_rows")
    write_all(folder, n_items=600, n_nodes=120, n_paths=80)
    tables = folder / "tables"
    return (
        IntentTable.open(tables / INTENTS_FOLDER),
        ServedTable.open(tables / SERVING_FOLDER),
        Encoder.open(folder / "engine"),
    )


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airserve.export.half.sample_requests", lambda table: sample_requests(table, 6))


def test_half_precision_moves_scores_a_little_and_ranks_hardly(parts: Parts) -> None:
    figures = compare_precision(*parts)
    print(figures, "tolerance", HALF_TOLERANCE)
    assert 0 < figures["score_difference_p99"] <= HALF_TOLERANCE
    assert figures["score_difference_p99"] <= figures["score_difference_max"]
    assert figures["rank_change_mean"] < 1.0
    assert figures["top10_changed_share"] < 0.1


def test_rows_that_are_not_the_encoders_are_refused(parts: Parts) -> None:
    table, served, encoder = parts
    rng = np.random.default_rng(0)
    tokens = served.arrays.item_tokens + rng.normal(0, 0.3, served.arrays.item_tokens.shape).astype(np.float16)
    with pytest.raises(EngineError, match="half precision moves"):
        compare_precision(table, ServedTable(served.manifest, replace(served.arrays, item_tokens=tokens)), encoder)


def test_the_widened_graph_takes_fp32_and_scores_equal_rows_alike(parts: Parts) -> None:
    import onnxruntime as ort

    path = parts[2].folder / ONNX_FILE
    model = onnx.load(str(path))
    wide = with_wide_rows(model)
    assert onnx.TensorProto.FLOAT16 not in {value.type.tensor_type.elem_type for value in wide.graph.input}
    assert model == onnx.load(str(path)), "the given model is not changed"
    inputs = random_inputs({"B": 2, "C": 5, "R": 9}, contract.USUAL_SIZES, seed=0)
    widened = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in inputs.items()}
    half, full = (
        ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)
        for graph, given in ((model, inputs), (wide, widened))
    )
    for ours, theirs in zip(half, full, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_sample_requests_are_valid_and_the_same_every_time(parts: Parts) -> None:
    first, second = (sample_requests(parts[0], 3) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        contract.validate_request(ours)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
