"""Count and time the kernels of the served graph, from ONNX Runtime's own profile (one thread, L = C = 128).

What limits it: small kernels; the matrix products are what cannot be saved, hence `ms_over_matmul`.
"""

from pathlib import Path

import cyclopts

from airserve import contract
from airserve.artifacts import ONNX_FILE, SERVING_FOLDER
from airserve.bench.profile import profile_graph
from airserve.bench.workload import WorkloadSettings, make_requests
from airserve.cli import run_script
from airserve.table.lookup import ServedTable, ranker_inputs


def main(
    *,
    tables: Path = Path("artifacts/demo/tables"),
    engine: Path = Path("artifacts/demo/engine"),
    behaviours: int = 128,
    candidates: int = 128,
    explain: bool = False,
    runs: int = 200,
) -> dict[str, object]:
    """Profile the graph on a request of the workload.

    Args:
        tables: tables folder, with `serving/` in it.
        engine: folder with the exported graph.
        behaviours: L of the request.
        candidates: C of the request.
        explain: also compute what only an explanation needs.
        runs: calls measured.
    """
    table = ServedTable.open(tables / SERVING_FOLDER)
    settings = WorkloadSettings(behaviours=behaviours, candidates=candidates, count=1)
    inputs = ranker_inputs(table.lookup(make_requests(table, settings)[0]))
    wanted = [spec.name for spec in contract.RANKER_OUTPUTS] if explain else [contract.SCORES.name]
    sizes = {"L": behaviours, "C": candidates, "R": inputs[contract.CHAIN_BIAS.name].shape[1], "explain": explain}
    return {**sizes, **profile_graph(engine / ONNX_FILE, inputs, wanted, runs=runs)}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
