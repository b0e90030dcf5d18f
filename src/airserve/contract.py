"""The one place where a model, tensor, dtype, dimension, bound or reserved value is named.

The ONNX exporter, the TensorRT profile, config.pbtxt, Triton's Python models, the clients, the load tests and the
tests all take their names and bounds from here. Standard library and NumPy only.

Axes: B requests in a call, L behaviours, T latest behaviours (the sequence tower's window), C candidates, K chains per
candidate, D levels of a chain, M behaviours shown as evidence of a chain, P intent paths per behaviour, R chains in a
request's tree. Widths that belong to an encoder: H of a token, X of a node's or a target's row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve.errors import InvalidRequestError

CONTRACT_VERSION = 2
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
MIN_CHAINS = CHAINS_PER_CANDIDATE
"""A tree is handed over with at least so many, padded: the best K of fewer than K cannot be taken."""
MAX_DEPTH = 4
MAX_EVIDENCE = 4
WINDOW = 64
"""Latest behaviours that the sequence tower sees."""
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
NO_CHAIN = -1
NO_EVIDENCE = -1
PAD_CONTEXT = 0
TIE_STEP = 1e-6
"""Of chains whose scores are equal the lower index comes first, of equal evidence the younger behaviour: a step of the
sorting key per index. float32 resolves it up to a score of 8."""
PADDED_CHAIN = -1e4
"""`chain_bias` of a padded chain: below any score, and fp16 holds it."""
UNKNOWN_PENALTY = 1000.0
"""An unknown candidate scores as an item that nothing is known about, less this: all alike, and below all others."""

GAP_STEPS_S = tuple(60.0 * 4.0**step for step in range(12))
"""One minute to eight years; the gap between two behaviours is told as how many of these it reaches."""
N_GAPS = 1 + len(GAP_STEPS_S)

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
        return {
            np.int64: "INT64", np.int32: "INT32", np.float32: "FP32", np.float16: "FP16", np.bool_: "BOOL"
        }[self.dtype]  # fmt: skip

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """Shape without the batch axis, -1 where it varies or belongs to an encoder."""
        return self.dims_for({})

    def dims_for(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """`dims` with some axes of a given size, such as an encoder's `H` and `X`."""
        fixed = {
            "K": CHAINS_PER_CANDIDATE, "D": MAX_DEPTH, "M": MAX_EVIDENCE, "P": MAX_PATHS, "T": WINDOW, "1": 1
        }  # fmt: skip
        return tuple(sizes.get(axis, fixed.get(axis, -1)) for axis in self.axes[1:])


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
CHAIN_INDEX = TensorSpec(
    name="chain_index", dtype=np.int32, axes="BCK", about="each candidate's kept chains, best first; -1 where none"
)
CHAIN_WEIGHTS = TensorSpec(
    name="chain_weights", dtype=np.float32, axes="BCK", about="target-aware score of each kept chain, 0 where none"
)
CHAIN_NODES = TensorSpec(
    name="chain_nodes", dtype=np.int32, axes="BRD", about="node ids of the tree's chains, coarse to fine, 0 where none"
)
EVIDENCE = TensorSpec(
    name="evidence",
    dtype=np.int32,
    axes="BRM",
    about="indices into the behaviours that support a chain, strongest first, -1 where none",
)
COVERAGE = TensorSpec(name="coverage", dtype=np.float32, axes="B1", about="share of the behaviours that have intents")
UNKNOWN_COUNT = TensorSpec(
    name="unknown_candidates", dtype=np.int32, axes="B1", about="candidates that the table does not know"
)
UNKNOWN_MASK = TensorSpec(
    name="candidate_unknown", dtype=np.bool_, axes="BC", about="which candidates the table does not know"
)
TABLE_VERSION = TensorSpec(name="table_version", dtype=np.int64, axes="B1", about="version of the table that answered")
EXPLANATION = (CHAIN_INDEX, CHAIN_WEIGHTS, CHAIN_NODES, EVIDENCE)
LOOKED_UP = (CHAIN_NODES, EVIDENCE, COVERAGE, UNKNOWN_COUNT, UNKNOWN_MASK, TABLE_VERSION)
"""Those of the response that the lookup alone knows."""
RESPONSE = (SCORES, *EXPLANATION, COVERAGE, UNKNOWN_COUNT, UNKNOWN_MASK, TABLE_VERSION)

# What the lookup hands to the ranker: rows that an encoder made, gathered from the table, and what they weigh. No row
# number, so the ranker belongs to an encoder, and to no catalogue and no vocabulary.
WINDOW_TOKENS = TensorSpec(
    name="window_tokens",
    dtype=np.float16,
    axes="BTH",
    about="tokens of the latest behaviours, oldest first, zeros in front of a short history",
)
WINDOW_CONTEXT = TensorSpec(
    name="window_context",
    dtype=np.int32,
    axes="BT",
    about="1 + action * N_GAPS + gap to the behaviour before; 0 padding",
)
CHAIN_ROWS = TensorSpec(
    name="chain_rows", dtype=np.float16, axes="BRDX", about="rows of each chain's nodes, coarse to fine, zeros behind"
)
LEVEL_WEIGHTS = TensorSpec(
    name="level_weights",
    dtype=np.float32,
    axes="BRD",
    about="log(1 + w_u) of each chain's nodes over the chain's norm, 0 where none",
)
CHAIN_BIAS = TensorSpec(
    name="chain_bias", dtype=np.float32, axes="BR", about="0 less a tie step a place; PADDED_CHAIN where padded"
)
EVIDENCE_TOKENS = TensorSpec(
    name="evidence_tokens", dtype=np.float16, axes="BRMH", about="tokens of each chain's evidence, zeros where none"
)
CANDIDATE_TOKENS = TensorSpec(
    name="candidate_tokens",
    dtype=np.float16,
    axes="BCH",
    about="tokens of the candidates; zeros where nothing is known of the history",
)
CANDIDATE_TARGETS = TensorSpec(
    name="candidate_targets", dtype=np.float16, axes="BCX", about="retrieval vectors and queries of the candidates"
)
CANDIDATE_PRIOR = TensorSpec(
    name="candidate_prior",
    dtype=np.float32,
    axes="BC",
    about="added to the score: what is bought together, popularity for an empty history, -inf where padded",
)
RANKER_INPUTS = (
    WINDOW_TOKENS,
    WINDOW_CONTEXT,
    CHAIN_ROWS,
    LEVEL_WEIGHTS,
    CHAIN_BIAS,
    EVIDENCE_TOKENS,
    CANDIDATE_TOKENS,
    CANDIDATE_TARGETS,
    CANDIDATE_PRIOR,
)
RANKER_OUTPUTS = (SCORES, CHAIN_INDEX, CHAIN_WEIGHTS)
LOOKUP_OUTPUTS = (*RANKER_INPUTS, *LOOKED_UP)

USUAL_SIZES = {"H": 64, "E": 128, "X": 192}
"""Widths of an encoder of the usual settings; an engine's manifest has its own."""

PROFILE: dict[str, tuple[int, int, int]] = {
    "B": (1, 1, MAX_BATCH),
    "C": (1, 128, MAX_CANDIDATES),
    "R": (MIN_CHAINS, 64, MAX_CHAINS),
}
"""Min, opt, max of each axis that varies, for the engine. The length of the history is none: the lookup ends it."""


SHAPE_CLASSES: tuple[dict[str, int], ...] = (
    {"C": 128, "R": 128},
    {"C": 256, "R": MAX_CHAINS},
    {"C": 512, "R": MAX_CHAINS},
    {"C": MAX_CANDIDATES, "R": MAX_CHAINS},
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
