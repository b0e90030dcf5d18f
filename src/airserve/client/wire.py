"""Tensors as Triton's client objects and back, in the message itself or through shared memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
PLAIN_OUTPUTS = tuple(spec.name for spec in contract.RESPONSE if spec not in contract.EXPLANATION)
EXPLAINED_OUTPUTS = tuple(spec.name for spec in contract.RESPONSE)
_RESPONSE = {spec.name: spec for spec in contract.RESPONSE}

Tensors = Mapping[str, npt.NDArray[Any]]


def check_tensors(tensors: Tensors) -> None:
    """Refuse a missing tensor, another dtype or other axes. Values are the server's to check.

    Raises:
        InvalidRequestError: naming the tensor.
    """
    for spec in contract.REQUEST:
        array = tensors.get(spec.name)
        if array is None or array.dtype != spec.dtype or array.ndim != len(spec.axes):
            raise InvalidRequestError(
                spec.name,
                expected=f"{spec.dtype.__name__} [{','.join(spec.axes)}]",
                got="no such tensor" if array is None else f"{array.dtype} {list(array.shape)}",
                remedy="send all tensors of contract.REQUEST, with its dtypes",
            )


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


def response_shape(spec: TensorSpec, tensors: Tensors, candidates: int = 0) -> tuple[int, ...]:
    """Shape of an output for a request of these tensors, with another number of candidates when one is given."""
    batch, asked = tensors[contract.CANDIDATE_ITEMS.name].shape
    return (batch, *((candidates or asked) if size < 0 else size for size in spec.dims))


def check_answer(answer: Mapping[str, npt.NDArray[Any] | None], tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
    """Refuse an answer that does not have the shape of the question; cut padding candidates off its end.

    Raises:
        ServerError: with status INTERNAL, naming the tensor.
    """
    checked = {}
    for name, array in answer.items():
        spec = response_spec(name)
        shape = response_shape(spec, tensors)
        if array is not None and "C" in spec.axes and array.shape[1:2] > shape[1:2]:
            padded = array.shape[1]
            if padded in {each["C"] for each in contract.SHAPE_CLASSES} and array.shape == response_shape(
                spec, tensors, padded
            ):
                array = array[:, : shape[1]]
        if array is None or array.dtype != spec.dtype or array.shape != shape:
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise ServerError(
                f"{name}: expected {spec.dtype.__name__} {list(shape)}, the server sent {got}", status=INTERNAL
            )
        checked[name] = array
    return checked


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where one tensor lies in a shared memory region."""

    spec: TensorSpec
    shape: tuple[int, ...]
    """With room for padding candidates, where it is an output."""
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
    most = contract.MAX_CANDIDATES
    sized += [(spec, response_shape(spec, tensors, most)) for spec in map(response_spec, outputs)]
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
