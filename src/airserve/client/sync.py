"""Blocking gRPC client of the `air` ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from airserve import contract
from airserve.client.request import RankRequest, to_tensors
from airserve.client.result import RankResult, from_tensors
from airserve.errors import ArtifactError, ServerError


def make_inputs(tensors: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
    """Triton input objects of a request's tensors."""
    inputs = []
    for spec in contract.REQUEST:
        array = tensors[spec.name]
        tensor = triton.InferInput(spec.name, list(array.shape), spec.triton_dtype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


class RankClient:
    """One connection to a server; reuse it, it is not for several threads at once.

    Args:
        url: `host:port` of the server's gRPC endpoint.
        timeout_s: default deadline of a call, seconds.

    Raises:
        ServerError: when no server with the ensemble answers there.
        ArtifactError: when the server speaks another contract version.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._channel = triton.InferenceServerClient(url)
        self._check_contract()

    def _check_contract(self) -> None:
        try:
            config = self._channel.get_model_config(contract.ENSEMBLE_MODEL, client_timeout=self.timeout_s).config
        except InferenceServerException as error:
            raise ServerError(f"{self.url}: {error.message()}", status=str(error.status())) from error
        served = config.parameters["contract_version"].string_value
        if served != str(contract.CONTRACT_VERSION):
            raise ArtifactError(
                self.url,
                expected=f"contract version {contract.CONTRACT_VERSION} (this client's)",
                got=served or "none",
                remedy="install the client of the server's release",
            )

    def infer(
        self, tensors: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], *, timeout_s: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """One call with raw tensors; `outputs` are the wire names wanted back.

        Raises:
            ServerError: with the gRPC status.
        """
        try:
            answer = self._channel.infer(
                contract.ENSEMBLE_MODEL,
                make_inputs(tensors),
                outputs=[triton.InferRequestedOutput(name) for name in outputs],
                client_timeout=self.timeout_s if timeout_s is None else timeout_s,
            )
        except InferenceServerException as error:
            raise ServerError(str(error.message()), status=str(error.status())) from error
        return {name: answer.as_numpy(name) for name in outputs}

    def rank(
        self, requests: Sequence[RankRequest], *, explain: bool = False, timeout_s: float | None = None
    ) -> list[RankResult]:
        """Rank a batch of requests in one call.

        Args:
            requests: 1 to `contract.MAX_BATCH` requests.
            explain: also return each candidate's intent chains and their evidence.
            timeout_s: deadline of this call, seconds; the client's default when None.

        Raises:
            InvalidRequestError: before sending, when a request breaks the contract.
            ServerError: when the server refuses or does not answer in time.
        """
        tensors = to_tensors(requests)
        specs = contract.RESPONSE if explain else (contract.SCORES, contract.COVERAGE, contract.TABLE_VERSION)
        answer = self.infer(tensors, [spec.name for spec in specs], timeout_s=timeout_s)
        return from_tensors(requests, answer, explained=explain)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def __enter__(self) -> RankClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
