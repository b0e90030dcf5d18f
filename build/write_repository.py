"""Write the Triton model repository: configurations from the contract, the table, the compiled ranker.

`--static` writes only what does not depend on data: it makes the committed `model_repository/`, in the stepwise variant
unless told otherwise, for that is the one that every target has.
"""

import logging
from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.triton.config import ServingSettings, Target, Variant
from airserve.triton.repository import RepositorySource, write_repository, write_static

log = logging.getLogger("write_repository")


def main(
    *,
    tables: Path = Path("artifacts/demo/tables"),
    engine: Path = Path("artifacts/demo/engine"),
    out: Path = Path("artifacts/demo/model_repository"),
    target: Target = "embedded",
    variant: Variant | None = None,
    static: bool = False,
    lookup_instances: int = 1,
    ranker_instances: int = 1,
    ranker_threads: int = 1,
    max_queue_delay_us: int = ServingSettings.max_queue_delay_us,
    max_queue_size: int = ServingSettings.max_queue_size,
    queue_timeout_us: int = ServingSettings.queue_timeout_us,
) -> dict[str, object]:
    """Write a model repository.

    Args:
        tables: folder made by offline/build_tables.py.
        engine: folder made by build/export_onnx.py (and build/compile_engine.py).
        out: where the repository goes; replaced when it exists.
        target: `embedded` (the server of the pytriton wheel), `onnxruntime` or `tensorrt` (the Triton container).
        variant: `stepwise` (lookup, then ranker) or `fused` (one Python model, `embedded` only).
        static: only configurations and Python models, without table and engine.
        lookup_instances: processes of the lookup.
        ranker_instances: instances of the ranker.
        ranker_threads: ONNX Runtime threads of one ranker instance (`embedded`).
        max_queue_delay_us: how long a step waits for requests to batch, microseconds.
        max_queue_size: requests that wait; more are refused as UNAVAILABLE.
        queue_timeout_us: how long a request waits before it is refused, microseconds.
    """
    settings = ServingSettings(
        variant="stepwise" if static and variant is None else variant,
        lookup_instances=lookup_instances,
        ranker_instances=ranker_instances,
        ranker_threads=ranker_threads,
        max_queue_delay_us=max_queue_delay_us,
        max_queue_size=max_queue_size,
        queue_timeout_us=queue_timeout_us,
    )
    if static:
        write_static(out, target, settings)
    else:
        write_repository(RepositorySource(tables=tables, engine=engine, target=target, settings=settings), out)
    written = settings.variant_for(target)
    log.info("wrote %s for target %s, variant %s", out, target, written)
    return {"repository": str(out), "target": target, "variant": written}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
