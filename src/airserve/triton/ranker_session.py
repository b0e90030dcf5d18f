"""The compiled graph in ONNX Runtime, asked for many requests of different lengths at once.

Runs inside Triton's Python backend (NumPy 1.26) and in the benchmarks' in-process baseline (NumPy 2): standard library,
NumPy and ONNX Runtime only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from airserve import contract
from airserve.errors import ArtifactError, UserError
from airserve.table.lookup import merge_lookups
from airserve.triton.grouping import group_by_size
from airserve.triton.padding import extent_of

Array = npt.NDArray[Any]
SLOW_FUSIONS = ["SkipLayerNormFusion"]
"""ONNX Runtime's one kernel for a sum and a norm takes 24 us where the two take 10 (1.32, 64 rows of 64)."""


class RankerSession:
    """An exported ranker, opened for serving.

    Args:
        path: the graph.
        threads: of ONNX Runtime, >= 1.

    Raises:
        ArtifactError: if it is no graph, or one of another contract.
        UserError: for threads below 1.
    """

    def __init__(self, path: Path | str, *, threads: int = 1) -> None:
        if threads < 1:
            raise UserError("threads", expected="at least 1", got=str(threads), remedy="give 1 or more")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning thread takes the core that Triton's own threads need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        remedy = "export it again with build/export_onnx.py"
        try:
            self.session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
            )
        except Exception as error:
            first = (str(error).splitlines() or [repr(error)])[0][:200]
            raise ArtifactError(str(path), expected="an ONNX graph", got=first, remedy=remedy) from None
        self._options = ort.RunOptions()
        # What only an explanation needs is not computed for others.
        self._options.only_execute_path_to_fetches = True
        self.stamps: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        made_for = self.stamps.get("contract_version", "none")
        if made_for != str(contract.CONTRACT_VERSION):
            raise ArtifactError(
                str(path), expected=f"contract version {contract.CONTRACT_VERSION}", got=made_for, remedy=remedy
            )

    def check_encoder(self, encoder: str) -> None:
        """Refuse a table whose rows another encoder made.

        Raises:
            ArtifactError: naming both sides.
        """
        ours = self.stamps.get("encoder", "none")
        if ours != encoder:
            raise ArtifactError(
                "table and graph",
                expected=f"rows of encoder {ours} (the graph's)",
                got=f"encoder {encoder or 'none'} (the table's)",
                remedy="make the table's rows again with offline/encode_table.py and this engine",
            )

    def run(
        self,
        parts: Sequence[Mapping[str, Array]],
        wanted: Sequence[str],
        given_up: Callable[[int], bool] = lambda at: False,
    ) -> list[dict[str, Array]]:
        """Answer calls of any sizes; those of like size run as one padded batch.

        Args:
            parts: the tensors of `contract.RANKER_INPUTS` of each call.
            wanted: names of `contract.RANKER_OUTPUTS` to compute.
            given_up: whether nobody waits for a call any more; asked before each group.

        Returns:
            For each call, the wanted tensors in its own sizes, contiguous; empty where it was given up.
        """
        if len(parts) == 1:
            if given_up(0):
                return [{}]
            return [self._run_one(parts[0], wanted)]
        answers: list[dict[str, Array]] = [{} for _ in parts]
        for like_sized in group_by_size([extent_of(part) for part in parts]):
            group = [at for at in like_sized if not given_up(at)]
            if len(group) < 2:
                for at in group:
                    answers[at] = self._run_one(parts[at], wanted)
                continue
            results = self._run_one(merge_lookups([parts[at] for at in group]), wanted)
            start = 0
            for at in group:
                batch, candidates = parts[at][contract.CANDIDATE_PRIOR.name].shape
                own = (slice(start, start + batch), slice(candidates))
                answers[at] = {name: np.ascontiguousarray(result[own]) for name, result in results.items()}
                start += batch
        return answers

    def _run_one(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        return dict(zip(wanted, self.session.run(list(wanted), dict(inputs), self._options), strict=True))
