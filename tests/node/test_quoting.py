import time

import grpc
import pytest

from lcp_gateway._gen.lcpd import extensions_pb2
from lcp_gateway.lightning.bolt11 import decode
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.node.config import ModelConfig, NodeConfig, PeerConfig
from lcp_gateway.node.events import EventKind
from lcp_gateway.node.rpc.service import GET_PAYMENT
from tests.support.node_client import chat_task, raw_chat_task, raw_responses_task, responses_task, running_node


async def refused(awaitable, code, details=""):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.code() is code
    assert details in caught.value.details()
    return caught.value.details()


async def test_the_default_peers_offer_the_models_that_the_docs_use(client):
    peers = await client.list_peers()
    offered = [
        {task.openai_chat_completions_v1.model for task in peer.remote_manifest.supported_tasks} - {""}
        for peer in peers
    ]

    assert offered == [{"echo-1", "echo-mini"}, {"echo-1"}, {"echo-slow"}]
    assert all(len(peer.peer_id) == 66 and peer.peer_id.islower() for peer in peers)
    assert {peer.remote_manifest.protocol_version for peer in peers} == {2}
    assert peers[0].remote_manifest.max_stream_bytes == 4 * 1024 * 1024


async def test_peers_keep_their_ids_for_a_seed_and_change_them_with_it(make_node):
    async def ids(**settings):
        async with make_node(**settings) as client:
            return [peer.peer_id for peer in await client.list_peers()]

    assert await ids() == await ids()
    assert await ids(seed="other") != await ids()


@pytest.mark.parametrize(
    ("task", "kind"),
    [(chat_task(), "openai.chat_completions.v1"), (responses_task(), "openai.responses.v1")],
    ids=["chat", "responses"],
)
async def test_a_quote_holds_together(client, task, kind):
    before = int(time.time())
    terms = await client.quote(task)
    after = int(time.time())
    invoice = decode(terms.payment_request)
    spec = getattr(task, task.WhichOneof("spec"))

    assert (terms.protocol_version, len(terms.job_id), terms.quote_expiry.nanos) == (2, 32, 0)
    assert before + 299 <= terms.quote_expiry.seconds <= after + 301
    assert terms.terms_hash == terms_hash(
        protocol_version=2,
        job_id=terms.job_id,
        price_msat=terms.price_msat,
        quote_expiry=terms.quote_expiry.seconds,
        task_kind=kind,
        request=spec.request_json,
        model="echo-1",
    )
    assert invoice.description_hash == terms.terms_hash
    assert invoice.payee == client.peer_id()
    assert invoice.amount_msat == terms.price_msat
    assert invoice.network == "bcrt"
    assert invoice.expires_at <= terms.quote_expiry.seconds + 5


@pytest.mark.parametrize(
    ("task", "output_tokens"),
    [
        (chat_task(), 4096),
        (chat_task(max_tokens=10), 10),
        (chat_task(max_completion_tokens=10), 10),
        (chat_task(max_tokens=10, n=2), 10),
        (chat_task(say="x" * 4000, max_tokens=10), 10),
        (responses_task(), 4096),
        (responses_task(max_output_tokens=10), 10),
    ],
)
async def test_the_price_counts_the_prompt_and_the_whole_output_allowed(client, task, output_tokens):
    size = len(getattr(task, task.WhichOneof("spec")).request_json)
    terms = await client.quote(task)

    assert terms.price_msat == 2_000 + 2 * -(-size // 4) + 14 * output_tokens


async def test_two_peers_ask_different_prices_for_the_same_model(client):
    alice, bob = [(await client.quote(chat_task(), peer)).price_msat for peer in ("Alice", "Bob")]

    assert alice < bob


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (raw_chat_task(b"{", "a"), "valid json"),
        (raw_chat_task(b"[" * 60_000, "a"), "valid json"),
        (raw_chat_task(b'"text"', "a"), "valid json"),
        (raw_chat_task(b'{"messages":[1]}', "a"), "model is required"),
        (raw_chat_task(b'{"model":7,"messages":[1]}', "a"), "valid json"),
        (raw_chat_task(b'{"model":"b","messages":[1]}', "a"), "must match request_json.model"),
        (raw_chat_task(b'{"model":"a","messages":[1]}', ""), "params.model"),
        (raw_chat_task(b'{"model":"a"}', "a"), "messages is required"),
        (raw_chat_task(b'{"model":"a","messages":[]}', "a"), "messages is required"),
        (raw_responses_task(b'{"model":"a","input":null}', "a"), "input is required"),
        (None, "spec"),
    ],
)
async def test_a_malformed_task_is_refused_without_quoting_it_back(client, task, complaint):
    await refused(client.quote(task), grpc.StatusCode.INVALID_ARGUMENT, complaint)


async def test_no_error_repeats_the_prompt(client):
    body = b'{"model":"echo-1","messages":"SECRET WORDS" oops'
    details = await refused(client.quote(raw_chat_task(body, "echo-1")), grpc.StatusCode.INVALID_ARGUMENT)
    assert "SECRET" not in details


async def test_an_unknown_peer_is_not_found_and_ids_are_exact(client):
    await refused(
        client.quote(chat_task(), peer_id=client.peer_id() + " "), grpc.StatusCode.INVALID_ARGUMENT, "peer_id"
    )
    for peer_id in ("02" + "00" * 32, client.peer_id().upper()):
        await refused(client.quote(chat_task(), peer_id=peer_id), grpc.StatusCode.NOT_FOUND, "peer not found")


async def test_a_peer_that_is_not_ready_is_not_listed_and_gives_no_quote(client):
    client.node.peers.named("Alice").ready = False

    assert len(await client.list_peers()) == 2
    await refused(client.quote(chat_task()), grpc.StatusCode.FAILED_PRECONDITION, "not connected")


async def test_a_model_that_the_peer_does_not_offer_is_refused_by_the_peer(client):
    details = await refused(client.quote(chat_task(model="gpt-9")), grpc.StatusCode.FAILED_PRECONDITION)
    assert details == 'lcp_error code=2: unsupported model: "gpt-9" (supported: echo-1, echo-mini)'


async def test_a_model_only_for_chat_takes_no_responses(make_node):
    peer = PeerConfig("Solo", (ModelConfig("m", responses=False),))
    async with make_node(peers=(peer,)) as client:
        await client.quote(chat_task(model="m"), "Solo")
        await refused(
            client.quote(responses_task(model="m"), "Solo"), grpc.StatusCode.FAILED_PRECONDITION, "lcp_error code=2"
        )


async def test_a_request_larger_than_the_peer_takes_is_refused(make_node):
    peer = PeerConfig("Small", (ModelConfig("m"),), max_job_bytes=1000)
    async with make_node(peers=(peer,)) as client:
        await client.quote(chat_task(model="m"), "Small")
        await refused(
            client.quote(chat_task(model="m", say="x" * 1000), "Small"), grpc.StatusCode.RESOURCE_EXHAUSTED, "exceeds"
        )


async def test_a_message_over_four_mebibytes_does_not_even_arrive(client):
    await refused(client.quote(chat_task(say="x" * (4 << 20))), grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_a_quote_takes_the_peers_time(make_node):
    peer = PeerConfig("Far", (ModelConfig("m"),), quote_latency_s=0.2)
    async with make_node(peers=(peer,)) as client:
        start = time.perf_counter()
        await client.quote(chat_task(model="m"), "Far")
        assert time.perf_counter() - start >= 0.19


async def test_quotes_are_counted_and_cost_nothing(client):
    for _ in range(3):
        await client.quote(chat_task())

    assert client.node.events.counts == {EventKind.QUOTE: 3}
    assert client.node.wallet.balance_msat == client.node.config.wallet.balance_msat


async def test_the_oldest_quotes_are_forgotten_above_a_bound(client):
    client.node.jobs._max_jobs = 1
    first = await client.quote(chat_task())
    await client.quote(chat_task())

    assert len(client.node.jobs) == 1
    await refused(client.accept(first), grpc.StatusCode.NOT_FOUND, "job not found")


@pytest.mark.parametrize("version", [2, 3])
async def test_the_node_reports_its_protocol_version(make_node, version):
    from lcp_gateway._gen.lcpd import lcpd_pb2

    async with make_node(protocol_version=version) as client:
        info = await client.stub.GetLocalInfo(lcpd_pb2.GetLocalInfoRequest())

    assert len(info.node_id) == 66
    assert info.manifest.protocol_version == version
    # It stands for lcpd-grpcd, which reports no payments and has no call that looks one up.
    assert not info.HasField("software")


async def test_it_says_no_more_of_a_payment_than_lcpd_grpcd(client):
    terms = await client.quote(chat_task())
    answer = await client.accept(terms)
    assert not answer.result.HasField("payment")
    with pytest.raises(grpc.aio.AioRpcError, match="already paid") as caught:
        await client.accept(terms)
    assert "x-lcp-payment-bin" not in dict(caught.value.trailing_metadata())
    request = extensions_pb2.GetPaymentRequest(job_id=b"j" * 32, payment_hash=b"h" * 32)
    look_up = client.channel.unary_unary(GET_PAYMENT, extensions_pb2.GetPaymentRequest.SerializeToString)
    await refused(look_up(request), grpc.StatusCode.UNIMPLEMENTED)


async def test_a_unix_socket_serves_as_well(tmp_path):
    async with running_node(NodeConfig(listen=f"unix:{tmp_path}/node.sock")) as client:
        assert len(await client.list_peers()) == 3
