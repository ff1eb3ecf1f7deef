"""The messages of protocol version 3, a draft: the service and its methods keep their names, the messages do not."""

# ruff: noqa: D102 - methods are documented by ``Dialect``

import re
from collections.abc import Iterable, Sequence
from functools import partial
from types import MappingProxyType

from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as pb
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.lightning.terms import CONTENT_ENCODING, CONTENT_TYPE, model_params
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.dialect import (
    HASH_FORM,
    KINDS_OF_PEERS,
    STATUSES,
    UNSPECIFIED,
    ListedPeer,
    check_form_of_result,
    check_task,
    quote_of,
    read,
)
from lcp_gateway.upstreams.lcpd.grpc_status import peer_error
from lcp_gateway.upstreams.lcpd.payment_report import read_report

MAX_TYPE_CHARS = 256
"""The longest content type or encoding that a quote may promise: both are kept with the purchase."""

# lcpd-grpcd's: lcp_error code=3: unsupported model: "x" (supported: a, b)
_SUPPORTED = re.compile(r"unsupported model: .*\(supported: (?P<names>[^()]*)(?P<end>\)\Z)?")
_KIND_OF_METHOD = {kind.value: kind for kind in KINDS_OF_PEERS}
_JSON_MEDIA_TYPE = CONTENT_TYPE.partition(";")[0]


class Version3:
    """The dialect of version 3."""

    version = 3

    def quote_request(self, task: Task, peer_id: str) -> bytes:
        check_task(task)
        request = pb.RequestQuoteRequest(peer_id=peer_id)
        # Filled in place: a message that another one is made of is copied, with the body in it.
        call = request.call
        call.method, call.params = task.kind.value, model_params(task.model)
        call.request_bytes = task.body
        call.request_content_type, call.request_content_encoding = CONTENT_TYPE, CONTENT_ENCODING
        return request.SerializeToString()

    def quote(self, answer: bytes, peer_id: str) -> Quote:
        message = read(pb.RequestQuoteResponse, answer)
        quote = message.quote
        has_type = quote.HasField("response_content_type")
        if has_type is not quote.HasField("response_content_encoding"):
            raise UpstreamError(
                UpstreamStatus.DATA_LOSS, "the quote states one of its response's type and encoding only"
            )
        if max(len(quote.response_content_type), len(quote.response_content_encoding)) > MAX_TYPE_CHARS:
            raise UpstreamError(
                UpstreamStatus.DATA_LOSS,
                f"the quote's response type or encoding is longer than {MAX_TYPE_CHARS} characters",
            )
        return quote_of(
            quote,
            quote.call_id,
            version=self.version,
            asked_peer_id=peer_id,
            stated_peer_id=message.peer_id,
            response_content_type=quote.response_content_type if has_type else None,
            response_content_encoding=quote.response_content_encoding if has_type else None,
        )

    def result(self, answer: bytes) -> Result:
        return _result(read(pb.AcceptAndExecuteResponse, answer).complete)

    def last_event(self, event: bytes) -> Result:
        return _result(read(pb.AcceptAndExecuteStreamResponse, event).complete)

    def peers(self, answer: bytes) -> Sequence[ListedPeer]:
        return [
            ListedPeer(peer.peer_id, partial(_provider, peer)) for peer in read(pb.ListLCPPeersResponse, answer).peers
        ]

    def models_in(self, refusal: str) -> Sequence[str]:
        """Return the models that a seller names where it does not have the one that was asked for."""
        if peer_error(refusal, self.version) is not ErrorCode.UNSUPPORTED_TASK:
            return ()
        found = _SUPPORTED.search(refusal)
        if found is None:
            return ()
        names = [name.strip() for name in found["names"].split(",")]
        # Without its end the text was cut, and so may be the last name.
        return names if found["end"] else names[:-1]


def _result(message: pb.Complete) -> Result:
    check_form_of_result(message, own_form=HASH_FORM)
    return Result(
        status=STATUSES.get(message.status, UNSPECIFIED),
        body=message.response_bytes,
        sha256=message.response_hash,
        length=message.response_len,
        content_type=message.response_content_type,
        content_encoding=message.response_content_encoding,
        message=message.message,
        payment=read_report(message.payment),
    )


def _provider(peer: pb.LCPPeer, most_models: int) -> tuple[Provider, Sequence[str]]:  # noqa: ARG001 - no model is listed
    """Return the peer with the kinds of task whose methods it lists: its models are not known by its list."""
    manifest = peer.remote_manifest
    return Provider(
        peer_id=peer.peer_id,
        address=peer.address,
        protocol_version=manifest.protocol_version,
        models=MappingProxyType({}),
        max_payload_bytes=manifest.max_payload_bytes,
        max_stream_bytes=manifest.max_stream_bytes,
        max_job_bytes=manifest.max_call_bytes,
        max_inflight_jobs=manifest.max_inflight_calls,
        open_kinds=frozenset(_kinds(manifest.supported_methods)),
    ), ()


def _kinds(methods: Iterable[pb.MethodDescriptor]) -> Iterable[TaskKind]:
    for descriptor in methods:
        kind = _KIND_OF_METHOD.get(descriptor.method)
        taken = descriptor.request_content_types
        # A list that is empty leaves the types open.
        if kind is not None and (not taken or any(_media_type(one) == _JSON_MEDIA_TYPE for one in taken)):
            yield kind


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
