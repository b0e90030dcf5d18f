"""Make requests of different lengths equal in shape, so that a compiled backend can batch them.

Triton's `tensorrt` and `onnxruntime` backends take whole tensors: the dynamic batcher joins neighbours of one shape
only. So the lookup pads every request to the first of a few shapes that holds it (`contract.SHAPE_CLASSES`). Padding
candidates come back behind the real ones with a score of -inf; `airserve.client` cuts them off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from airserve import contract
from airserve.table.lookup import pad
from airserve.triton.grouping import Extent

Array = npt.NDArray[Any]


def extent_of(inputs: Mapping[str, Array]) -> Extent:
    """Sizes of one call's ranker inputs."""
    batch, candidates = inputs[contract.CANDIDATE_PRIOR.name].shape
    return Extent(batch, candidates, inputs[contract.CHAIN_BIAS.name].shape[1])


def pad_to_class(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """One call's ranker inputs in the shape of its class.

    Args:
        inputs: the tensors of `contract.RANKER_INPUTS`.
    """
    return pad(inputs, contract.shape_class(dict(zip("CR", extent_of(inputs)[1:], strict=True))))
