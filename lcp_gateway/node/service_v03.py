"""The service in version 3 of the protocol: version 2's behind translated messages, at the same paths."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from lcp_gateway._gen.lcpd import lcpd_pb2 as v02
from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as v03
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.lightning.terms import CONTENT_ENCODING, CONTENT_TYPE
from lcp_gateway.node.lcp.table import read_params
from lcp_gateway.node.lcp.tlv import WireError
from lcp_gateway.node.service import Context, LcpdService, abort
from lcp_gateway.node.status import CallError, invalid, lcp_error
from lcp_gateway.node.tasks import TaskKind

_SERVICE = "lcpd.v1.LCPDService"


def handler_v03(service: LcpdService) -> grpc.GenericRpcHandler:
    """Return the handler of a service's calls."""

    async def list_peers(_request: v03.ListLCPPeersRequest, context: Context) -> v03.ListLCPPeersResponse:
        listed = await service.ListLCPPeers(v02.ListLCPPeersRequest(), context)
        return v03.ListLCPPeersResponse(peers=[_peer(peer) for peer in listed.peers])

    async def local_info(_request: v03.GetLocalInfoRequest, context: Context) -> v03.GetLocalInfoResponse:
        info = await service.GetLocalInfo(v02.GetLocalInfoRequest(), context)
        return v03.GetLocalInfoResponse(node_id=info.node_id, manifest=_manifest(info.manifest))

    async def request_quote(request: v03.RequestQuoteRequest, context: Context) -> v03.RequestQuoteResponse:
        try:
            task = _task(request.call)
        except CallError as error:
            await abort(context, error, 3)
        quoted = await service.RequestQuote(v02.RequestQuoteRequest(peer_id=request.peer_id, task=task), context)
        terms = quoted.terms
        return v03.RequestQuoteResponse(
            peer_id=quoted.peer_id,
            quote=v03.Quote(
                protocol_version=terms.protocol_version,
                call_id=terms.job_id,
                price_msat=terms.price_msat,
                quote_expiry=terms.quote_expiry,
                terms_hash=terms.terms_hash,
                payment_request=terms.payment_request,
            ),
        )

    async def accept(request: v02.AcceptAndExecuteRequest, context: Context) -> v03.AcceptAndExecuteResponse:
        answer = await service.AcceptAndExecute(request, context)
        if not answer.HasField("result"):
            return v03.AcceptAndExecuteResponse()
        return v03.AcceptAndExecuteResponse(complete=_complete(answer.result))

    async def accept_stream(request: v02.AcceptAndExecuteStreamRequest, context: Context) -> None:
        await service.AcceptAndExecuteStream(request, _Events(context))  # type: ignore[arg-type]  # as much of a context as it uses

    return grpc.method_handlers_generic_handler(
        _SERVICE,
        {
            "ListLCPPeers": _unary(list_peers, v03.ListLCPPeersRequest),
            "GetLocalInfo": _unary(local_info, v03.GetLocalInfoRequest),
            "RequestQuote": _unary(request_quote, v03.RequestQuoteRequest),
            # These requests are the same on the wire.
            "AcceptAndExecute": _unary(accept, v02.AcceptAndExecuteRequest),
            "AcceptAndExecuteStream": grpc.unary_stream_rpc_method_handler(
                accept_stream, v02.AcceptAndExecuteStreamRequest.FromString, _serialize
            ),
            "CancelJob": _unary(service.CancelJob, v02.CancelJobRequest),
        },
    )


def _unary(
    method: Callable[[Any, Context], Awaitable[Message]], request: type[Any]
) -> "grpc.RpcMethodHandler[Any, Any]":
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, _serialize)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


class _Events:
    """Delegates to a call's context; the event with the result is version 3's, all others are the same."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.abort = context.abort

    async def write(self, event: v02.AcceptAndExecuteStreamResponse) -> None:
        if event.HasField("result"):
            await self._context.write(v03.AcceptAndExecuteStreamResponse(complete=_complete(event.result)))
        else:
            await self._context.write(event)


def _task(call: v03.CallSpec) -> v02.Task:
    """Return version 2's task for a call.

    Raises:
        CallError: the daemon or the peer takes no such call.
    """
    for name in ("method", "request_bytes", "request_content_type", "request_content_encoding"):
        if not getattr(call, name):
            raise invalid(f"validation error: call.{name}: value length must be at least 1")
    if call.request_content_type != CONTENT_TYPE:
        raise lcp_error(ErrorCode.UNSUPPORTED_ENCODING, "unsupported content_type")
    if call.request_content_encoding != CONTENT_ENCODING:
        raise lcp_error(ErrorCode.UNSUPPORTED_ENCODING, "unsupported content_encoding")
    try:
        model, unknown = read_params(call.params)
    except WireError:
        raise lcp_error(ErrorCode.UNSUPPORTED_PARAMS, "params cannot be read") from None
    if unknown:
        raise lcp_error(ErrorCode.UNSUPPORTED_PARAMS, "params hold unknown fields")
    if call.method == TaskKind.CHAT:
        chat = v02.OpenAIChatCompletionsV1TaskSpec(
            request_json=call.request_bytes, params=v02.OpenAIChatCompletionsV1Params(model=model)
        )
        return v02.Task(openai_chat_completions_v1=chat)
    if call.method == TaskKind.RESPONSES:
        responses = v02.OpenAIResponsesV1TaskSpec(
            request_json=call.request_bytes, params=v02.OpenAIResponsesV1Params(model=model)
        )
        return v02.Task(openai_responses_v1=responses)
    raise lcp_error(ErrorCode.UNSUPPORTED_TASK, "unsupported method")


def _complete(result: v02.Result) -> v03.Complete:
    made = v03.Complete(
        status=v03.Complete.Status.ValueType(result.status), response_bytes=result.result, message=result.message
    )
    if result.status == v02.Result.STATUS_OK:
        made.response_stream_id = result.result_hash
        made.response_hash = result.result_hash
        made.response_len = result.result_len
        made.response_content_type = result.content_type
        made.response_content_encoding = result.content_encoding
    return made


def _peer(peer: v02.LCPPeer) -> v03.LCPPeer:
    return v03.LCPPeer(peer_id=peer.peer_id, address=peer.address, remote_manifest=_manifest(peer.remote_manifest))


_METHODS = {
    v02.LCP_TASK_KIND_OPENAI_CHAT_COMPLETIONS_V1: TaskKind.CHAT,
    v02.LCP_TASK_KIND_OPENAI_RESPONSES_V1: TaskKind.RESPONSES,
}


def _manifest(manifest: v02.LCPManifest) -> v03.LCPManifest:
    """Return version 3's manifest, which names methods and no models."""
    methods = dict.fromkeys(_METHODS[template.kind] for template in manifest.supported_tasks)
    return v03.LCPManifest(
        protocol_version=manifest.protocol_version,
        max_payload_bytes=manifest.max_payload_bytes,
        supported_methods=[v03.MethodDescriptor(method=method.value) for method in methods],
        max_stream_bytes=manifest.max_stream_bytes,
        max_call_bytes=manifest.max_job_bytes,
        max_inflight_calls=manifest.max_inflight_jobs,
    )
