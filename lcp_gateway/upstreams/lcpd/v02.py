"""The messages of protocol version 2."""

# ruff: noqa: D102 - methods are documented by ``Dialect``

from collections.abc import Sequence
from functools import partial

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.routing.catalog import Provider, merge_kinds
from lcp_gateway.upstreams.lcpd.dialect import (
    LENGTH_FORM,
    STATUSES,
    UNSPECIFIED,
    ListedPeer,
    check_form_of_result,
    check_task,
    quote_of,
    read,
)
from lcp_gateway.upstreams.lcpd.payment_report import read_report

MAX_MODEL_CHARS = 256
"""The longest name of a model that is listed."""

_KINDS = {
    pb.LCP_TASK_KIND_OPENAI_CHAT_COMPLETIONS_V1: TaskKind.CHAT_COMPLETIONS,
    pb.LCP_TASK_KIND_OPENAI_RESPONSES_V1: TaskKind.RESPONSES,
}


class Version2:
    """The dialect of version 2."""

    version = 2

    def quote_request(self, task: Task, peer_id: str) -> bytes:
        check_task(task)
        request = pb.RequestQuoteRequest(peer_id=peer_id)
        # Filled in place: a message that another one is made of is copied, with the body in it.
        if task.kind is TaskKind.CHAT_COMPLETIONS:
            chat = request.task.openai_chat_completions_v1
            chat.request_json, chat.params.model = task.body, task.model
        else:
            response = request.task.openai_responses_v1
            response.request_json, response.params.model = task.body, task.model
        return request.SerializeToString()

    def quote(self, answer: bytes, peer_id: str) -> Quote:
        message = read(pb.RequestQuoteResponse, answer)
        terms = message.terms
        return quote_of(
            terms, terms.job_id, version=self.version, asked_peer_id=peer_id, stated_peer_id=message.peer_id
        )

    def result(self, answer: bytes) -> Result:
        return _result(read(pb.AcceptAndExecuteResponse, answer).result)

    def last_event(self, event: bytes) -> Result:
        return _result(read(pb.AcceptAndExecuteStreamResponse, event).result)

    def peers(self, answer: bytes) -> Sequence[ListedPeer]:
        return [
            ListedPeer(peer.peer_id, partial(_provider, peer)) for peer in read(pb.ListLCPPeersResponse, answer).peers
        ]

    def models_in(self, refusal: str) -> Sequence[str]:  # noqa: ARG002 - the protocol's
        """Return no models: the peer's list names them."""
        return ()


def _result(message: pb.Result) -> Result:
    check_form_of_result(message, own_form=LENGTH_FORM)
    return Result(
        status=STATUSES.get(message.status, UNSPECIFIED),
        body=message.result,
        sha256=message.result_hash,
        length=message.result_len,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        message=message.message,
        payment=read_report(message.payment),
    )


def _provider(peer: pb.LCPPeer, most_models: int) -> tuple[Provider, Sequence[str]]:
    """Return the peer with the models of its task templates."""
    manifest = peer.remote_manifest
    offers: list[tuple[TaskKind, str]] = []
    problems: dict[str, None] = {}
    names: set[str] = set()
    for template in manifest.supported_tasks:
        kind = _KINDS.get(template.kind)
        if kind is TaskKind.CHAT_COMPLETIONS:
            model = template.openai_chat_completions_v1.model
        elif kind is TaskKind.RESPONSES:
            model = template.openai_responses_v1.model
        else:
            continue
        if len(model) > MAX_MODEL_CHARS:
            problems[f"models with names above {MAX_MODEL_CHARS} characters are left out"] = None
        elif model not in names and len(names) >= most_models:
            problems[f"models after the first {most_models} are left out"] = None
            break
        elif model:
            names.add(model)
            offers.append((kind, model))
    return Provider(
        peer_id=peer.peer_id,
        address=peer.address,
        protocol_version=manifest.protocol_version,
        models=merge_kinds(offers),
        max_payload_bytes=manifest.max_payload_bytes,
        max_stream_bytes=manifest.max_stream_bytes,
        max_job_bytes=manifest.max_job_bytes,
        max_inflight_jobs=manifest.max_inflight_jobs,
    ), tuple(problems)
