"""Where the truth is known (the demo world): is the intent that AIR retrieves the one that the user had?

The true intent behind a target is its leaf in the world's ontology. It is compared with the leaf of the chain that AIR
puts first, for the target itself and for the item that AIR ranks first; a target whose true leaf no behaviour of the
history has cannot be found, so the share of those that can be is reported beside it.

Shapes: B targets of a batch, C candidates, K chains per candidate, D levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor

from airserve import contract
from airserve.artifacts import VOCABULARY_FILE
from airserve.errors import DataError
from airserve.model.ranker import Ranker
from airserve.progress import Progress
from airserve.study.models import MODELS, Blended
from airserve.study.run import Runner
from airserve.study.subject import Study
from airserve.table.intents import IntentTable
from airserve.table.vocabulary import Vocabulary, read_vocabulary
from airserve.training.measure import AIR

SEPARATOR = " > "


def true_leaves(path: Path, vocabulary: Vocabulary, table: IntentTable) -> npt.NDArray[np.int32]:
    """The node of each catalogue row's true leaf, int32 [N + 2]; 0 where the vocabulary does not have it.

    Args:
        path: a `truth.parquet` of offline/make_world.py.
        vocabulary: of the tables.
        table: gives the catalogue.

    Raises:
        DataError: if the file cannot be read or has other columns.
    """
    try:
        truth = pq.read_table(path, columns=["item_id", "leaf"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            str(path),
            expected="a truth.parquet of offline/make_world.py",
            got=type(error).__name__,
            remedy="leave --truth out for data whose truth is not known",
        ) from error
    leaves = np.zeros(len(table.items) + contract.FIRST_ITEM_ROW, dtype=np.int32)
    rows = table.rows(truth["item_id"].to_numpy())
    for row, text in zip(rows, truth["leaf"].to_pylist(), strict=True):
        nodes = vocabulary.find(text.split(SEPARATOR))
        if row >= contract.FIRST_ITEM_ROW and nodes is not None:
            leaves[row] = nodes[-1]
    return leaves


def compare_with_truth(
    study: Study, runner: Runner, seeds: Sequence[int], truth: Path, tables: Path
) -> list[dict[str, Any]]:
    """`retrieved_truth` of AIR's runs, one a seed.

    Args:
        study: data and intents.
        runner: has or makes the runs.
        seeds: of training.
        truth: a `truth.parquet`.
        tables: folder of the study's tables, for their vocabulary.
    """
    air = MODELS[AIR]
    assert isinstance(air, Blended)
    leaves = true_leaves(truth, read_vocabulary(tables / VOCABULARY_FILE), study.table)
    reports = []
    for seed in seeds:
        _, report = runner.trained(AIR, seed)
        ranker, _ = air.trained(study, report, runner.given(AIR, seed))
        reports.append({"seed": seed, **retrieved_truth(study, ranker, leaves)})
    return reports


def finest(nodes_XD: Tensor) -> Tensor:
    """The finest node of chains [..., D], 0 where there is no chain."""
    leaf_X = nodes_XD[..., 0]
    for level in range(1, nodes_XD.shape[-1]):
        leaf_X = torch.where(nodes_XD[..., level] != contract.PAD_NODE, nodes_XD[..., level], leaf_X)
    return leaf_X


def retrieved_truth(study: Study, ranker: Ranker, leaves: npt.NDArray[np.int32]) -> dict[str, Any]:
    """How often AIR's first chain is the true intent, over the test targets whose true leaf the vocabulary has.

    Returns:
        `targets`; `reachable`: the share whose true leaf is in the history's tree; `target_chain`: the share where the
        first chain for the target is the true leaf (`..._of_reachable` of those only); `first_item_chain`: the same
        for the first chain of the item that AIR ranks first of the whole domain.
    """
    found: list[npt.NDArray[np.bool_]] = []
    ranker = ranker.cpu().eval()
    leaf_N = torch.from_numpy(leaves)
    with torch.inference_mode(), Progress("comparing with the truth", len(study.test.targets), "targets") as progress:
        for domain, batch in study.test.batches(study.table, 8):
            pool_C = torch.from_numpy(study.test.pool(domain))
            rows_BC = pool_C.expand(len(batch.places), -1)
            scores_BC, chains, _ = ranker(*batch.inputs, rows_BC)
            user_B = torch.arange(len(batch.places))
            at_B = torch.searchsorted(pool_C, batch.target_rows_B)
            true_B = leaf_N[batch.target_rows_B.long()]
            tree_BR = finest(_chain_nodes(batch.inputs[4], batch.inputs[5]))
            best_BC = chains.index_BCK[:, :, 0].long()
            leaves_BC = tree_BR.gather(1, best_BC.clamp(min=0))
            first_BC = torch.where(best_BC != contract.NO_CHAIN, leaves_BC, contract.PAD_NODE)
            parts = (
                true_B != contract.PAD_NODE,
                (tree_BR == true_B.unsqueeze(1)).any(1),
                first_BC[user_B, at_B] == true_B,
                first_BC[user_B, scores_BC.argmax(1)] == true_B,
            )
            found.append(torch.stack(parts).numpy())
            progress.advance(len(batch.places))
    known, reachable, target_chain, first_chain = np.concatenate(found, axis=1)

    def share(right: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> float | None:
        return round(float(right[among].mean()), 4) if among.any() else None

    both = known & reachable
    return {
        "targets": int(known.sum()),
        "reachable": share(reachable, known),
        "target_chain": share(target_chain, known),
        "target_chain_of_reachable": share(target_chain, both),
        "first_item_chain": share(first_chain, known),
        "first_item_chain_of_reachable": share(first_chain, both),
    }


def _chain_nodes(tree_nodes_BU: Tensor, chain_slots_BRD: Tensor) -> Tensor:
    """Node ids of the chains of looked-up trees, int32 [B, R, D]."""
    batch, chains, depth = chain_slots_BRD.shape
    return tree_nodes_BU.gather(1, chain_slots_BRD.reshape(batch, -1).long()).reshape(batch, chains, depth)
