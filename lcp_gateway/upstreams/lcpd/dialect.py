"""A dialect: the messages of one version of the protocol on gRPC, read and written for the adapter, which is the same for all.

Requests to accept and to cancel, and the chunks of a stream, are the same on the wire in every version that is known here;
the adapter handles them itself. A call of version 3 is a job, its method the kind of a task, its complete a result.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from lcp_gateway._gen.lcpd import lcpd_pb2 as v02
from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as v03
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result, ResultStatus
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.upstream_status import UpstreamStatus

KINDS_OF_PEERS: Final = frozenset({TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES})
"""The kinds of task that Lightning peers take."""

STATUSES: Final[Mapping[int, ResultStatus]] = MappingProxyType(
    {1: ResultStatus.OK, 2: ResultStatus.FAILED, 3: ResultStatus.CANCELLED}
)
"""A result's status by its number, which is the same in every version."""
UNSPECIFIED: Final = ResultStatus.UNSPECIFIED
"""The status of other numbers."""

_HASH_BYTES: Final = 32
# The field of a result whose type on the wire differs: its length in version 2 (a varint), its hash in version 3 (bytes).
_TELLING_FIELD: Final = 4
LENGTH_FORM: Final = 0
HASH_FORM: Final = 2


class Dialect(Protocol):
    """One version of the messages. Every error is an ``UpstreamError``."""

    @property
    def version(self) -> int:
        """The number of the version."""
        ...

    def quote_request(self, task: Task, peer_id: str) -> bytes:
        """Write RequestQuoteRequest."""
        ...

    def quote(self, answer: bytes, peer_id: str) -> Quote:
        """Read RequestQuoteResponse, which must be of this version and of that peer."""
        ...

    def result(self, answer: bytes) -> Result:
        """Read AcceptAndExecuteResponse."""
        ...

    def last_event(self, event: bytes) -> Result:
        """Read an AcceptAndExecuteStreamResponse that holds the end of the call."""
        ...

    def peers(self, answer: bytes) -> Sequence["ListedPeer"]:
        """Read ListLCPPeersResponse."""
        ...

    def models_in(self, refusal: str) -> Sequence[str]:
        """Return the models that a peer names in the text of its error; none where its list names them already."""
        ...


class ListedPeer(NamedTuple):
    """A peer of the daemon's list, and its id: the public key, as the daemon writes it."""

    peer_id: str
    provider: Callable[[int], tuple[Provider, Sequence[str]]]
    """Returns the peer as a provider with at most so many models, and descriptions of the parts that were left out."""


M = TypeVar("M", bound=Message)


def read(kind: type[M], answer: bytes) -> M:
    """Read a message.

    Raises:
        UpstreamError: the bytes are no message of that kind.
    """
    try:
        return kind.FromString(answer)
    except DecodeError:
        raise UpstreamError(UpstreamStatus.INTERNAL, "the daemon's answer is no message of its kind") from None


class UnsupportedVersion(UpstreamError):
    """The daemon speaks a protocol version that no dialect here knows."""

    def __init__(self, version: int, known: Iterable[int]) -> None:
        names = " and ".join(str(number) for number in sorted(known))
        super().__init__(
            UpstreamStatus.FAILED_PRECONDITION,
            f"the daemon speaks LCP protocol version {version}; this gateway knows the versions {names}",
        )
        self.version = version


def check_task(task: Task) -> None:
    """Check that peers take tasks of its kind.

    Raises:
        UpstreamError: they do not.
    """
    if task.kind not in KINDS_OF_PEERS:
        # Routing finds no peer for it, unless the operator named one for its model.
        raise UpstreamError(
            UpstreamStatus.UNIMPLEMENTED, "Lightning peers do not take tasks of this kind; nothing was paid"
        )


def quote_of(
    fields: v02.Terms | v03.Quote,
    job_id: bytes,
    *,
    version: int,
    asked_peer_id: str,
    stated_peer_id: str,
    response_content_type: str | None = None,
    response_content_encoding: str | None = None,
) -> Quote:
    """Return the quote in a message, checked as far as it can be without its task.

    Raises:
        UpstreamError: it is of another version or peer, or a field has an impossible value.
    """
    if fields.protocol_version != version:
        # The daemon was exchanged behind a connection that stayed: a proxy's, say.
        raise UpstreamError(
            UpstreamStatus.FAILED_PRECONDITION,
            f"the quote is of LCP protocol version {fields.protocol_version}, and version {version} was asked for",
            retryable=True,
        )
    if len(job_id) != _HASH_BYTES or len(fields.terms_hash) != _HASH_BYTES:
        raise UpstreamError(UpstreamStatus.DATA_LOSS, "the quote's job id or terms hash is not 32 bytes long")
    if stated_peer_id not in {"", asked_peer_id}:
        raise UpstreamError(UpstreamStatus.DATA_LOSS, "the quote comes from another peer than the one asked")
    try:
        expires_at = datetime.fromtimestamp(fields.quote_expiry.seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise UpstreamError(UpstreamStatus.DATA_LOSS, "the quote's expiry is no possible time") from None
    return Quote(
        peer_id=asked_peer_id,
        job_id=job_id,
        price_msat=Msat(fields.price_msat),
        expires_at=expires_at,
        terms_hash=fields.terms_hash,
        payment_request=fields.payment_request,
        protocol_version=version,
        response_content_type=response_content_type,
        response_content_encoding=response_content_encoding,
    )


def check_form_of_result(message: Message, *, own_form: int) -> None:
    """Check that a result is of the version as which it was read: ``own_form`` is the wire type that field 4 has there.

    Raises:
        UpstreamError: it is of the other version; it was paid for all the same.
    """
    unknown = UnknownFieldSet(message)
    for place in range(len(unknown)):
        field = unknown[place]
        if field.field_number == _TELLING_FIELD and field.wire_type != own_form:
            raise UpstreamError(
                UpstreamStatus.DATA_LOSS,
                "the daemon answered in another version of the protocol than its quote's",
                evidence=Verdict.SETTLED,
            )
