import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.node.lcp.messages import (
    Cancel,
    Error,
    Manifest,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    Result,
    Status,
    StreamBegin,
    StreamChunk,
    StreamEnd,
    StreamKind,
    TaskTemplate,
)
from lcp_gateway.node.lcp.table import (
    MESSAGE_TYPES,
    TEMPLATES,
    chunk_msg_id,
    read_message,
    read_params,
    write_message,
    write_params,
)
from lcp_gateway.node.lcp.tlv import BYTES_LIST, TEXT_LIST, WireError
from tests.support import lcp_vectors
from tests.support.cases import each_case

V02, V03 = Protocol.V02, Protocol.V03


def _cases(part):
    return [
        pytest.param(protocol, vector, id=f"0.{protocol.value} {vector['name']}")
        for protocol in Protocol
        for vector in lcp_vectors.encodings(protocol)[part]
    ]


def _read(protocol, vector):
    payload = bytes.fromhex(vector["hex"])
    match vector["type"]:
        case "openai_params":
            return read_params(payload)
        case "bytes_list":
            return BYTES_LIST.read(payload)
        case "string_list":
            return TEXT_LIST.read(payload)
        case "task_template" | "method_descriptor":
            return TEMPLATES[protocol].read(payload)
    version, message = read_message(vector["num"], payload)
    assert version is protocol
    return message


def _write(protocol, vector, made):
    match vector["type"]:
        case "openai_params":
            return write_params(made[0])
        case "bytes_list":
            return BYTES_LIST.write(made)
        case "string_list":
            return TEXT_LIST.write(made)
        case "task_template" | "method_descriptor":
            return TEMPLATES[protocol].write(made)
    number, payload = write_message(protocol, made)
    assert number == vector["num"]
    return payload


def _as_told(vector, made):
    fields = vector["fields"]
    match vector["type"]:
        case "openai_params":
            return made == (fields["model"], tuple(fields.get("unknown_types", ())))
        case "bytes_list":
            items = fields.get("items", [fields.get("all")] * fields.get("count", 0))
            return made == tuple(bytes.fromhex(item) for item in items)
        case "string_list":
            return list(made) == fields["items"]
    told = lcp_vectors.attributes(vector["type"], fields)
    told = {name: value for name, value in told.items() if value is not None and value != ()}
    if "tasks" in told:
        told["tasks"] = tuple({k: v for k, v in one.items() if v is not None and v != ()} for one in told["tasks"])
    return lcp_vectors.held(made) == told


@each_case("protocol, vector", _cases("valid"))
def test_what_the_daemon_encodes_is_read_and_written_again_byte_for_byte(protocol, vector):
    made = _read(protocol, vector)

    assert _as_told(vector, made)
    assert _write(protocol, vector, made).hex() == vector["hex"]


@pytest.mark.parametrize(("protocol", "vector"), _cases("lenient"))
def test_what_the_daemon_tolerates_is_read(protocol, vector):
    made = _read(protocol, vector)

    assert _as_told(vector, made)
    if "reencodes_to" in vector:
        assert _write(protocol, vector, made).hex() == vector["reencodes_to"]
    else:
        with pytest.raises(WireError, match="protocol_version"):
            _write(protocol, vector, made)


@each_case("protocol, vector", _cases("invalid"))
def test_what_the_daemon_refuses_is_refused_with_words(protocol, vector):
    with pytest.raises(WireError, match=r"\w+ .*\w") as caught:
        _read(protocol, vector)

    assert str(caught.value).isprintable()


@pytest.mark.parametrize("protocol", Protocol)
def test_each_recorded_message_is_read_and_written_again_byte_for_byte(protocol):
    count = 0
    for name, recorded in lcp_vectors.messages(protocol):
        read = read_message(recorded["type"], bytes.fromhex(recorded["hex"]))
        assert read is not None, name
        assert MESSAGE_TYPES[recorded["type"]][1] == recorded["name"]
        if read[1].protocol_version:
            assert write_message(*read) == (recorded["type"], bytes.fromhex(recorded["hex"])), name
        count += 1
    assert count > 600


@pytest.mark.parametrize(
    "vector",
    lcp_vectors.encodings(V02)["chunk_msg_ids"],
    ids=lambda vector: f"{vector['stream_id'][:4]} {vector['seq']}",
)
def test_a_chunks_id_follows_from_stream_and_number(vector):
    assert chunk_msg_id(bytes.fromhex(vector["stream_id"]), vector["seq"]).hex() == vector["msg_id"]


def test_a_type_of_another_protocol_is_not_read():
    assert read_message(42082, b"") is None
    assert read_message(42099, b"\x00") is None


ENVELOPE = {"protocol_version": 2, "job_id": bytes(32), "msg_id": bytes(32), "expiry": 1}


@each_case(
    "message, words",
    [
        (QuoteRequest(**ENVELOPE, task_kind="k", params_content_type="t"), "protocol 0.2 has no params_content_type"),
        (QuoteRequest(**ENVELOPE, task_kind=""), r"task_kind \(type 20\): empty"),
        (QuoteRequest(**ENVELOPE, task_kind="\ud800"), "not valid Unicode"),
        (QuoteRequest(**{**ENVELOPE, "job_id": b"short"}, task_kind="k"), r"job_id \(type 2\): 5 bytes in place of 32"),
        (QuoteRequest(**{**ENVELOPE, "expiry": 2**64}, task_kind="k"), "does not fit 64 bits"),
        (QuoteRequest(**{**ENVELOPE, "protocol_version": 0}, task_kind="k"), "protocol_version"),
        (QuoteRequest(**{**ENVELOPE, "protocol_version": 2**16}, task_kind="k"), "does not fit 16 bits"),
        (QuoteRequest(**ENVELOPE, task_kind="k", params=bytes(65_536)), "at most 65535"),
        (Result(**ENVELOPE, status=Status.OK), "101 to 105 are missing"),
        (Result(**ENVELOPE, status=Status.FAILED, total_len=1), "come together"),
        (StreamChunk(**ENVELOPE, stream_id=bytes(32), seq=0, data=b""), "msg_id"),
        (Error(**ENVELOPE, code=0), r"code \(type 80\): empty or zero"),
    ],
)
def test_a_message_without_valid_bytes_is_not_written(message, words):
    with pytest.raises(WireError, match=words):
        write_message(V02, message)


IDS = st.binary(min_size=32, max_size=32)
U16 = st.integers(1, 2**16 - 1)
U64 = st.integers(0, 2**64 - 1)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
JOB = {"protocol_version": U16, "job_id": IDS, "msg_id": IDS, "expiry": U64}


def _maybe(strategy):
    return st.none() | strategy


def _made_of(kind, **fields):
    return st.builds(kind, **JOB, **fields)


def _with_ids(chunk):
    changed = {
        name: getattr(chunk, name) for name in ("protocol_version", "job_id", "expiry", "stream_id", "seq", "data")
    }
    return StreamChunk(**changed, msg_id=chunk_msg_id(chunk.stream_id, chunk.seq))


def _templates(protocol):
    if protocol is V02:
        return st.builds(TaskTemplate, task_kind=WORDS, params=_maybe(st.binary(max_size=300)))
    types = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3).map(tuple)
    return st.builds(
        TaskTemplate,
        task_kind=WORDS,
        params=st.none(),
        request_content_types=types,
        response_content_types=types,
        docs_uri=_maybe(WORDS),
        docs_sha256=_maybe(IDS),
        policy_notice=_maybe(WORDS),
    )


def _messages(protocol):
    later = protocol is V03
    stream = {"stream_id": IDS, "sha256": IDS, "total_len": U64, "content_type": WORDS, "content_encoding": WORDS}
    ended = {"status": st.sampled_from([Status.FAILED, Status.CANCELLED]), "message": _maybe(st.just("") | WORDS)}
    kinds = [
        st.builds(
            Manifest,
            protocol_version=U16,
            max_payload_bytes=st.integers(1, 2**32 - 1),
            max_stream_bytes=st.integers(1, 2**64 - 1),
            max_job_bytes=st.integers(1, 2**64 - 1),
            tasks=st.lists(_templates(protocol), max_size=4).map(tuple),
            max_inflight_jobs=_maybe(st.integers(0, 2**16 - 1)),
        ),
        _made_of(
            QuoteRequest,
            task_kind=WORDS,
            params=_maybe(st.binary(max_size=600)),
            params_content_type=_maybe(WORDS) if later else st.none(),
        ),
        _made_of(QuoteResponse, price_msat=U64, quote_expiry=U64, terms_hash=IDS, payment_request=WORDS),
        _made_of(Result, status=st.just(Status.OK), message=st.none(), **stream),
        _made_of(Result, **ended),
        _made_of(
            StreamBegin,
            stream_id=IDS,
            stream_kind=st.sampled_from(StreamKind),
            total_len=_maybe(U64),
            sha256=_maybe(IDS),
            content_type=WORDS,
            content_encoding=WORDS,
        ),
        _made_of(StreamChunk, stream_id=IDS, seq=st.integers(0, 2**32 - 1), data=st.binary(max_size=600)).map(
            _with_ids
        ),
        _made_of(StreamEnd, stream_id=IDS, total_len=U64, sha256=IDS),
        _made_of(Cancel, reason=_maybe(st.just("") | WORDS)),
        _made_of(Error, code=U16, message=_maybe(st.just("") | WORDS)),
    ]
    if later:
        promise = {"response_content_type": WORDS, "response_content_encoding": WORDS}
        kinds += [
            _made_of(Result, **ended, **stream),
            _made_of(QuoteResponse, price_msat=U64, quote_expiry=U64, terms_hash=IDS, payment_request=WORDS, **promise),
        ]
    return st.one_of(kinds)


@given(st.sampled_from(Protocol).flatmap(lambda protocol: st.tuples(st.just(protocol), _messages(protocol))))
def test_what_is_written_is_read_again(pair):
    protocol, message = pair

    assert read_message(*write_message(protocol, message)) == (protocol, message)


@given(st.sampled_from(sorted(MESSAGE_TYPES)), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(number, payload):
    with contextlib.suppress(WireError):
        assert read_message(number, payload) is not None
