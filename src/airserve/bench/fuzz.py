"""Attack a server with requests that should not be: changed tensors, and bytes that are no message.

Schema-aware: a valid call with one to three tensors changed; what the contract says of it is what the server must do.
Raw: a valid message with bytes flipped, cut or replaced; any status will do, as long as the server lives and its other
answers stay the same. Everything is drawn from one seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from airserve import contract
from airserve.bench.inprocess import InProcess
from airserve.bench.load import OK, Wire
from airserve.errors import InvalidRequestError

Array = npt.NDArray[Any]
INVALID = "INVALID_ARGUMENT"
TIMEOUT_S = 60.0
TOLERANCE = 1e-3
NAMES = tuple(spec.name for spec in contract.REQUEST)
EXTREMES = (np.iinfo(np.int64).min, np.iinfo(np.int64).max, -1, 0, 1)
DTYPES = (np.int8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64, np.bool_)


def _other_shape(rng: np.random.Generator, array: Array) -> Array:
    choice = int(rng.integers(4))
    if choice == 0:
        return array[:, : int(rng.integers(0, array.shape[1] + 1))]
    if choice == 1:
        return np.concatenate([array, array[:, : int(rng.integers(1, 3))]], axis=1)
    if choice == 2:
        return array[..., None]
    return np.resize(array, (1, int(rng.integers(1, contract.MAX_CANDIDATES + 40))))


def _other_values(rng: np.random.Generator, array: Array) -> Array:
    changed = array.copy()
    if not changed.size:
        return changed
    at = rng.integers(0, changed.size, int(rng.integers(1, 4)))
    if changed.dtype == np.float32:
        values = rng.choice(np.array([np.nan, np.inf, -np.inf, -1.0, -0.0, 0.0, 3e38, 1e-45], dtype=np.float32), 3)
        changed.flat[at] = values[: len(at)]
    else:
        bounds = np.iinfo(changed.dtype)
        drawn = [max(min(EXTREMES[i], bounds.max), bounds.min) for i in rng.integers(0, len(EXTREMES), len(at))]
        changed.flat[at] = drawn
    return changed


def change_call(rng: np.random.Generator, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """A call with up to three tensors dropped, retyped, reshaped or revalued."""
    changed = dict(tensors)
    for name in rng.choice(NAMES, int(rng.integers(0, 4)), replace=False).tolist():
        kind = rng.random()
        if kind < 0.1:
            del changed[name]
        elif kind < 0.2:
            with np.errstate(all="ignore"):
                changed[name] = changed[name].astype(DTYPES[int(rng.integers(len(DTYPES)))])
        elif kind < 0.5:
            changed[name] = _other_shape(rng, changed[name])
        else:
            changed[name] = _other_values(rng, changed[name])
    return changed


def encode_any(tensors: Mapping[str, Array]) -> bytes:
    """The gRPC message of a call with any tensors, sound or not."""
    request = service_pb2.ModelInferRequest(model_name=contract.ENSEMBLE_MODEL)
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    message: bytes = request.SerializeToString()
    return message


def spoil(rng: np.random.Generator, message: bytes) -> bytes:
    """Bytes of a message flipped, cut, repeated or replaced."""
    choice = int(rng.integers(4))
    if choice == 0:
        return bytes(rng.integers(0, 256, int(rng.integers(0, 400)), dtype=np.uint8))
    if choice == 1:
        return message[: int(rng.integers(0, len(message)))]
    changed = bytearray(message)
    # Most of a message is tensor data; its structure is at the front.
    end = len(changed) if choice == 2 else min(200, len(changed))
    for at in rng.integers(0, end, int(rng.integers(1, 6))):
        changed[at] = int(rng.integers(256))
    return bytes(changed)


@dataclass(kw_only=True)
class FuzzReport:
    """What a run of fuzzed calls met with."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What must not happen, a line each."""


def decode_scores(answer: bytes) -> Array:
    """The scores of an encoded answer, float32 in their shape."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.name == contract.SCORES.name:
            return np.frombuffer(raw, dtype=contract.SCORES.dtype).reshape(tuple(tensor.shape))
    return np.empty(0, dtype=np.float32)


def _expected(local: InProcess, tensors: Mapping[str, Array]) -> Array | None:
    try:
        return local.answer(tensors)[contract.SCORES.name]
    except InvalidRequestError:
        return None


def _judge(
    report: FuzzReport, local: InProcess, tensors: Mapping[str, Array], status: str, answer: Array | bytes
) -> None:
    expected = _expected(local, tensors)
    shapes = {name: f"{array.dtype}{list(array.shape)}" for name, array in tensors.items()}
    if expected is None:
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else "an answer"
        if status != INVALID or not any(name in text for name in NAMES):
            report.wrong.append(f"{shapes}: expected {INVALID} that names a tensor, got {status} {text[:300]}")
    elif status != OK or isinstance(answer, bytes):
        report.wrong.append(f"{shapes}: expected scores, got {status} {answer[:300]!r}")
    else:
        same = answer.shape == expected.shape and np.allclose(answer, expected, rtol=TOLERANCE, atol=TOLERANCE)
        if not same:
            report.wrong.append(f"{shapes}: the scores are not those in process")


Ask = Callable[[Mapping[str, Array]], tuple[str, Array | bytes]]
"""Send a call with any tensors; the status, and the scores or the text of the refusal."""


def over_grpc(wire: Wire) -> Ask:
    """Calls as gRPC messages."""

    def ask(tensors: Mapping[str, Array]) -> tuple[str, Array | bytes]:
        status, answer = wire.call(encode_any(tensors), TIMEOUT_S)
        return status, decode_scores(answer) if status == OK else answer

    return ask


def fuzz_schema(
    ask: Ask, local: InProcess, calls: Sequence[Mapping[str, Array]], *, count: int, seed: int
) -> FuzzReport:
    """Send changed calls; each must be answered as the contract and the computation in process say."""
    rng, report = np.random.default_rng(seed), FuzzReport()
    for number in range(count):
        tensors = change_call(rng, calls[number % len(calls)])
        status, answer = ask(tensors)
        report.statuses[status] += 1
        _judge(report, local, tensors, status, answer)
    return report


def fuzz_raw(
    wire: Wire, local: InProcess, calls: Sequence[Mapping[str, Array]], *, count: int, seed: int, check_every: int = 50
) -> FuzzReport:
    """Send spoilt messages; every so often a sound one, which must be answered as ever."""
    rng, report = np.random.default_rng(seed), FuzzReport()
    messages = [encode_any(call) for call in calls]
    for number in range(count):
        status, _ = wire.call(spoil(rng, messages[number % len(messages)]), TIMEOUT_S)
        report.statuses[status] += 1
        if (number + 1) % check_every == 0:
            sound = calls[number % len(calls)]
            _judge(report, local, sound, *over_grpc(wire)(sound))
    return report
