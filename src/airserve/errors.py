"""Every error that airserve raises on purpose.

A message names the subject, what was expected, what came, and what to do about it. Scripts turn a `UserError` into
one line on stderr and exit status 2; Triton models turn an `InvalidRequestError` into INVALID_ARGUMENT.
"""

from __future__ import annotations

TOO_BUSY = "too many requests"
"""In a server's refusal (UNAVAILABLE) of a request that it did not run because others were waiting."""


class AirserveError(Exception):
    """Base of all errors raised by airserve."""


class UserError(AirserveError):
    """Something the caller can put right: a wrong argument, a bad file, a missing install."""

    def __init__(self, subject: str, *, expected: str, got: str, remedy: str) -> None:
        self.subject = subject
        self.expected = expected
        self.got = got
        self.remedy = remedy
        super().__init__(f"{subject}: expected {expected}, got {got}; {remedy}")


class InvalidRequestError(UserError):
    """A ranking request that breaks the contract. Served as INVALID_ARGUMENT."""


class DataError(UserError):
    """An input file or folder that is not in the documented format."""


class ArtifactError(UserError):
    """A produced file (table, checkpoint, engine) that is missing, damaged, or made for another version."""


class EngineError(AirserveError):
    """An inference engine (vLLM, ONNX Runtime, TensorRT, Triton) failed or could not be started."""


class ServerError(AirserveError):
    """The server answered with an error, or did not answer in time.

    Attributes:
        status: gRPC status, e.g. `StatusCode.INVALID_ARGUMENT`.
    """

    def __init__(self, message: str, *, status: str) -> None:
        self.status = status
        super().__init__(f"{status}: {message}")
