"""The training events of a data folder, as a table counts them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airserve import contract
from airserve.data.schema import load_dataset
from airserve.table.encode import Events
from airserve.table.intents import IntentTable

OTHER_ACTION = 0.01
"""Weight in an item's popularity of an event that is no target of ranking; as `training.baselines.target_counts`."""


def training_events(data: Path, table: IntentTable, target_actions: Collection[int]) -> Events:
    """Read the `train` events of a data folder; held-out ones are never counted.

    Args:
        data: folder with items.parquet and behaviours.parquet.
        table: gives the rows; events on items that it does not have are left out.
        target_actions: action numbers that count whole for popularity.

    Raises:
        DataError: if the data are not in their documented format.
    """
    behaviours = load_dataset(data).behaviours
    train = behaviours.filter(pc.equal(behaviours["split"], "train"))
    rows = table.rows(train["item_id"].to_numpy())
    names = pa.array(list(contract.ACTIONS))
    numbers = np.array([*contract.ACTIONS.values()], dtype=np.int32)
    actions = numbers[pc.index_in(train["action"], value_set=names).to_numpy()]
    known = rows >= contract.FIRST_ITEM_ROW
    weights = np.where(np.isin(actions, list(target_actions)), 1.0, OTHER_ACTION)
    return Events(
        users=train["user_id"].to_numpy()[known],
        rows=rows[known],
        segments=train["user_segment"].to_numpy().astype(np.int32)[known],
        weights=weights[known],
    )
