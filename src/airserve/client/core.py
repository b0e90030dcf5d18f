"""What a client does, without doing any I/O: the blocking and the asyncio client only carry these steps out.

Each operation is a generator. It yields what has to be done - a call of tritonclient by name, or a wait - and is
resumed with the outcome. Both clients therefore split, retry, register memory and report errors in the same way.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from airserve import contract
from airserve.client.agreement import check_agreement
from airserve.client.connection import KeepAlive, TlsSettings, channel_settings
from airserve.client.plan import Part, merge_answers, plan_calls
from airserve.client.raw import arrays_of, encode_infer, queue_timeout_us
from airserve.client.regions import REGION_BYTES, Region, RegionPool
from airserve.client.request import Id, RankRequest, encode_items, to_tensors
from airserve.client.result import RankResult, from_tensors
from airserve.client.retry import (
    DEADLINE_EXCEEDED,
    Deadline,
    RetryBudget,
    RetryPolicy,
    next_delay_s,
    was_answered,
)
from airserve.client.wire import (
    Layout,
    Tensors,
    check_answer,
    check_tensors,
    make_inputs,
    make_outputs,
    make_shared_inputs,
    make_shared_outputs,
    plan_layout,
    wanted_outputs,
)
from airserve.errors import ServerError
from airserve.ids import ItemIds

log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")
CLOSE_TIMEOUT_S = 2.0
"""A closing client waits so long for a server that is still working on a call that nobody waits for."""
CLOSE_PAUSE_S = 0.1
IN_USE = "currently in use"
"""In Triton's refusal to unregister a region."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """Call this method of tritonclient's `InferenceServerClient`."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Infer:
    """Send a call with its tensors in the message; the outcome is for `raw.arrays_of`."""

    tensors: Tensors
    outputs: Sequence[str]
    timeout_s: float

    def message(self) -> bytes:
        """The call, encoded."""
        return encode_infer(self.tensors, self.outputs, timeout_us=queue_timeout_us(self.timeout_s))


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Do nothing for a while."""

    seconds: float


Steps = Generator[Call | Infer | Wait, Any, Outcome]


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """A `rank` on its way: what was asked, in which calls, and their tensors."""

    requests: Sequence[RankRequest[Any]]
    calls: list[list[Part[Any]]]
    tensors: list[dict[str, npt.NDArray[Any]]]
    explain: bool
    tell_unknown: bool
    deadline: Deadline

    @property
    def outputs(self) -> tuple[str, ...]:
        """Wire names that each call asks for."""
        return wanted_outputs(explain=self.explain, tell_unknown=self.tell_unknown)

    def merge(self, answers: Sequence[dict[str, npt.NDArray[Any]]]) -> list[RankResult[Any]]:
        """The results, from the answer to each call."""
        results = [
            from_tensors(
                [part.request for part in call], answer, explained=self.explain, tell_unknown=self.tell_unknown
            )
            for call, answer in zip(self.calls, answers, strict=True)
        ]
        return merge_answers(self.requests, self.calls, results)


class ClientCore:
    """One connection to a server; reuse it.

    Args:
        url: `host:port` of the server's gRPC endpoint.
        timeout_s: default deadline of a call with all its parts and retries, seconds.
        retry: how often an unavailable server is asked again.
        tls: encrypt the connection.
        keepalive: ping the server; no pings when None.
        shared_memory: pass tensors through system shared memory; the server must run on the same machine and see the
            same /dev/shm.
        item_ids: translates string ids; without it all ids are integers.

    Raises:
        UserError: for settings that cannot be.
        EngineError: when there is not enough shared memory.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        retry: RetryPolicy | None = None,
        tls: TlsSettings | None = None,
        keepalive: KeepAlive | None = None,
        shared_memory: bool = False,
        item_ids: ItemIds | None = None,
    ) -> None:
        Deadline(timeout_s)
        self.url = url
        self.timeout_s = timeout_s
        self.retry = retry or RetryPolicy()
        self.item_ids = item_ids
        self.channel_settings = channel_settings(tls, keepalive)
        self._rng = random.Random()
        self._budget = RetryBudget()
        self._cut_told = False
        self._regions = RegionPool() if shared_memory else None
        self._open()

    def _open(self) -> None:
        """Connect, where that can be done without an event loop."""

    def deadline(self, timeout_s: float | None) -> Deadline:
        """The end of a call that starts now."""
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)

    def plan(
        self, requests: Sequence[RankRequest[Id]], *, explain: bool, tell_unknown: bool, timeout_s: float | None
    ) -> RankPlan:
        """Split, translate and check requests before anything is sent.

        Raises:
            InvalidRequestError: when a request breaks the contract.
        """
        deadline = self.deadline(timeout_s)
        calls = plan_calls(requests)
        self._tell_cut(calls)
        tensors = [to_tensors([self._encoded(part.request) for part in call]) for call in calls]
        return RankPlan(
            requests=requests,
            calls=calls,
            tensors=tensors,
            explain=explain,
            tell_unknown=tell_unknown,
            deadline=deadline,
        )

    def _encoded(self, request: RankRequest[Any]) -> RankRequest[Any]:
        return request if self.item_ids is None else encode_items(request, self.item_ids)

    def _tell_cut(self, calls: list[list[Part[Any]]]) -> None:
        cut = max((part.dropped for call in calls for part in call), default=0)
        if cut and not self._cut_told:
            self._cut_told = True
            log.warning(
                "a history has %d behaviours, %d fit one request: the last ones are sent (said once a client)",
                cut + contract.MAX_BEHAVIOURS,
                contract.MAX_BEHAVIOURS,
            )

    def connect_steps(self) -> Steps[None]:
        """Ask for the server's model configuration and compare it with the contract."""
        deadline = self.deadline(None)

        def ask(remaining_s: float) -> Steps[Any]:
            return (
                yield Call(
                    method="get_model_config",
                    arguments={"model_name": contract.ENSEMBLE_MODEL, "client_timeout": remaining_s},
                )
            )

        answer = yield from self._with_retries(ask, deadline)
        check_agreement(self.url, answer.config)
        if self._regions is not None:
            self._regions.open_first()

    def infer_steps(
        self,
        tensors: Tensors,
        outputs: Sequence[str],
        deadline: Deadline,
        failed: InferenceServerException | None = None,
    ) -> Steps[dict[str, npt.NDArray[Any]]]:
        """One call, sent again where that is safe and useful; `failed` is what a first attempt met with already."""
        check_tensors(tensors)

        def ask(remaining_s: float) -> Steps[dict[str, npt.NDArray[Any] | None]]:
            return self._attempt(tensors, outputs, remaining_s)

        answer = yield from self._with_retries(ask, deadline, failed)
        return check_answer(answer, tensors)

    def _with_retries(
        self,
        ask: Callable[[float], Steps[Outcome]],
        deadline: Deadline,
        failed: InferenceServerException | None = None,
    ) -> Steps[Outcome]:
        attempt = 0
        while True:
            attempt += 1
            remaining_s = deadline.remaining_s()
            if remaining_s <= 0 and failed is None:
                raise ServerError(
                    f"{self.url}: the deadline of {deadline.timeout_s:g} s passed before this part was sent",
                    status=DEADLINE_EXCEEDED,
                )
            try:
                met, failed = failed, None
                if met is not None:
                    raise met
                outcome = yield from ask(remaining_s)
            except InferenceServerException as error:
                delay_s = next_delay_s(
                    str(error.status()),
                    str(error.message()),
                    attempt,
                    policy=self.retry,
                    budget=self._budget,
                    remaining_s=deadline.remaining_s(),
                    rng=self._rng,
                )
                if delay_s is None:
                    raise self._server_error(error, attempt, deadline) from error
            else:
                self._budget.earn()
                return outcome
            log.debug("%s is unavailable, attempt %d; the next one in %.3f s", self.url, attempt, delay_s)
            yield Wait(seconds=delay_s)

    def _server_error(self, error: Any, attempts: int, deadline: Deadline) -> ServerError:
        status = str(error.status())
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        limit = f" (deadline of {deadline.timeout_s:g} s)" if status == DEADLINE_EXCEEDED else ""
        return ServerError(f"{self.url}: {error.message()}{tried}{limit}", status=status)

    def spelled_out(self, step: Infer) -> Call:
        """The same call for tritonclient's own `infer`."""
        return self._infer(make_inputs(step.tensors), make_outputs(step.outputs), step.timeout_s)

    def _infer(self, inputs: list[Any], outputs: list[Any], remaining_s: float) -> Call:
        return Call(
            method="infer",
            arguments={
                "model_name": contract.ENSEMBLE_MODEL,
                "inputs": inputs,
                "outputs": outputs,
                "timeout": queue_timeout_us(remaining_s),
                "client_timeout": remaining_s,
            },
        )

    def _attempt(
        self, tensors: Tensors, outputs: Sequence[str], remaining_s: float
    ) -> Steps[dict[str, npt.NDArray[Any] | None]]:
        if self._regions is not None and (layout := plan_layout(tensors, outputs)).n_bytes <= REGION_BYTES:
            region = self._regions.take()
            if region is None:
                region = yield from self._reclaim(self._regions, remaining_s)
            if region is not None:
                return (yield from self._shared_attempt(self._regions, region, layout, tensors, remaining_s))
        answer = yield Infer(tensors=tensors, outputs=outputs, timeout_s=remaining_s)
        return dict(arrays_of(answer, outputs))

    def _reclaim(self, pool: RegionPool, remaining_s: float) -> Steps[Region | None]:
        """A region that an unanswered call left behind, if the server no longer uses it."""
        region = pool.take_aside()
        if region is None:
            return None
        released = False
        try:
            yield self._unregister(region, remaining_s)
            released, region.registered = True, False
        except InferenceServerException as error:
            log.debug("%s: %s not unregistered: %s", self.url, region.name, error.message())
        finally:
            if not released:
                pool.set_aside(region)
        return region if released else None

    def _unregister(self, region: Region, timeout_s: float) -> Call:
        return Call(
            method="unregister_system_shared_memory",
            arguments={"name": region.name, "client_timeout": timeout_s},
        )

    def _shared_attempt(
        self, pool: RegionPool, region: Region, layout: Layout, tensors: Tensors, remaining_s: float
    ) -> Steps[dict[str, npt.NDArray[Any] | None]]:
        region.write(layout, tensors)
        answered = False
        try:
            fresh = not region.registered
            if fresh:
                yield from self._register(region, remaining_s)
            call = self._infer(
                make_shared_inputs(layout, region.name), make_shared_outputs(layout, region.name), remaining_s
            )
            try:
                answer = yield call
            except InferenceServerException as error:
                if fresh or region.name not in str(error.message()):
                    raise
                # A server that was started again does not know the regions of its predecessor.
                yield from self._register(region, remaining_s)
                answer = yield call
            answered = True
            return region.read(layout, {each.name: tuple(each.shape) for each in answer.get_response().outputs})
        except InferenceServerException as error:
            answered = was_answered(str(error.status()), str(error.message()))
            raise
        finally:
            (pool.give_back if answered else pool.set_aside)(region)

    def _register(self, region: Region, remaining_s: float) -> Steps[None]:
        try:
            yield Call(
                method="register_system_shared_memory",
                arguments={**region.registration, "client_timeout": remaining_s},
            )
        except InferenceServerException as error:
            # A retried registration finds its own first attempt.
            if str(error.status()) != "StatusCode.ALREADY_EXISTS":
                raise
        region.registered = True

    def close_steps(self) -> Steps[None]:
        """Unregister and unlink the shared memory; a server that is gone, or does not let go, is no error."""
        if self._regions is None:
            return
        end = Deadline(CLOSE_TIMEOUT_S)
        try:
            for region in self._regions.registered:
                while end.remaining_s() > CLOSE_PAUSE_S:
                    try:
                        yield self._unregister(region, end.remaining_s())
                        break
                    except InferenceServerException as error:
                        if IN_USE not in str(error.message()):
                            break
                    yield Wait(seconds=CLOSE_PAUSE_S)
        finally:
            self._regions.destroy()
