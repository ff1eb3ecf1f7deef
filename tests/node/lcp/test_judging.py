import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.chunks import StreamError, StreamReader
from lcp_gateway.node.lcp.judging import JudgedInput, RequestRefused, SoldModel, judge_begin, judge_input, judge_request
from lcp_gateway.node.lcp.messages import (
    CHAT,
    RESPONSES,
    Error,
    JobMessage,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    StreamBegin,
    StreamChunk,
    StreamEnd,
)
from lcp_gateway.node.lcp.pricing import Surge, TokenPrice, price_msat
from lcp_gateway.node.lcp.table import read_message, write_params
from tests.support import lcp_vectors
from tests.support.cases import each_case

V02 = Protocol.V02
MIB = 2**20
SOLD = SoldModel(TokenPrice(1_000_000, 2_000_000), 200)
MODELS = {"model-b": SOLD, "model-a": SOLD}
NOT_JUDGED = {
    # Of the job's state, of the stream, of the backend.
    "manifest not exchanged",
    "no quote_request for job",
    "no call for job",
    "no input stream for job",
    "job not awaiting input",
    "quote_request mismatch for job",
    "chunk out of order",
    "stream sha256 mismatch",
    "quote_response exceeds remote max_payload_bytes",
    "quote exceeds remote max_payload_bytes",
    # The rule that is left out.
    "task does not match any supported_tasks template",
}


class Judge:
    """Judges what a recorded provider was asked, as it came."""

    def __init__(self, protocol):
        self.protocol = protocol
        self.requests, self.readers, self.bodies, self.judged = {}, {}, {}, {}
        self.refused, self.broken = {}, set()

    def came(self, message):
        try:
            self._judge(message)
        except RequestRefused as error:
            self.refused[message.job_id] = error
        except StreamError:
            self.broken.add(message.job_id)

    def _judge(self, message):
        job = message.job_id
        match message:
            case QuoteRequest():
                self.requests[job] = (message.task_kind, judge_request(self.protocol, message, MODELS))
            case StreamBegin() if job in self.requests:
                judge_begin(message, 4 * MIB)
                self.readers[job], self.bodies[job] = StreamReader(message, max_bytes=4 * MIB), b""
            case StreamChunk() if job in self.readers:
                self.bodies[job] += self.readers[job].chunk(message)
            case StreamEnd() if job in self.readers and self.readers[job].end(message):
                self.judged[job] = judge_input(*self.requests[job], SOLD, self.bodies[job])


@pytest.mark.parametrize("protocol", Protocol)
def test_each_recorded_request_is_judged_and_priced_as_the_daemon_did(protocol):
    priced = refused = 0
    for dialogue in lcp_vectors.dialogues(protocol)["dialogues"]:
        judge = Judge(protocol)
        for recorded in dialogue["messages"]:
            if "hex" not in recorded or "provider" not in {recorded["frm"], recorded["to"]}:
                continue
            _, message = read_message(recorded["type"], bytes.fromhex(recorded["hex"]))
            if recorded["to"] == "provider" and isinstance(message, JobMessage):
                judge.came(message)
            elif isinstance(message, QuoteResponse) and message.job_id in judge.judged:
                priced += 1
                prices = {
                    price_msat(
                        SOLD.price,
                        request_bytes=len(judge.bodies[message.job_id]),
                        output_tokens=judge.judged[message.job_id].output_tokens,
                        inflight=inflight,
                        surge=Surge(1, 500),
                    )
                    for inflight in range(12)
                }
                assert message.price_msat in prices, dialogue["name"]
            elif isinstance(message, Error) and message.job_id not in judge.broken and _judges(message):
                refused += 1
                mine = judge.refused[message.job_id]
                assert mine.message == message.message
                assert mine.code.number(protocol) == message.code
    assert priced > 20
    assert refused > 12


def _judges(error):
    return error.message not in NOT_JUDGED and "http " not in error.message and not error.message.startswith("backend")


def _judge(body, kind=CHAT):
    return judge_input(kind, "m", SOLD, body)


@pytest.mark.parametrize(
    ("body", "output_tokens", "stream"),
    [
        (b'{"model":"m","messages":[1]}', 200, False),
        (b'{"MODEL":"m","Messages":[1],"STREAM":true}', 200, True),
        (b'{"model":"x","model":"m","messages":[],"messages":[1],"stream":null}', 200, False),
        (b'{"model":"m","messages":[1],"max_tokens":7,"max_completion_tokens":null}', 7, False),
        (b'{"model":"m","messages":[1],"max_output_tokens":9,"max_tokens":8,"max_completion_tokens":200}', 200, False),
        (b'{"model":"m","messages":["\xff"],"x":"\\ud800"}', 200, False),
    ],
)
def test_an_input_is_read_as_the_daemon_reads_it(body, output_tokens, stream):
    assert _judge(body) == JudgedInput(output_tokens, stream)


def test_a_responses_input_is_charged_for_the_models_own_limit():
    body = b'{"model":"m","input":"hi","max_output_tokens":5,"stream":true}'

    assert _judge(body, RESPONSES) == JudgedInput(200, stream=True)


@each_case(
    "body, words",
    [
        (b"", "valid json"),
        (b"[]", "valid json"),
        (b'{"model":"m","messages":[NaN]}', "valid json"),
        (b"[" * 100_000, "valid json"),
        (b'{"model":7,"messages":[1]}', "valid json"),
        (b'{"messages":[1]}', "model is required"),
        (b'{"model":null,"messages":[1]}', "model is required"),
        (b'{"model":"n","messages":[1]}', "must match"),
        (b'{"model":"m"}', "messages is required"),
        (b'{"model":"m","messages":{}}', "valid json"),
        (b'{"model":"m","messages":[1],"stream":1}', "valid json"),
        (b'{"model":"m","messages":[1],"max_tokens":10.0}', "valid json"),
        (b'{"model":"m","messages":[1],"max_tokens":"10"}', "valid json"),
        (b'{"model":"m","messages":[1],"max_tokens":true}', "valid json"),
        (b'{"model":"m","messages":[1],"max_tokens":4294967296}', "valid json"),
        (b'{"model":"m","messages":[1],"max_tokens":5,"max_output_tokens":-1}', "valid json"),
        (b'{"model":"m","messages":[1],"max_completion_tokens":0,"max_tokens":5}', "must be > 0"),
        (b'{"model":"m","messages":[1],"max_tokens":201}', "exceeds provider max_output_tokens"),
    ],
)
def test_an_input_that_cannot_be_served_is_refused(body, words):
    with pytest.raises(RequestRefused, match=words) as caught:
        _judge(body)

    assert caught.value.code is ErrorCode.UNSUPPORTED_PARAMS


@pytest.mark.parametrize("body", [b'{"model":"m"}', b'{"model":"m","input":null}'])
def test_a_responses_request_without_input_is_refused(body):
    with pytest.raises(RequestRefused, match="input is required"):
        _judge(body, RESPONSES)


def test_a_node_that_sells_nothing_and_another_version_are_refused_by_name():
    request = QuoteRequest(
        protocol_version=7, job_id=bytes(32), msg_id=bytes(32), expiry=1, task_kind=CHAT, params=write_params("m")
    )

    with pytest.raises(RequestRefused, match="provider disabled"):
        judge_request(V02, request, {})
    with pytest.raises(RequestRefused, match="7") as caught:
        judge_request(V02, request, MODELS)
    assert caught.value.code is ErrorCode.UNSUPPORTED_VERSION


@given(st.binary(max_size=300) | st.text(alphabet='{}[]":,model 0123eE+-.nutrfals\\', max_size=80).map(str.encode))
def test_any_bytes_are_judged_or_refused(body):
    for kind in (CHAT, RESPONSES):
        try:
            judged = _judge(body, kind)
        except RequestRefused:
            continue
        assert judged.output_tokens > 0
