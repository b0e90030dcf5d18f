"""A trained ranker on disk: `ranker.safetensors` (what was learned) and `config.json` (for what).

The frozen vectors are not repeated: they come from the intent table, which must be of the same catalogue and
vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from airserve import contract
from airserve.artifacts import CONFIG_FILE, RANKER_FILE
from airserve.errors import ArtifactError
from airserve.files import atomic_path, write_json
from airserve.model.ranker import Ranker, RankerSettings
from airserve.model.sequence import SequenceSettings
from airserve.table.company import Company
from airserve.table.intents import IntentTable
from airserve.training.examples import Task


class Trained(NamedTuple):
    """What a training leaves."""

    ranker: Ranker
    company: Company
    """How what is met together counts beside it."""
    task: Task
    """What the targets looked like."""


def new_ranker(table: IntentTable, settings: RankerSettings, base_vectors_NE: Tensor | None = None) -> Ranker:
    """An untrained ranker for a table's catalogue and vocabulary; see `Ranker` for the base's vectors."""
    levels_V = np.zeros(len(table.node_vectors), dtype=np.int64)
    for level in range(contract.MAX_DEPTH):
        levels_V[table.arrays.paths[:, level]] = level
    return Ranker(
        torch.from_numpy(np.array(table.item_vectors)),
        torch.from_numpy(np.array(table.node_vectors)),
        torch.from_numpy(levels_V),
        settings,
        torch.from_numpy(item_nodes(table)),
        base_vectors_NE,
    )


def item_nodes(table: IntentTable) -> npt.NDArray[np.int32]:
    """Nodes of each item's default paths, int32 [N + 2, P * D], 0 where none."""
    paths_PD = np.concatenate([table.arrays.paths, np.zeros((1, contract.MAX_DEPTH), dtype=np.int32)])
    # -1, no path, takes the row of zeros at the end.
    nodes: npt.NDArray[np.int32] = paths_PD[table.arrays.item_paths].reshape(len(table.arrays.item_paths), -1)
    return nodes


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are kept: whole, and where every machine can read them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def save_ranker(folder: Path, trained: Trained, table: IntentTable, extra: dict[str, Any]) -> None:
    """Write a checkpoint; the config last, so that a folder with one is complete."""
    ranker = trained.ranker
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / RANKER_FILE) as part:
        save_file(on_cpu(ranker.state_dict()), part)
    config = {
        "contract_version": contract.CONTRACT_VERSION,
        "catalogue_sha256": table.manifest.catalogue_sha256,
        "vocabulary_sha256": table.manifest.vocabulary_sha256,
        "table_version": table.table_version,
        "settings": asdict(ranker.settings),
        "company": asdict(trained.company),
        "task": asdict(trained.task),
        **extra,
    }
    write_json(folder / CONFIG_FILE, config)


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint.

    Raises:
        ArtifactError: if there is none, or it is of another contract version.
    """
    path = folder / CONFIG_FILE
    remedy = "run offline/train_ranker.py"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(str(path), expected="a ranker's config", got=type(error).__name__, remedy=remedy) from None
    if not isinstance(config, dict) or config.get("contract_version") != contract.CONTRACT_VERSION:
        got = config.get("contract_version") if isinstance(config, dict) else type(config).__name__
        raise ArtifactError(
            str(path),
            expected=f"contract version {contract.CONTRACT_VERSION} (this airserve)",
            got=f"{got} (the ranker)",
            remedy=f"{remedy} again",
        )
    return config


def load_ranker(folder: Path, table: IntentTable) -> Trained:
    """Load a checkpoint for the table that it was trained on.

    Returns:
        The ranker in evaluation mode, and what was learned and chosen beside it.

    Raises:
        ArtifactError: if it is missing or damaged, or was trained for another catalogue or vocabulary.
    """
    config = read_config(folder)
    for name, what in (("catalogue_sha256", "item catalogue"), ("vocabulary_sha256", "intent vocabulary")):
        if config.get(name) != getattr(table.manifest, name):
            raise ArtifactError(
                f"{folder}: {what}",
                expected=f"the table's {what} ({str(getattr(table.manifest, name))[:12]})",
                got=f"a ranker trained for another ({str(config.get(name))[:12]})",
                remedy="train the ranker on these tables, or give the tables that it was trained on",
            )
    try:
        sizes = dict(config["settings"])
        settings = RankerSettings(**{**sizes, "sequence": SequenceSettings(**sizes["sequence"])})
        company = Company(**config["company"])
        task = Task(actions=tuple(config["task"]["actions"]), novel=config["task"]["novel"])
        ranker = new_ranker(table, settings)
        ranker.load_state_dict(load_file(folder / RANKER_FILE))
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise ArtifactError(
            str(folder / RANKER_FILE),
            expected="the weights that its config describes",
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
            remedy="run offline/train_ranker.py again",
        ) from None
    return Trained(ranker.eval(), company, task)
