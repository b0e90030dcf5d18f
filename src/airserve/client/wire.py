"""Tensors as Triton's client objects and back, in the message itself or through shared memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

from airserve import contract
from airserve.client.retry import INTERNAL
from airserve.contract import TensorSpec
from airserve.errors import InvalidRequestError, ServerError

ALIGNMENT_BYTES = 64
"""Tensors start on cache lines."""
PLAIN_OUTPUTS = tuple(
    spec.name for spec in (contract.SCORES, contract.COVERAGE, contract.UNKNOWN_COUNT, contract.TABLE_VERSION)
)
EXPLAINED_OUTPUTS = (*PLAIN_OUTPUTS, *(spec.name for spec in contract.EXPLANATION))
ALL_OUTPUTS = tuple(spec.name for spec in contract.RESPONSE)
_RESPONSE = {spec.name: spec for spec in contract.RESPONSE}
_REQUEST = tuple((spec.name, np.dtype(spec.dtype), len(spec.axes)) for spec in contract.REQUEST)

Tensors = Mapping[str, npt.NDArray[Any]]


def check_tensors(tensors: Tensors) -> None:
    """Refuse a missing tensor, another dtype or other axes. Values are the server's to check.

    Raises:
        InvalidRequestError: naming the tensor.
    """
    for at, (name, dtype, axes) in enumerate(_REQUEST):
        array = tensors.get(name)
        if array is None or array.dtype != dtype or array.ndim != axes:
            spec = contract.REQUEST[at]
            raise InvalidRequestError(
                name,
                expected=f"{spec.dtype.__name__} [{','.join(spec.axes)}]",
                got="no such tensor" if array is None else f"{array.dtype} {list(array.shape)}",
                remedy="send all tensors of contract.REQUEST, with its dtypes",
            )


def wanted_outputs(*, explain: bool, tell_unknown: bool) -> tuple[str, ...]:
    """Wire names that a `rank` asks for."""
    names = EXPLAINED_OUTPUTS if explain else PLAIN_OUTPUTS
    return (*names, contract.UNKNOWN_MASK.name) if tell_unknown else names


def response_spec(name: str) -> TensorSpec:
    """The specification of an output.

    Raises:
        InvalidRequestError: for a name that the contract does not have.
    """
    spec = _RESPONSE.get(name)
    if spec is None:
        raise InvalidRequestError(
            "outputs", expected=f"names of {', '.join(_RESPONSE)}", got=repr(name), remedy="ask for these"
        )
    return spec


def make_inputs(tensors: Tensors) -> list[Any]:
    """Triton input objects of a request's tensors, data included."""
    inputs = []
    for spec in contract.REQUEST:
        array = tensors[spec.name]
        tensor = triton.InferInput(spec.name, list(array.shape), spec.triton_dtype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def make_outputs(names: Sequence[str]) -> list[Any]:
    """Triton objects of the outputs wanted back."""
    return [triton.InferRequestedOutput(response_spec(name).name) for name in names]


@lru_cache(maxsize=4096)
def response_shape(name: str, batch: int, candidates: int, chains: int = contract.MAX_CHAINS) -> tuple[int, ...]:
    """Shape of an output for so many requests with so many candidates and chains each."""
    spec = response_spec(name)
    sizes = {"C": candidates, "R": chains}
    return (batch, *(sizes.get(axis, size) for axis, size in zip(spec.axes[1:], spec.dims, strict=True)))


def check_answer(answer: Mapping[str, npt.NDArray[Any] | None], tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """Refuse an answer that does not have the shape of the question; cut padding candidates off its end.

    Raises:
        ServerError: with status INTERNAL, naming the tensor.
    """
    batch, asked = tensors[contract.CANDIDATE_ITEMS.name].shape
    checked = {}
    for name, array in answer.items():
        spec = response_spec(name)
        if array is None or array.shape != response_shape(name, batch, asked) or array.dtype != spec.dtype:
            array = _fitted(spec, array, batch, asked)
        checked[name] = array
    if contract.CHAIN_INDEX.name in checked:
        _check_chains(checked)
    return checked


def _fitted(spec: TensorSpec, array: npt.NDArray[Any] | None, batch: int, asked: int) -> npt.NDArray[Any]:
    """A tensor whose axes may be longer or shorter than asked for, as a request has as many chains as it has."""
    wanted = response_shape(spec.name, batch, asked)
    if array is not None and array.dtype == spec.dtype and array.ndim == len(spec.axes):
        sizes = dict(zip(spec.axes, array.shape, strict=True))
        chains, candidates = sizes.get("R", contract.MAX_CHAINS), sizes.get("C", asked)
        if array.shape == response_shape(spec.name, batch, candidates, chains) and 1 <= chains <= contract.MAX_CHAINS:
            if candidates == asked:
                return array
            # A compiled backend computes with padding candidates behind the real ones.
            if candidates > asked and any(candidates == each["C"] for each in contract.SHAPE_CLASSES):
                return array[:, :asked]
    got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
    shown = [f"1 to {size}" if axis == "R" else str(size) for axis, size in zip(spec.axes, wanted, strict=True)]
    raise ServerError(
        f"{spec.name}: expected {spec.dtype.__name__} [{', '.join(shown)}], the server sent {got}",
        status=INTERNAL,
    )


def _check_chains(answer: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse an answer whose candidates name chains that did not come with it."""
    index = answer[contract.CHAIN_INDEX.name]
    for spec in (contract.CHAIN_NODES, contract.EVIDENCE):
        chains = answer.get(spec.name)
        if chains is not None and index.size and index.max() >= chains.shape[1]:
            raise ServerError(
                f"{contract.CHAIN_INDEX.name}: expected indices below {chains.shape[1]} (the chains of {spec.name}), "
                f"the server sent {index.max()}",
                status=INTERNAL,
            )


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where one tensor lies in a shared memory region."""

    spec: TensorSpec
    shape: tuple[int, ...]
    """With room for padding candidates and any number of chains, where it is an output."""
    offset: int

    @property
    def n_bytes(self) -> int:
        """Size of its data."""
        return math.prod(self.shape) * np.dtype(self.spec.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Inputs, then outputs, of one call in one region."""

    inputs: tuple[Placed, ...]
    outputs: tuple[Placed, ...]
    n_bytes: int


def plan_layout(tensors: Tensors, outputs: Sequence[str]) -> Layout:
    """Place a call's tensors one behind the other."""
    placed: list[Placed] = []
    end = 0
    sized = [(spec, tensors[spec.name].shape) for spec in contract.REQUEST]
    batch = len(tensors[contract.CANDIDATE_ITEMS.name])
    sized += [(spec, response_shape(spec.name, batch, contract.MAX_CANDIDATES)) for spec in map(response_spec, outputs)]
    for spec, shape in sized:
        placed.append(Placed(spec=spec, shape=tuple(shape), offset=end))
        end += -(-placed[-1].n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    count = len(contract.REQUEST)
    return Layout(inputs=tuple(placed[:count]), outputs=tuple(placed[count:]), n_bytes=end)


def make_shared_inputs(layout: Layout, region: str) -> list[Any]:
    """Triton input objects that point into a region; empty tensors travel in the message."""
    inputs = []
    for at in layout.inputs:
        tensor = triton.InferInput(at.spec.name, list(at.shape), at.spec.triton_dtype)
        if at.n_bytes:
            tensor.set_shared_memory(region, at.n_bytes, at.offset)
        else:
            tensor.set_data_from_numpy(np.empty(at.shape, dtype=at.spec.dtype))
        inputs.append(tensor)
    return inputs


def make_shared_outputs(layout: Layout, region: str) -> list[Any]:
    """Triton output objects that point into a region."""
    outputs = []
    for at in layout.outputs:
        wanted = triton.InferRequestedOutput(at.spec.name)
        wanted.set_shared_memory(region, at.n_bytes, at.offset)
        outputs.append(wanted)
    return outputs
