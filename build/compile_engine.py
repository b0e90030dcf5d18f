"""Compile the exported ranker with TensorRT; without TensorRT, say that ONNX Runtime will serve the graph."""

import importlib.metadata
import logging
from pathlib import Path

import cyclopts

from airserve import contract
from airserve.artifacts import ONNX_FILE
from airserve.cli import run_script
from airserve.errors import ArtifactError
from airserve.export.tensorrt import CompileSettings, compile_engine, has_tensorrt

log = logging.getLogger("compile_engine")


def main(
    *,
    engine: Path = Path("artifacts/demo/engine"),
    max_batch: int = contract.MAX_BATCH,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    fp16: bool = False,
) -> dict[str, object]:
    """Compile `ranker.onnx` to `model.plan` in the same folder.

    Args:
        engine: folder made by build/export_onnx.py.
        max_batch: largest batch of the engine's profile.
        version_compatible: let later TensorRT releases load the plan.
        hardware_compatible: let other GPUs load the plan.
        fp16: compile ranker.fp16.onnx.
    """
    settings = CompileSettings(
        engine=engine,
        max_batch=max_batch,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        fp16=fp16,
    )
    if has_tensorrt():
        return {"serves": "tensorrt", **compile_engine(settings)}
    if not (engine / ONNX_FILE).exists():
        raise ArtifactError(
            str(engine / ONNX_FILE), expected="a graph", got="no such file", remedy="run build/export_onnx.py"
        )
    version = importlib.metadata.version("onnxruntime")
    log.info("no TensorRT on this machine: ONNX Runtime %s will serve %s", version, engine / ONNX_FILE)
    return {"serves": "onnxruntime", "onnxruntime": version}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
