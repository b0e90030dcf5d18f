"""Calls of `ModelInfer` with encoded messages, on the channel that tritonclient opened.

tritonclient's own `infer` makes an object of each tensor and takes it apart again: 0.1 ms in a loop, three times that
in a process that was idle in between, against 0.01 ms here. What it is asked for otherwise (configuration, shared
memory) stays with it. Calls of the same sizes differ in their tensors' bytes and the timeout only, so the rest is
encoded once; answers of one length are compared with the last one, and parsed where they differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from airserve import contract
from airserve.client.retry import INTERNAL
from airserve.client.wire import Tensors, response_spec

INFER = "/inference.GRPCInferenceService/ModelInfer"
# Protobuf: a field's number and kind, and what is the same in every parameter `timeout`.
PARAMETER, RAW_INPUT, RAW_OUTPUT = b"\x22", b"\x3a", b"\x32"
TIMEOUT_KEY, TIMEOUT_VALUE = b"\x0a\x07timeout\x12", b"\x10"
_NAMES = tuple(spec.name for spec in contract.REQUEST)


def queue_timeout_us(remaining_s: float) -> int:
    """A deadline as Triton's queues take it, microseconds >= 1."""
    return max(1, round(remaining_s * 1e6))


def encode_infer(tensors: Tensors, outputs: Sequence[str], *, timeout_us: int = 0) -> bytes:
    """The message of a call to the public model.

    Args:
        tensors: of `contract.REQUEST`.
        outputs: wire names wanted back.
        timeout_us: how long the request may wait in a queue of Triton's own; 0 leaves it out.
    """
    arrays = [tensors[name] for name in _NAMES]
    parts = list(_frame(tuple([array.shape for array in arrays]), tuple(outputs)))
    # The frame has a place for the timeout, then one behind each tensor's tag.
    if timeout_us:
        parts[1] = _timeout(timeout_us)
    parts[3::2] = [array.tobytes() for array in arrays]
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _frame(shapes: tuple[tuple[int, ...], ...], outputs: tuple[str, ...]) -> tuple[bytes, ...]:
    """What calls of the same sizes have in common; encoded messages behind one another are read as one."""
    head = service_pb2.ModelInferRequest(model_name=contract.ENSEMBLE_MODEL)
    for spec, shape in zip(contract.REQUEST, shapes, strict=True):
        head.inputs.add(name=spec.name, datatype=spec.triton_dtype, shape=shape)
    for name in outputs:
        head.outputs.add(name=name)
    parts = [head.SerializeToString(), b""]
    for spec, shape in zip(contract.REQUEST, shapes, strict=True):
        parts += [RAW_INPUT + _varint(math.prod(shape) * np.dtype(spec.dtype).itemsize), b""]
    return tuple(parts)


def _varint(number: int) -> bytes:
    """A number >= 0 as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _timeout(us: int) -> bytes:
    """The request's parameter `timeout`: a map entry of its name and an `InferParameter`."""
    value = TIMEOUT_VALUE + _varint(us)
    entry = TIMEOUT_KEY + _varint(len(value)) + value
    return PARAMETER + _varint(len(entry)) + entry


class AnswerLayout(NamedTuple):
    """Where the tensors of an answer lie, and every byte of it that is not theirs."""

    between: tuple[tuple[int, int, bytes], ...]
    """Start, end and bytes of what stands in front of each tensor."""
    tensors: tuple[tuple[str, Any, tuple[int, ...], int], ...]
    """Name, dtype, shape and start of each."""


_layouts: dict[int, AnswerLayout] = {}
"""By the length of an answer, the last one of it: a client asks for the same sizes again and again."""
MAX_LAYOUTS = 256


def decode_infer(answer: bytes) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an answer, read-only views of it.

    Raises:
        InferenceServerException: with status INTERNAL, for an answer that is not one.
    """
    layout = _layouts.get(len(answer))
    if layout is None or any(answer[start:end] != known for start, end, known in layout.between):
        try:
            layout = _read_layout(answer)
        except Exception as error:
            raise InferenceServerException(f"an answer that cannot be read: {error}", status=INTERNAL) from error
        if len(_layouts) >= MAX_LAYOUTS:
            _layouts.clear()
        _layouts[len(answer)] = layout
    return {name: np.ndarray(shape, dtype, answer, start) for name, dtype, shape, start in layout.tensors}


def _read_layout(answer: bytes) -> AnswerLayout:
    """Parse an answer. Its tensors come last, as every protobuf library writes them; others are refused.

    Raises:
        ValueError, DecodeError, InvalidRequestError: for an answer that is not one.
    """
    response = service_pb2.ModelInferResponse.FromString(answer)
    tensors: list[tuple[str, Any, tuple[int, ...], int]] = []
    between: list[tuple[int, int, bytes]] = []
    end = len(answer)
    for tensor, raw in reversed(list(zip(response.outputs, response.raw_output_contents, strict=True))):
        dtype, shape, start = np.dtype(response_spec(tensor.name).dtype), tuple(tensor.shape), end - len(raw)
        tag = RAW_OUTPUT + _varint(len(raw))
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
            raise ValueError(f"{tensor.name}: {len(raw)} bytes for {dtype} {list(shape)}")
        if answer[start:end] != raw or answer[start - len(tag) : start] != tag:
            raise ValueError(f"{tensor.name}: its bytes are not where they should be")
        tensors.insert(0, (tensor.name, dtype, shape, start))
        between.insert(0, (start - len(tag), start, tag))
        end = start - len(tag)
    between.insert(0, (0, end, answer[:end]))
    return AnswerLayout(tuple(between), tuple(tensors))


def infer_method(client: Any) -> Callable[..., Any] | None:
    """`ModelInfer` on the channel of a tritonclient, blocking or asyncio; None where it shows no channel."""
    channel: Any = getattr(client, "_channel", None)
    return channel.unary_unary(INFER) if hasattr(channel, "unary_unary") else None


def as_server_exception(error: Any) -> InferenceServerException:
    """A gRPC error as tritonclient raises it."""
    return InferenceServerException(msg=error.details(), status=str(error.code()))


def arrays_of(answer: Any, outputs: Sequence[str]) -> Mapping[str, npt.NDArray[Any] | None]:
    """The wanted tensors of what an inference returned, decoded here or by tritonclient."""
    if isinstance(answer, dict):
        return answer if tuple(answer) == outputs else {name: answer.get(name) for name in outputs}
    return {name: answer.as_numpy(name) for name in outputs}
