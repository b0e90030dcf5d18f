"""Calls to the public model over HTTP, with Triton's binary tensor extension, for the same attacks as over gRPC."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import np_to_triton_dtype

from airserve import contract
from airserve.bench.load import OK

Array = npt.NDArray[Any]
PATH = f"/v2/models/{contract.ENSEMBLE_MODEL}/infer"
LENGTH = "Inference-Header-Content-Length"
STATUSES = {200: OK, 400: "INVALID_ARGUMENT", 503: "UNAVAILABLE"}


def encode(tensors: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a call with any tensors, sound or not, that asks for the scores."""
    inputs, data = [], b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        parameters = {"binary_data_size": len(raw)}
        datatype = np_to_triton_dtype(array.dtype)
        inputs.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": parameters})
        data += raw
    wanted = [{"name": contract.SCORES.name, "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
    return head + data, {LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


def decode_scores(body: bytes, header_length: int) -> Array:
    """The scores of an answer, float32 in their shape."""
    outputs = json.loads(body[:header_length])["outputs"]
    shape = next(output["shape"] for output in outputs if output["name"] == contract.SCORES.name)
    return np.frombuffer(body[header_length:], dtype=contract.SCORES.dtype).reshape(shape)


class HttpWire:
    """One HTTP connection."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._connection = http.client.HTTPConnection(url, timeout=timeout_s)

    def ask(self, tensors: Mapping[str, Array]) -> tuple[str, Array | bytes]:
        """Send one call and wait; the status as gRPC names it, and the scores or the text of the refusal."""
        body, headers = encode(tensors)
        self._connection.request("POST", PATH, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        status = STATUSES.get(answer.status, str(answer.status))
        if status != OK:
            return status, content
        return status, decode_scores(content, int(answer.headers[LENGTH]))

    def __enter__(self) -> HttpWire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
