"""Kernels of the served graph, from ONNX Runtime's own profile.

What limits the graph on a CPU: at these sizes a kernel's fixed cost (2 to 5 us) is as large as its work, so their
number counts, and the matrix products are what cannot be saved.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from airserve.errors import EngineError
from airserve.triton.ranker_session import SLOW_FUSIONS

PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
"""ONNX Runtime's names of matrix products, some with a bias or an activation fused in."""
WARM_UP = 20


def profile_graph(
    graph: Path, inputs: Mapping[str, npt.NDArray[Any]], wanted: list[str], *, runs: int = 200, dearest: int = 10
) -> dict[str, Any]:
    """Run a graph on one thread and sum up its kernels.

    Args:
        graph: an ONNX file.
        inputs: of every call.
        wanted: outputs that are computed.
        runs: calls measured, after some that warm up.
        dearest: kinds of kernel to report.

    Returns:
        `kernels` (executed per call), `kernel_ms` and `matmul_ms` (sums of the kernels' medians), `ms_over_matmul`, and
        `dearest`: kind of kernel -> [milliseconds, how many].

    Raises:
        EngineError: if the profile has no matrix product.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    run_options = ort.RunOptions()
    run_options.only_execute_path_to_fetches = True
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
        )
        for _ in range(WARM_UP + runs):
            session.run(wanted, dict(inputs), run_options)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent_us: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent_us[event["args"]["op_name"], event["name"]].append(event["dur"])
    by_kind: dict[str, list[float]] = defaultdict(list)
    for (kind, _), durations in spent_us.items():
        by_kind[kind].append(float(np.median(durations[WARM_UP:])))
    total_us = sum(sum(medians) for medians in by_kind.values())
    product_us = sum(sum(by_kind[kind]) for kind in PRODUCTS if kind in by_kind)
    if not product_us:
        raise EngineError(f"{graph}: no matrix product in the profile; ONNX Runtime names them otherwise now")
    ordered = sorted(by_kind, key=lambda kind: -sum(by_kind[kind]))[:dearest]
    return {
        "kernels": len(spent_us),
        "kernel_ms": round(total_us / 1e3, 4),
        "matmul_ms": round(product_us / 1e3, 4),
        "ms_over_matmul": round(total_us / product_us, 3),
        "dearest": {kind: [round(sum(by_kind[kind]) / 1e3, 4), len(by_kind[kind])] for kind in ordered},
    }
