"""Compile the exported graph with TensorRT, where there is one.

Written against TensorRT 11 and Polygraphy 0.53 (10.x takes the same calls: precision is in the graph, no precision
flags are passed). Not executed on the project's own machines, which have no GPU; see docs/NOT_EXECUTED.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airserve import contract
from airserve.artifacts import FP16_FILE, MANIFEST_FILE, ONNX_FILE, PLAN_FILE, PLAN_MANIFEST
from airserve.contract import TensorSpec
from airserve.errors import ArtifactError, EngineError
from airserve.export.runtime import runtime
from airserve.files import write_bytes, write_json

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
    hardware_compatible: bool = False
    """Let other GPUs of this generation (Ampere) and later ones load the plan, at some cost in speed."""
    fp16: bool = False
    """Compile the fp16 graph; precision is in the graph, no builder flag is set."""
    workspace_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= contract.MAX_BATCH:
            raise ArtifactError(
                "max_batch", expected=f"1 to {contract.MAX_BATCH}", got=str(self.max_batch), remedy="choose within"
            )


def profile_shapes(
    spec: TensorSpec, max_batch: int = contract.MAX_BATCH, sizes: Mapping[str, int] = contract.USUAL_SIZES
) -> tuple[tuple[int, ...], ...]:
    """Min, opt and max shape of an input, from `contract.PROFILE` and the encoder's own sizes."""
    shapes = []
    for at in range(3):
        axes = {axis: bounds[at] for axis, bounds in contract.PROFILE.items()}
        axes["B"] = min(axes["B"], max_batch)
        shapes.append((axes["B"], *spec.dims_for({**sizes, **axes})))
    return tuple(shapes)


def profile_json(
    max_batch: int = contract.MAX_BATCH, sizes: Mapping[str, int] = contract.USUAL_SIZES
) -> dict[str, list[list[int]]]:
    """Input name to [min, opt, max] shape."""
    return {
        spec.name: [list(shape) for shape in profile_shapes(spec, max_batch, sizes)] for spec in contract.RANKER_INPUTS
    }


def engine_sizes(engine: Path) -> dict[str, int]:
    """The encoder's H, E and X, from the manifest of an engine folder.

    Raises:
        ArtifactError: if the manifest is missing or damaged.
    """
    path = engine / MANIFEST_FILE
    try:
        sizes: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["sizes"]
        return {axis: int(sizes[axis]) for axis in contract.USUAL_SIZES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: sizes",
            expected=f"the encoder's {', '.join(contract.USUAL_SIZES)}",
            got=f"{type(error).__name__}: {error}",
            remedy="export the ranker again with build/export_onnx.py",
        ) from None


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
    graph = settings.engine / (FP16_FILE if settings.fp16 else ONNX_FILE)
    if not graph.exists():
        remedy = "run build/export_onnx.py" + (" --fp16" if settings.fp16 else "")
        raise ArtifactError(str(graph), expected="a graph", got="no such file", remedy=remedy)
    if not has_tensorrt():
        raise EngineError("tensorrt: not installed here; build the engine inside the Triton container that serves it")
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath, Profile

    profile, sizes = Profile(), engine_sizes(settings.engine)
    for spec in contract.RANKER_INPUTS:
        low, usual, high = profile_shapes(spec, settings.max_batch, sizes)
        profile.add(spec.name, min=low, opt=usual, max=high)
    config = CreateConfig(
        profiles=[profile],
        version_compatible=settings.version_compatible,
        hardware_compatibility_level=trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if settings.hardware_compatible
        else None,
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
    write_bytes(settings.engine / PLAN_FILE, plan)
    about = {
        **runtime(),
        "tensorrt": trt.__version__,
        "precision": "fp16" if settings.fp16 else "fp32",
        "version_compatible": settings.version_compatible,
        "hardware_compatible": settings.hardware_compatible,
        "profile": profile_json(settings.max_batch, sizes),
        **plan_identity(settings.engine, plan),
    }
    write_json(settings.engine / PLAN_MANIFEST, about)
    return about


def plan_identity(engine: Path, plan: bytes) -> dict[str, Any]:
    """What says of which graph a plan was built: checked when the plan is put into a repository."""
    manifest = json.loads((engine / MANIFEST_FILE).read_text())
    same = ("contract_version", "encoder", "onnx_sha256")
    return {
        "plan_bytes": len(plan),
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        **{key: manifest.get(key) for key in same},
    }


def check_plan(engine: Path) -> dict[str, Any]:
    """Refuse a plan that is damaged, or that was built from another graph than the one beside it.

    Returns:
        The plan's manifest.

    Raises:
        ArtifactError: naming what differs.
    """
    remedy = "run build/compile_engine.py in the image that will serve it"
    path = engine / PLAN_MANIFEST
    if not path.exists():
        raise ArtifactError(str(path), expected="a manifest of the plan", got="no such file", remedy=remedy)
    about: dict[str, Any] = json.loads(path.read_text())
    for key, value in plan_identity(engine, (engine / PLAN_FILE).read_bytes()).items():
        if about.get(key) != value:
            raise ArtifactError(
                str(engine / PLAN_FILE),
                expected=f"{key} {value} (the graph's and the file's)",
                got=f"{about.get(key)} (when it was built)",
                remedy=remedy,
            )
    return about
