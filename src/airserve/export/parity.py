"""Hold the exported graph equal to PyTorch at the corners of the profile, and what is served to what was trained.

Two comparisons: the graph against the request network it was traced from, on random inputs; and the whole served path
(lookup in half-precision rows, graph) against the ranker in its trained form, on requests about a table's own items.
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
from airserve.model.request import RequestNetwork

Array = npt.NDArray[Any]
TOLERANCE = 1e-3
"""Largest difference of a score or chain weight that is accepted (fp32 against fp32 is about 1e-6)."""
INDEX_TOLERANCE = 1e-3
"""Largest share of chain indices that may differ: near ties fall either way."""
CORNERS: tuple[dict[str, int], ...] = (
    {"B": 1, "C": 1, "R": contract.MIN_CHAINS},
    {axis: usual for axis, (_, usual, _) in contract.PROFILE.items()},
    {"B": 3, "C": 5, "R": 9},
    {"B": 1, "C": 4, "R": contract.MAX_CHAINS},
    {"B": 1, "C": contract.MAX_CANDIDATES, "R": 24},
    {"B": contract.MAX_BATCH, "C": 3, "R": 12},
)


def random_inputs(axes: Mapping[str, int], sizes: Mapping[str, int], *, seed: int) -> dict[str, Array]:
    """Random ranker inputs of some sizes, as the lookup could have made them.

    Args:
        axes: B, C, R.
        sizes: the encoder's H, E and X.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    b, c, r = (axes[axis] for axis in "BCR")
    extents = {**axes, **sizes}

    def rows(spec: contract.TensorSpec, length: float) -> Array:
        shape = (b, *spec.dims_for(extents))
        values: Array = rng.standard_normal(shape) * (length / np.sqrt(shape[-1]))
        return values

    real_BT = np.arange(contract.WINDOW) >= rng.integers(0, contract.WINDOW, size=(b, 1))
    depth_BR = np.where(
        np.arange(r) < rng.integers(0, r + 1, size=(b, 1)), rng.integers(1, 1 + contract.MAX_DEPTH, (b, r)), 0
    )
    exists_BRD = np.arange(contract.MAX_DEPTH) < depth_BR[..., None]
    shown_BRM = np.arange(contract.MAX_EVIDENCE) < rng.integers(1, 1 + contract.MAX_EVIDENCE, (b, r))[..., None]
    shown_BRM &= depth_BR[..., None] > 0
    bias_BR = np.where(depth_BR > 0, -contract.TIE_STEP * np.arange(r), contract.PADDED_CHAIN)
    arrays = {
        contract.WINDOW_TOKENS: rows(contract.WINDOW_TOKENS, 3.0) * real_BT[..., None],
        contract.WINDOW_CONTEXT: rng.integers(
            1 + contract.N_GAPS, 1 + contract.N_ACTIONS * contract.N_GAPS, size=(b, contract.WINDOW)
        )
        * real_BT,
        contract.CHAIN_ROWS: rows(contract.CHAIN_ROWS, 1.0) * exists_BRD[..., None],
        contract.LEVEL_WEIGHTS: rng.uniform(0.0, 3.0, exists_BRD.shape) * exists_BRD,
        contract.CHAIN_BIAS: bias_BR,
        contract.EVIDENCE_TOKENS: rows(contract.EVIDENCE_TOKENS, 3.0) * shown_BRM[..., None],
        contract.CANDIDATE_TOKENS: rows(contract.CANDIDATE_TOKENS, 3.0),
        contract.CANDIDATE_TARGETS: rows(contract.CANDIDATE_TARGETS, 1.0),
        contract.CANDIDATE_PRIOR: np.where(rng.random((b, c)) < 0.1, -np.inf, rng.uniform(0.0, 2.0, (b, c))),
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


def compare(network: RequestNetwork, session: ort.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, float]:
    """Differences between PyTorch and ONNX Runtime on one set of inputs.

    Returns:
        `max` and `mean` absolute difference of scores and chain weights, and `index_share`, the share of chain indices
        that differ.
    """
    with torch.inference_mode():
        ours = network(*(torch.from_numpy(inputs[spec.name]) for spec in contract.RANKER_INPUTS))
    theirs = session.run([spec.name for spec in contract.RANKER_OUTPUTS], dict(inputs))
    differences: list[Array] = []
    unequal: list[Array] = []
    for spec, tensor, array in zip(contract.RANKER_OUTPUTS, ours, theirs, strict=True):
        expected = tensor.numpy()
        if np.issubdtype(spec.dtype, np.integer):
            unequal.append((expected != array).ravel())
            continue
        # Padded candidates are -inf on both sides; anything else that is no number is a fault.
        finite = np.isfinite(expected)
        if not np.array_equal(expected[~finite], array[~finite]) or np.isnan(expected).any():
            return {"max": float("inf"), "mean": float("inf"), "index_share": 1.0}
        differences.append(np.abs(expected[finite].astype(np.float64) - array[finite]).ravel())
    joined = np.concatenate([*differences, np.zeros(1)])
    return {
        "max": float(joined.max()),
        "mean": float(joined.mean()),
        "index_share": float(np.concatenate(unequal).mean()),
    }


def check_parity(
    ranker: Ranker, path: Path, sizes: Mapping[str, int], corners: Sequence[Mapping[str, int]] = CORNERS
) -> dict[str, float]:
    """Compare at every corner.

    Returns:
        The worst of each figure of `compare`, the mean over corners of `mean`, and `tolerance`.

    Raises:
        EngineError: naming the corner, if a difference is larger than `TOLERANCE` or `INDEX_TOLERANCE`.
    """
    session = open_session(path)
    network = RequestNetwork(ranker).eval()
    found = []
    for seed, axes in enumerate(corners):
        figures = compare(network, session, random_inputs(axes, sizes, seed=seed))
        if not figures["max"] <= TOLERANCE or figures["index_share"] > INDEX_TOLERANCE:
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


def measure_ms(path: Path, axes: Mapping[str, int], sizes: Mapping[str, int], *, runs: int = 100) -> dict[str, float]:
    """Time of one call in ONNX Runtime on one thread, p50 and p99 in milliseconds."""
    session = open_session(path)
    inputs = random_inputs(axes, sizes, seed=0)
    spent_ms = []
    for _ in range(runs + 10):
        start = time.perf_counter()
        session.run(None, inputs)
        spent_ms.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.quantile(spent_ms[10:], [0.5, 0.99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
