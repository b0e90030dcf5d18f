"""Hold the exported graph equal to the PyTorch ranker, at the corners of the profile.

The reference is the ranker as it was trained (nothing folded), so folding is checked with the export.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from airserve import contract
from airserve.errors import ArtifactError, EngineError
from airserve.model.ranker import Ranker

Array = npt.NDArray[Any]
TOLERANCE = 1e-3
"""Largest difference of a score or chain weight that is accepted (fp32 against fp32 is about 1e-6)."""
INDEX_TOLERANCE = 1e-3
"""Largest share of chain nodes and evidence that may differ: near ties fall either way."""
CORNERS: tuple[dict[str, int], ...] = (
    {"B": 1, "L": 1, "C": 1, "R": 1, "U": 1},
    {axis: usual for axis, (_, usual, _) in contract.PROFILE.items()},
    {"B": 3, "L": 7, "C": 5, "R": 2, "U": 4},
    {"B": 1, "L": contract.MAX_BEHAVIOURS, "C": 4, "R": contract.MAX_CHAINS, "U": contract.MAX_TREE_NODES},
    {"B": 1, "L": 16, "C": contract.MAX_CANDIDATES, "R": 24, "U": 40},
    {"B": contract.MAX_BATCH, "L": 3, "C": 3, "R": 9, "U": 12},
)


def random_inputs(axes: Mapping[str, int], *, n_rows: int, n_nodes: int, seed: int) -> dict[str, Array]:
    """Random ranker inputs of some sizes, as the lookup step could have made them.

    Args:
        axes: B, L, C, R, U.
        n_rows: rows of the catalogue, with the reserved ones.
        n_nodes: nodes of the vocabulary, with node 0.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    b, length, c, r, u = (axes[axis] for axis in "BLCRU")
    real_BL = np.arange(length) < rng.integers(0, length + 1, size=(b, 1))
    real_BL[0] = True
    # One slot is the reserved one, so a tree of one node has no chain.
    depth_BR = rng.integers(0, contract.MAX_DEPTH + 1, size=(b, r)) * (u > 1)
    slots_BRD = rng.integers(1, max(u, 2), size=(b, r, contract.MAX_DEPTH))
    slots_BRD = np.where(np.arange(contract.MAX_DEPTH) < depth_BR[..., None], slots_BRD, contract.PAD_SLOT)
    chains_BLP = rng.integers(-r, r, size=(b, length, contract.MAX_PATHS)).clip(min=contract.PAD_CHAIN)
    nodes_BU = rng.integers(1, max(n_nodes, 2), size=(b, u)) * (n_nodes > 1)
    nodes_BU[:, contract.PAD_SLOT] = contract.PAD_NODE
    arrays = {
        contract.BEHAVIOUR_ROWS: rng.integers(contract.UNKNOWN_ROW, n_rows, size=(b, length)) * real_BL,
        contract.BEHAVIOUR_ACTIONS: rng.integers(1, contract.N_ACTIONS, size=(b, length)) * real_BL,
        contract.BEHAVIOUR_AGES_S: 10.0 ** rng.uniform(0, 8, size=(b, length)) * real_BL,
        contract.BEHAVIOUR_CHAINS: np.where(real_BL[..., None], chains_BLP, contract.PAD_CHAIN),
        contract.TREE_NODES: nodes_BU,
        contract.CHAIN_SLOTS: slots_BRD,
        contract.CANDIDATE_ROWS: rng.integers(contract.PAD_ROW, n_rows, size=(b, c)),
    }
    return {spec.name: array.astype(spec.dtype) for spec, array in arrays.items()}


def open_session(path: Path, *, threads: int = 1) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Raises:
        ArtifactError: if there is no such graph, or ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(
            str(path),
            expected="an ONNX graph",
            got=str(error).splitlines()[0][:200],
            remedy="run build/export_onnx.py",
        ) from None


def compare(ranker: Ranker, session: ort.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, float]:
    """Differences between PyTorch and ONNX Runtime on one set of inputs.

    Returns:
        `max` and `mean` absolute difference of scores and chain weights, and `index_share`, the share of chain nodes
        and evidence that differ.
    """
    with torch.inference_mode():
        ours = ranker(*(torch.from_numpy(inputs[spec.name]) for spec in contract.RANKER_INPUTS))
    theirs = session.run([spec.name for spec in contract.RANKER_OUTPUTS], dict(inputs))
    differences: list[Array] = []
    unequal: list[Array] = []
    for spec, tensor, array in zip(contract.RANKER_OUTPUTS, ours, theirs, strict=True):
        expected = tensor.numpy()
        if np.issubdtype(spec.dtype, np.integer):
            unequal.append((expected != array).ravel())
            continue
        finite = np.isfinite(expected)
        if (finite != np.isfinite(array)).any():
            return {"max": float("inf"), "mean": float("inf"), "index_share": 1.0}
        differences.append(np.abs(expected[finite].astype(np.float64) - array[finite]).ravel())
    joined = np.concatenate([*differences, np.zeros(1)])
    return {
        "max": float(joined.max()),
        "mean": float(joined.mean()),
        "index_share": float(np.concatenate(unequal).mean()),
    }


def check_parity(ranker: Ranker, path: Path, corners: Sequence[Mapping[str, int]] = CORNERS) -> dict[str, float]:
    """Compare at every corner.

    Returns:
        The worst of each figure of `compare`, the mean over corners of `mean`, and `tolerance`.

    Raises:
        EngineError: naming the corner, if a difference is larger than `TOLERANCE` or `INDEX_TOLERANCE`.
    """
    session = open_session(path)
    ranker = ranker.eval()
    n_rows, n_nodes = len(ranker.item_vectors_NE), len(ranker.node_vectors_VE)  # type: ignore[arg-type]
    found = []
    for seed, axes in enumerate(corners):
        figures = compare(ranker, session, random_inputs(axes, n_rows=n_rows, n_nodes=n_nodes, seed=seed))
        if figures["max"] > TOLERANCE or figures["index_share"] > INDEX_TOLERANCE:
            raise EngineError(
                f"{path}: differs from PyTorch at {dict(axes)}: scores by {figures['max']:.2g} (at most {TOLERANCE}), "
                f"indices in {figures['index_share']:.2g} of places (at most {INDEX_TOLERANCE}); the export is broken"
            )
        found.append(figures)
    return {
        "max_difference": max(figures["max"] for figures in found),
        "mean_difference": float(np.mean([figures["mean"] for figures in found])),
        "index_share": max(figures["index_share"] for figures in found),
        "tolerance": TOLERANCE,
    }


def measure_ms(path: Path, axes: Mapping[str, int], *, n_rows: int, n_nodes: int, runs: int = 100) -> dict[str, float]:
    """Time of one call in ONNX Runtime on one thread, p50 and p99 in milliseconds."""
    session = open_session(path)
    inputs = random_inputs(axes, n_rows=n_rows, n_nodes=n_nodes, seed=0)
    spent_ms = []
    for _ in range(runs + 10):
        start = time.perf_counter()
        session.run(None, inputs)
        spent_ms.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.quantile(spent_ms[10:], [0.5, 0.99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
