"""What half precision in a table's rows does to scores and ranks, measured before the table is trusted.

The same requests are looked up and ranked twice: in the rows as they are served (fp16), and in rows of fp32, by the
same graph with its inputs widened.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto

from airserve import contract
from airserve.artifacts import ONNX_FILE
from airserve.errors import EngineError
from airserve.table.encode import Encoder, encode_rows
from airserve.table.intents import IntentTable
from airserve.table.lookup import ServedTable, ranker_inputs

Array = npt.NDArray[Any]
HALF_TOLERANCE = 2e-2
"""Accepted difference of 99 % of the scores. fp16 rounds a row by 2^-11; 2.5e-3 was found at scores of up to 16. The
largest difference says little: where the last of the kept chains is a near tie of the next, either may be kept, and a
score can jump (2 candidates in 1,000 on the demo)."""
REQUESTS, BEHAVIOURS, CANDIDATES, TOP = 64, 48, 512, 10


def with_wide_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fp32 in place of its fp16 inputs."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for value in wide.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del wide.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(wide, check_type=True, strict_mode=True)


def sample_requests(table: IntentTable, count: int = REQUESTS, seed: int = 0) -> list[dict[str, Array]]:
    """Requests about a table's own items, the same every time."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shape = (1, BEHAVIOURS)
        interests = rng.choice(table.items, 16)
        found.append(
            {
                contract.BEHAVIOUR_ITEMS.name: rng.choice(interests, shape),
                contract.BEHAVIOUR_ACTIONS.name: rng.integers(1, contract.N_ACTIONS, shape).astype(np.int32),
                contract.BEHAVIOUR_AGES_S.name: -np.sort(-(10.0 ** rng.uniform(1, 7, shape))).astype(np.float32),
                contract.USER_SEGMENT.name: np.zeros((1, 1), dtype=np.int32),
                contract.CANDIDATE_ITEMS.name: rng.choice(table.items, (1, CANDIDATES)),
            }
        )
    return found


def compare_precision(table: IntentTable, served: ServedTable, encoder: Encoder) -> dict[str, float]:
    """Compare a served table's scores and ranks with those of fp32 rows.

    Args:
        table: that the served one was made of.
        served: fp16.
        encoder: that made it; the engine lies beside it.

    Returns:
        `score_difference_p99` and `score_difference_max`; `chains_changed_share` (of the candidates whose kept chains
        differ); `rank_change_mean` (places that a candidate moves among 512); `top10_changed_share` (of those among the
        first ten).

    Raises:
        EngineError: if more than 1 % of the scores differ by more than `HALF_TOLERANCE`.
    """
    rows, _ = encode_rows(table, encoder, np.float32)
    wide_table = ServedTable(served.manifest, replace(served.arrays, **rows))
    path = encoder.folder / ONNX_FILE
    half, wide = (_session(model) for model in (path, with_wide_rows(onnx.load(str(path))).SerializeToString()))
    differences, moves, changed, flipped = [], [], [], []
    for request in sample_requests(table):
        (ours, our_chains), (theirs, their_chains) = (
            session.run([contract.SCORES.name, contract.CHAIN_INDEX.name], ranker_inputs(lookup(request)))
            for session, lookup in ((half, served.lookup), (wide, wide_table.lookup))
        )
        differences.append(np.abs(ours[0].astype(np.float64) - theirs[0]))
        flipped.append((np.sort(our_chains[0]) != np.sort(their_chains[0])).any(axis=-1).mean())
        places = [np.argsort(np.argsort(-scores[0], kind="stable"), kind="stable") for scores in (ours, theirs)]
        moves.append(np.abs(places[0] - places[1]).mean())
        first, second = (np.flatnonzero(place < TOP) for place in places)
        changed.append(np.setdiff1d(first, second).size / TOP)
    every = np.concatenate(differences)
    figures = {
        "score_difference_p99": float(np.quantile(every, 0.99)),
        "score_difference_max": float(every.max()),
        "chains_changed_share": float(np.mean(flipped)),
        "rank_change_mean": float(np.mean(moves)),
        "top10_changed_share": float(np.mean(changed)),
    }
    if not figures["score_difference_p99"] <= HALF_TOLERANCE:
        raise EngineError(
            f"served table: half precision moves 1 % of the scores by {figures['score_difference_p99']:.2g}, at most "
            f"{HALF_TOLERANCE:g} is accepted; the ranker's weights are too large, train it again"
        )
    return {name: float(f"{value:.3g}") for name, value in figures.items()}


def _session(model: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
