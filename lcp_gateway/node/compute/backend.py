"""The interface of a compute backend, its tasks and its results."""

from __future__ import annotations  # the stub's type of a status does not exist at run time

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from lcp_gateway._gen.lcpd import lcpd_pb2
from lcp_gateway.node.ports import Compute
from lcp_gateway.node.tasks import Task

JSON_TYPE: Final = "application/json; charset=utf-8"
STREAM_TYPE: Final = "text/event-stream; charset=utf-8"
IDENTITY: Final = "identity"


@dataclass(frozen=True, slots=True)
class PaidTask:
    """A task to compute. ``created_at`` is Unix seconds; ``tokens_per_second`` 0 means no pause."""

    job_id: bytes
    task: Task
    created_at: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class ComputeResult:
    """A result, chunk by chunk as it is computed. ``close``, if set, is awaited at the end, read or not."""

    content_type: str
    content_encoding: str
    chunks: AsyncGenerator[bytes, None]
    close: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class ResultEnd:
    """The hash, length and status that a result ends with. ``sent`` is false when the call ends without them."""

    content_type: str
    content_encoding: str
    sha256: bytes
    length: int
    status: lcpd_pb2.Result.Status.ValueType = lcpd_pb2.Result.STATUS_OK
    message: str = ""
    sent: bool = True


class Backend(Compute, Protocol):
    """A source of results: the echo, or an OpenAI-compatible server.

    What a node sells over Lightning is run by ``Compute.run``; the embedded node begins its results by ``compute``, at a pace.
    """

    async def start(self) -> tuple[str, ...]:
        """Return the models found; none when the configuration alone names them.

        Raises:
            ComputeError: the models are needed, and there is no list of them.
        """
        ...

    async def compute(self, paid: PaidTask) -> ComputeResult:
        """Begin a result. A task that does not stream may come in one chunk.

        Raises:
            ComputeError: there will be none. The chunks may raise it too.
        """
        ...
