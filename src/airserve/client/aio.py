"""asyncio gRPC client of the `air` ensemble."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from airserve.client.core import Call, ClientCore, Infer, Outcome, RankPlan, Steps
from airserve.client.raw import as_server_exception, decode_infer, infer_method
from airserve.client.request import Id, RankRequest
from airserve.client.result import RankResult
from airserve.client.wire import Tensors

CALLS_IN_FLIGHT = 4
"""Of one `rank` that is split into more calls."""


class AsyncRankClient(ClientCore):
    """A connection for asyncio code; tasks of one event loop may share it. Takes the arguments of `ClientCore`.

    It connects in `async with`, in `await client.connect()`, or with the first call, which then may raise what
    `connect` raises.
    """

    _channel: Any = None
    _send: Any = None
    _connecting: asyncio.Lock | None = None
    _connected = False

    async def connect(self) -> AsyncRankClient:
        """Open the connection and compare the contracts; does nothing when that is done.

        Raises:
            ServerError: when no server with the ensemble answers there.
            ArtifactError: when the server's contract is not this client's.
            EngineError: when there is not enough shared memory.
        """
        if self._connected:
            return self
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._channel is None:
                self._channel = triton.InferenceServerClient(self.url, **self.channel_settings)
                self._send = infer_method(self._channel)
            if not self._connected:
                await self._run(self.connect_steps())
                self._connected = True
        return self

    async def _run(self, steps: Steps[Outcome]) -> Outcome:
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._perform(step)
                except InferenceServerException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            outcome: Outcome = done.value
            return outcome
        finally:
            steps.close()

    async def _perform(self, step: Any) -> Any:
        if isinstance(step, Infer):
            if self._send is not None:
                try:
                    return decode_infer(await self._send(step.message(), timeout=step.timeout_s))
                except grpc.RpcError as error:
                    raise as_server_exception(error) from None
            step = self.spelled_out(step)
        if isinstance(step, Call):
            return await getattr(self._channel, step.method)(**step.arguments)
        return await asyncio.sleep(step.seconds)

    async def infer(
        self, tensors: Tensors, outputs: Sequence[str], *, timeout_s: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """One call with raw tensors; `outputs` are the wire names wanted back.

        Raises:
            InvalidRequestError: for a missing tensor, another dtype, or an unknown output.
            ServerError: with the gRPC status.
        """
        deadline = self.deadline(timeout_s)
        if not self._connected:
            await self.connect()
        return await self._run(self.infer_steps(tensors, outputs, deadline))

    async def rank(
        self,
        requests: Sequence[RankRequest[Id]],
        *,
        explain: bool = False,
        tell_unknown: bool = False,
        timeout_s: float | None = None,
    ) -> list[RankResult[Id]]:
        """Rank requests; as many calls as the contract's bounds make necessary, up to `CALLS_IN_FLIGHT` at once.

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
        if not self._connected:
            await self.connect()
        return plan.merge(await self._answers(plan))

    async def _answers(self, plan: RankPlan) -> list[dict[str, npt.NDArray[Any]]]:
        names = plan.outputs
        if len(plan.tensors) == 1:
            return [await self._run(self.infer_steps(plan.tensors[0], names, plan.deadline))]
        room = asyncio.Semaphore(CALLS_IN_FLIGHT)

        async def one(tensors: Tensors) -> dict[str, npt.NDArray[Any]]:
            async with room:
                return await self._run(self.infer_steps(tensors, names, plan.deadline))

        tasks = [asyncio.create_task(one(tensors)) for tensors in plan.tensors]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Give back shared memory and end the connection."""
        await self._run(self.close_steps())
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncRankClient:
        try:
            return await self.connect()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
