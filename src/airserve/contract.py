"""The one place where a model, tensor, dtype, dimension, bound or reserved value is named.

The ONNX exporter, the TensorRT profile, config.pbtxt, Triton's Python models, the clients, the load tests and the
tests all take their names and bounds from here. Standard library and NumPy only.

Axes: B requests in a call, L behaviours, C candidates, K chains per candidate, D levels of a chain, M behaviours shown
as evidence of a chain, P intent paths per behaviour, R chains in a request's tree, U nodes in a request's tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve.errors import InvalidRequestError

CONTRACT_VERSION = 1
"""Stamped into all that is produced; a mismatch is refused at load."""

# Models in the Triton repository.
ENSEMBLE_MODEL = "air"
LOOKUP_MODEL = "intent_lookup"
RANKER_MODEL = "intent_ranker"

# Bounds.
MAX_BATCH = 32
MAX_DRAINED = 1024
"""Requests that a Python model takes from Triton's queue at once; see `airserve/triton/admission.py`."""
MAX_BEHAVIOURS = 1024
MAX_CANDIDATES = 1024
MAX_CHAINS = 256
"""Chains kept of a request's tree: most supporting behaviours first, then the youngest, then the lowest path id."""
CHAINS_PER_CANDIDATE = 8
MAX_DEPTH = 4
MAX_TREE_NODES = 1 + MAX_CHAINS * MAX_DEPTH
MAX_EVIDENCE = 4
MAX_PATHS = 4
"""Intent paths kept of one event kind."""

# Reserved values.
PAD_ITEM = int(np.iinfo(np.int64).min)
"""Fills a short row of a batch; the only item id that users cannot use."""
PAD_ACTION = 0
PAD_ROW = 0
UNKNOWN_ROW = 1
FIRST_ITEM_ROW = 2
PAD_NODE = 0
PAD_SLOT = 0
PAD_CHAIN = -1
NO_EVIDENCE = -1

ACTIONS: dict[str, int] = {"view": 1, "like": 2, "click": 3, "cart": 4, "order": 5}
ACTION_NAMES: dict[int, str] = {number: name for name, number in ACTIONS.items()}
N_ACTIONS = 1 + max(ACTIONS.values())


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor: its wire name, dtype and the names of its axes (batch first)."""

    name: str
    dtype: type[np.generic]
    axes: str
    """One letter an axis, `1` for a fixed axis of one."""
    about: str

    @cached_property
    def triton_dtype(self) -> str:
        """Triton's name of the dtype, e.g. `INT64`."""
        return {np.int64: "INT64", np.int32: "INT32", np.float32: "FP32"}[self.dtype]

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """Shape without the batch axis, -1 where it varies."""
        fixed = {"K": CHAINS_PER_CANDIDATE, "D": MAX_DEPTH, "M": MAX_EVIDENCE, "P": MAX_PATHS, "1": 1}
        return tuple(fixed.get(axis, -1) for axis in self.axes[1:])


# What a client sends.
BEHAVIOUR_ITEMS = TensorSpec(
    name="behaviour_items", dtype=np.int64, axes="BL", about="item ids of the history, oldest first"
)
BEHAVIOUR_ACTIONS = TensorSpec(name="behaviour_actions", dtype=np.int32, axes="BL", about="action numbers, see ACTIONS")
BEHAVIOUR_AGES_S = TensorSpec(
    name="behaviour_ages_s", dtype=np.float32, axes="BL", about="age of each behaviour, seconds, finite, >= 0"
)
USER_SEGMENT = TensorSpec(name="user_segment", dtype=np.int32, axes="B1", about="user profile segment, >= 0")
CANDIDATE_ITEMS = TensorSpec(name="candidate_items", dtype=np.int64, axes="BC", about="item ids to score")
REQUEST = (BEHAVIOUR_ITEMS, BEHAVIOUR_ACTIONS, BEHAVIOUR_AGES_S, USER_SEGMENT, CANDIDATE_ITEMS)

# What a client gets.
SCORES = TensorSpec(name="scores", dtype=np.float32, axes="BC", about="higher ranks first; -inf where padded")
CHAIN_NODES = TensorSpec(
    name="chain_nodes", dtype=np.int32, axes="BCKD", about="node ids of each kept chain, coarse to fine, 0 where none"
)
CHAIN_WEIGHTS = TensorSpec(
    name="chain_weights", dtype=np.float32, axes="BCK", about="target-aware score of each kept chain, 0 where none"
)
EVIDENCE = TensorSpec(
    name="evidence",
    dtype=np.int32,
    axes="BCKM",
    about="indices into the behaviours that support a chain, -1 where none",
)
COVERAGE = TensorSpec(name="coverage", dtype=np.float32, axes="B1", about="share of the behaviours that have intents")
TABLE_VERSION = TensorSpec(name="table_version", dtype=np.int64, axes="B1", about="version of the table that answered")
EXPLANATION = (CHAIN_NODES, CHAIN_WEIGHTS, EVIDENCE)
RESPONSE = (SCORES, *EXPLANATION, COVERAGE, TABLE_VERSION)

# What the lookup hands to the ranker: ids only, embeddings stay inside the engine.
BEHAVIOUR_ROWS = TensorSpec(
    name="behaviour_rows", dtype=np.int32, axes="BL", about="catalogue rows of the history, 0 padding, 1 unknown"
)
BEHAVIOUR_CHAINS = TensorSpec(
    name="behaviour_chains", dtype=np.int32, axes="BLP", about="indices into the tree's chains, -1 where none"
)
TREE_NODES = TensorSpec(
    name="tree_nodes", dtype=np.int32, axes="BU", about="distinct node ids of the tree; slot 0 and padding hold node 0"
)
CHAIN_SLOTS = TensorSpec(
    name="chain_slots",
    dtype=np.int32,
    axes="BRD",
    about="each chain as slots of tree_nodes, coarse to fine, 0 where none",
)
CANDIDATE_ROWS = TensorSpec(
    name="candidate_rows", dtype=np.int32, axes="BC", about="catalogue rows of the candidates, 0 padding, 1 unknown"
)
LOOKUP_OUTPUTS = (BEHAVIOUR_ROWS, BEHAVIOUR_CHAINS, TREE_NODES, CHAIN_SLOTS, CANDIDATE_ROWS, COVERAGE, TABLE_VERSION)
# What it hands over besides, where a compiled backend batches whole tensors: the history as long as its rows.
PADDED_ACTIONS = TensorSpec(
    name="padded_actions", dtype=np.int32, axes="BL", about="behaviour_actions, padded like behaviour_rows"
)
PADDED_AGES_S = TensorSpec(
    name="padded_ages_s", dtype=np.float32, axes="BL", about="behaviour_ages_s, padded like behaviour_rows"
)
PADDED_HISTORY = {BEHAVIOUR_ACTIONS.name: PADDED_ACTIONS, BEHAVIOUR_AGES_S.name: PADDED_AGES_S}
"""Ranker input: what stands for it there."""
RANKER_INPUTS = (
    BEHAVIOUR_ROWS,
    BEHAVIOUR_ACTIONS,
    BEHAVIOUR_AGES_S,
    BEHAVIOUR_CHAINS,
    TREE_NODES,
    CHAIN_SLOTS,
    CANDIDATE_ROWS,
)
RANKER_OUTPUTS = (SCORES, *EXPLANATION)

PROFILE: dict[str, tuple[int, int, int]] = {
    "B": (1, 1, MAX_BATCH),
    "L": (1, 128, MAX_BEHAVIOURS),
    "C": (1, 128, MAX_CANDIDATES),
    "R": (1, 64, MAX_CHAINS),
    "U": (1, 128, MAX_TREE_NODES),
}
"""Min, opt, max of each axis that varies, for the engine. An empty history reaches the engine as one padded row."""


SHAPE_CLASSES: tuple[dict[str, int], ...] = (
    {"L": 128, "C": 128, "R": 128, "U": 256},
    {"L": 256, "C": 256, "R": MAX_CHAINS, "U": 512},
    {"L": 512, "C": 512, "R": MAX_CHAINS, "U": MAX_TREE_NODES},
    {"L": MAX_BEHAVIOURS, "C": MAX_CANDIDATES, "R": MAX_CHAINS, "U": MAX_TREE_NODES},
)
"""Shapes that requests are padded to where only equal shapes batch (compiled backends). Few, so that neighbours in the
queue have the same: with a ladder per axis a mixed stream executed 1.4 requests together."""


def shape_class(sizes: Mapping[str, int]) -> dict[str, int]:
    """The first of `SHAPE_CLASSES` that holds a request of these sizes."""
    return next(each for each in SHAPE_CLASSES if all(sizes[axis] <= bound for axis, bound in each.items()))


def _describe(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _refuse(spec: TensorSpec, expected: str, got: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(spec.name, expected=expected, got=got, remedy=remedy)


def _check_dtypes_and_axes(tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    for spec in REQUEST:
        array = tensors.get(spec.name)
        if array is None:
            raise _refuse(spec, f"{spec.dtype.__name__} [{','.join(spec.axes)}]", "no such tensor", "send it")
        if array.dtype != spec.dtype or array.ndim != len(spec.axes):
            raise _refuse(
                spec,
                f"{spec.dtype.__name__} [{','.join(spec.axes)}]",
                _describe(array),
                "convert it before sending",
            )


def validate_request(tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Check one call, batch axis first, against the contract.

    Clients call it before sending and the lookup model again on arrival; both give the same message.

    Raises:
        InvalidRequestError: naming the tensor, what was expected, what came and the remedy.
    """
    _check_dtypes_and_axes(tensors)
    items = tensors[BEHAVIOUR_ITEMS.name]
    actions = tensors[BEHAVIOUR_ACTIONS.name]
    ages_s = tensors[BEHAVIOUR_AGES_S.name]
    segment = tensors[USER_SEGMENT.name]
    candidates = tensors[CANDIDATE_ITEMS.name]
    batch = candidates.shape[0]
    if not 1 <= batch <= MAX_BATCH:
        remedy = "split the call" if batch else "send at least one request"
        raise _refuse(CANDIDATE_ITEMS, f"1 to {MAX_BATCH} requests in a call", str(batch), remedy)
    for spec, array in ((BEHAVIOUR_ITEMS, items), (BEHAVIOUR_ACTIONS, actions), (BEHAVIOUR_AGES_S, ages_s)):
        if array.shape != (batch, items.shape[1]):
            raise _refuse(
                spec,
                f"shape {[batch, items.shape[1]]} (requests as in {CANDIDATE_ITEMS.name}, length as in "
                f"{BEHAVIOUR_ITEMS.name})",
                _describe(array),
                "give every behaviour an item, an action and an age",
            )
    if segment.shape != (batch, 1):
        raise _refuse(USER_SEGMENT, f"shape {[batch, 1]}", _describe(segment), "send one segment a request")
    if items.shape[1] > MAX_BEHAVIOURS:
        raise _refuse(
            BEHAVIOUR_ITEMS, f"at most {MAX_BEHAVIOURS} behaviours", str(items.shape[1]), "send the most recent ones"
        )
    if not 1 <= candidates.shape[1] <= MAX_CANDIDATES:
        raise _refuse(
            CANDIDATE_ITEMS,
            f"1 to {MAX_CANDIDATES} candidates",
            str(candidates.shape[1]),
            "split the list" if candidates.shape[1] else "send at least one candidate",
        )
    if not _is_plainly_sound(items, actions, ages_s, segment, candidates):
        _check_values(items, actions, ages_s, segment, candidates)


def _is_plainly_sound(
    items: npt.NDArray[Any],
    actions: npt.NDArray[Any],
    ages_s: npt.NDArray[Any],
    segment: npt.NDArray[Any],
    candidates: npt.NDArray[Any],
) -> bool:
    """Whether there is no padding and no bad value: a few reductions, which most requests pass.

    A comparison with NaN is false, so a NaN age is never plainly sound.
    """
    if items.size and not (
        np.minimum.reduce(items, axis=None) > PAD_ITEM
        and np.minimum.reduce(actions, axis=None) > PAD_ACTION
        and np.maximum.reduce(actions, axis=None) < N_ACTIONS
        and np.minimum.reduce(ages_s, axis=None) >= 0
        and np.maximum.reduce(ages_s, axis=None) < np.inf
    ):
        return False
    return bool(np.minimum.reduce(candidates, axis=None) > PAD_ITEM and np.minimum.reduce(segment, axis=None) >= 0)


def _check_values(
    items: npt.NDArray[Any],
    actions: npt.NDArray[Any],
    ages_s: npt.NDArray[Any],
    segment: npt.NDArray[Any],
    candidates: npt.NDArray[Any],
) -> None:
    known = (actions >= 0) & (actions < N_ACTIONS)
    if not known.all():
        names = ", ".join(f"{number} {name}" for number, name in ACTION_NAMES.items())
        raise _refuse(BEHAVIOUR_ACTIONS, f"one of {names}", str(actions[~known][0]), "map your actions to these")
    padded = items == PAD_ITEM
    if (padded != (actions == PAD_ACTION)).any():
        raise _refuse(
            BEHAVIOUR_ACTIONS,
            f"action {PAD_ACTION} exactly where {BEHAVIOUR_ITEMS.name} is padding ({PAD_ITEM})",
            "one without the other",
            f"give real behaviours an action of 1 to {N_ACTIONS - 1}",
        )
    bad_age = ~(np.isfinite(ages_s) & (ages_s >= 0))
    if bad_age.any():
        raise _refuse(
            BEHAVIOUR_AGES_S, "finite seconds >= 0", str(ages_s[bad_age][0]), "send now minus the event's time"
        )
    if (segment < 0).any():
        raise _refuse(USER_SEGMENT, "a segment >= 0", str(segment.min()), "send 0 where the segment is not known")
    if (candidates == PAD_ITEM).all(axis=1).any():
        raise _refuse(CANDIDATE_ITEMS, "at least one candidate a request", "padding only", "send a candidate")
