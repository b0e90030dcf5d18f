"""Compile the exported graph with TensorRT, where there is one.

Written against TensorRT 11 and Polygraphy 0.53 (10.x takes the same calls: precision is in the graph, no precision
flags are passed). Not executed on the project's own machines, which have no GPU; see docs/NOT_EXECUTED.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airserve import contract
from airserve.contract import TensorSpec
from airserve.errors import ArtifactError, EngineError
from airserve.triton.config_names import ONNX_FILE, PLAN_FILE

TIMING_CACHE = "timing.cache"


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """How the engine is built."""

    engine: Path
    """Folder with the exported graph; the plan is written beside it."""
    max_batch: int = contract.MAX_BATCH
    """Largest batch of the optimisation profile."""
    version_compatible: bool = False
    """Let later TensorRT releases load the plan (Triton then needs version-compatible=true)."""
    workspace_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= contract.MAX_BATCH:
            raise ArtifactError(
                "max_batch", expected=f"1 to {contract.MAX_BATCH}", got=str(self.max_batch), remedy="choose within"
            )


def profile_shapes(spec: TensorSpec, max_batch: int = contract.MAX_BATCH) -> tuple[tuple[int, ...], ...]:
    """Min, opt and max shape of an input, from `contract.PROFILE`."""
    shapes = []
    for at in range(3):
        axes = {axis: bounds[at] for axis, bounds in contract.PROFILE.items()}
        axes["B"] = min(axes["B"], max_batch)
        shapes.append(
            tuple(axes[axis] if size == -1 else size for axis, size in zip(spec.axes, (-1, *spec.dims), strict=True))
        )
    return tuple(shapes)


def profile_json(max_batch: int = contract.MAX_BATCH) -> dict[str, list[list[int]]]:
    """Input name to [min, opt, max] shape."""
    return {spec.name: [list(shape) for shape in profile_shapes(spec, max_batch)] for spec in contract.RANKER_INPUTS}


def has_tensorrt() -> bool:
    """Whether TensorRT and Polygraphy can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("tensorrt", "polygraphy"))


def compile_engine(settings: CompileSettings) -> dict[str, Any]:
    """Build a serialized engine and write it, with its manifest, beside the graph.

    Returns:
        What the manifest says of the plan.

    Raises:
        ArtifactError: without an exported graph.
        EngineError: when TensorRT is missing or does not build the graph.
    """
    graph = settings.engine / ONNX_FILE
    if not graph.exists():
        raise ArtifactError(str(graph), expected="a graph", got="no such file", remedy="run build/export_onnx.py")
    if not has_tensorrt():
        raise EngineError("tensorrt: not installed here; build the engine inside the Triton container that serves it")
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath, Profile

    profile = Profile()
    for spec in contract.RANKER_INPUTS:
        low, usual, high = profile_shapes(spec, settings.max_batch)
        profile.add(spec.name, min=low, opt=usual, max=high)
    config = CreateConfig(
        profiles=[profile],
        version_compatible=settings.version_compatible,
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: settings.workspace_bytes},
        load_timing_cache=str(settings.engine / TIMING_CACHE),
    )
    try:
        plan = bytes(
            EngineBytesFromNetwork(
                NetworkFromOnnxPath(str(graph)), config=config, save_timing_cache=str(settings.engine / TIMING_CACHE)
            )()
        )
    except Exception as error:
        raise EngineError(f"tensorrt {trt.__version__}: did not build {graph}: {error}") from error
    _write(settings.engine / PLAN_FILE, plan)
    about = {
        "tensorrt": trt.__version__,
        "version_compatible": settings.version_compatible,
        "plan_bytes": len(plan),
        "profile": profile_json(settings.max_batch),
    }
    _write(settings.engine / "plan.json", json.dumps(about, indent=1).encode())
    return about


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
