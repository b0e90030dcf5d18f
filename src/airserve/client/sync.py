"""Blocking gRPC client of the `air` ensemble."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from airserve.client.core import Call, ClientCore, Infer, Outcome, Steps
from airserve.client.raw import (
    arrays_of,
    as_server_exception,
    decode_infer,
    encode_infer,
    infer_method,
    queue_timeout_us,
)
from airserve.client.request import Id, RankRequest
from airserve.client.result import RankResult
from airserve.client.retry import Deadline
from airserve.client.wire import Tensors, check_answer, check_tensors, make_inputs

__all__ = ["RankClient", "make_inputs"]


class RankClient(ClientCore):
    """A connection for blocking code; threads may share it. Takes the arguments of `ClientCore`, connects at once.

    Raises:
        ServerError: when no server with the ensemble answers there.
        ArtifactError: when the server's contract is not this client's.
        UserError, EngineError: see `ClientCore`.
    """

    def _open(self) -> None:
        self._channel = triton.InferenceServerClient(self.url, **self.channel_settings)
        self._send = infer_method(self._channel)
        try:
            self._run(self.connect_steps())
        except BaseException:
            self.close()
            raise

    def _run(self, steps: Steps[Outcome]) -> Outcome:
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._perform(step)
                except InferenceServerException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            outcome: Outcome = done.value
            return outcome
        finally:
            steps.close()

    def _perform(self, step: Any) -> Any:
        if isinstance(step, Infer):
            if self._send is not None:
                try:
                    return decode_infer(self._send(step.message(), timeout=step.timeout_s))
                except grpc.RpcError as error:
                    raise as_server_exception(error) from None
            step = self.spelled_out(step)
        if isinstance(step, Call):
            return getattr(self._channel, step.method)(**step.arguments)
        return time.sleep(step.seconds)

    def infer(
        self, tensors: Tensors, outputs: Sequence[str], *, timeout_s: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """One call with raw tensors; `outputs` are the wire names wanted back.

        Raises:
            InvalidRequestError: for a missing tensor, another dtype, or an unknown output.
            ServerError: with the gRPC status.
        """
        return self._ask(tensors, outputs, self.deadline(timeout_s))

    def _ask(self, tensors: Tensors, outputs: Sequence[str], deadline: Deadline) -> dict[str, npt.NDArray[Any]]:
        """One call; its first attempt is made here, the generators are for shared memory and for what went wrong."""
        failed: InferenceServerException | None = None
        remaining_s = deadline.remaining_s()
        if self._send is not None and self._regions is None and remaining_s > 0:
            check_tensors(tensors)
            message = encode_infer(tensors, outputs, timeout_us=queue_timeout_us(remaining_s))
            try:
                answer = arrays_of(decode_infer(self._send(message, timeout=remaining_s)), outputs)
            except grpc.RpcError as error:
                failed = as_server_exception(error)
            except InferenceServerException as error:
                failed = error
            else:
                self._budget.earn()
                return check_answer(answer, tensors)
        return self._run(self.infer_steps(tensors, outputs, deadline, failed))

    def rank(
        self,
        requests: Sequence[RankRequest[Id]],
        *,
        explain: bool = False,
        tell_unknown: bool = False,
        timeout_s: float | None = None,
    ) -> list[RankResult[Id]]:
        """Rank requests; as many calls as the contract's bounds make necessary, one after the other.

        Args:
            requests: any number, each with any number of candidates from 1.
            explain: also return each candidate's intent chains and their evidence.
            tell_unknown: also return which candidates the table does not know.
            timeout_s: deadline of all of it, retries included, seconds; the client's default when None.

        Returns:
            One result a request, in their order.

        Raises:
            InvalidRequestError: before sending, when a request breaks the contract.
            ServerError: when the server refuses or does not answer in time.
        """
        plan = self.plan(requests, explain=explain, tell_unknown=tell_unknown, timeout_s=timeout_s)
        names = plan.outputs
        return plan.merge([self._ask(tensors, names, plan.deadline) for tensors in plan.tensors])

    def close(self) -> None:
        """Give back shared memory and end the connection."""
        self._run(self.close_steps())
        self._channel.close()

    def __enter__(self) -> RankClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
