"""Calls of `ModelInfer` with encoded messages, on the channel that tritonclient opened.

tritonclient's own `infer` makes an object of each tensor and takes it apart again: 0.1 ms in a loop, three times that
in a process that was idle in between, against 0.02 ms here. What it is asked for otherwise (configuration, shared
memory) stays with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from airserve import contract
from airserve.client.retry import INTERNAL
from airserve.client.wire import Tensors, response_spec

INFER = "/inference.GRPCInferenceService/ModelInfer"


def encode_infer(tensors: Tensors, outputs: Sequence[str], *, timeout_us: int = 0) -> bytes:
    """The message of a call to the public model.

    Args:
        tensors: of `contract.REQUEST`.
        outputs: wire names wanted back.
        timeout_us: how long the request may wait in a queue of Triton's own; 0 leaves it out.
    """
    arrays = [tensors[spec.name] for spec in contract.REQUEST]
    rest = service_pb2.ModelInferRequest(raw_input_contents=[array.tobytes() for array in arrays])
    if timeout_us:
        rest.parameters["timeout"].int64_param = timeout_us
    message: bytes = _head(tuple(array.shape for array in arrays), tuple(outputs)) + rest.SerializeToString()
    return message


@lru_cache(maxsize=1024)
def _head(shapes: tuple[tuple[int, ...], ...], outputs: tuple[str, ...]) -> bytes:
    """What calls of the same sizes have in common; encoded messages behind one another are read as one."""
    head = service_pb2.ModelInferRequest(model_name=contract.ENSEMBLE_MODEL)
    for spec, shape in zip(contract.REQUEST, shapes, strict=True):
        head.inputs.add(name=spec.name, datatype=spec.triton_dtype, shape=shape)
    for name in outputs:
        head.outputs.add(name=name)
    encoded: bytes = head.SerializeToString()
    return encoded


def decode_infer(answer: bytes) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an answer, read-only views of it.

    Raises:
        InferenceServerException: with status INTERNAL, for an answer that is not one.
    """
    try:
        response = service_pb2.ModelInferResponse.FromString(answer)
        return {
            tensor.name: np.frombuffer(raw, dtype=response_spec(tensor.name).dtype).reshape(tuple(tensor.shape))
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
    except Exception as error:
        raise InferenceServerException(f"an answer that cannot be read: {error}", status=INTERNAL) from error


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
        return {name: answer.get(name) for name in outputs}
    return {name: answer.as_numpy(name) for name in outputs}
