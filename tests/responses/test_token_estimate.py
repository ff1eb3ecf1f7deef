# ruff: noqa: RUF001 - letters of other scripts are meant
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.adapters.json_bytes import parse_json
from lcp_gateway.responses.token_estimate import estimate_input_tokens, text_tokens
from tests.support.operations import lines_executed

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tell what the weather is like in a town right now.",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
}

# Each with its exact counts in o200k_base and in cl100k_base.
NEAR = {
    "The old man walked slowly along the shore, thinking about everything that had happened during the summer. "
    "His daughter had left for the city, and nobody in the village knew when she would come back.": (39, 39),
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('nothing to average')\n"
    "    return sum(values) / len(values)\n": (34, 32),
    "2026-11-21T14:02:09.113Z INFO request id=4f2a91c0 status=200 path=/v1/responses took=0.482\n": (41, 41),
    json.dumps(WEATHER, separators=(",", ":")): (61, 59),
    "Der alte Mann ging langsam am Ufer entlang und dachte an alles, was im Sommer geschehen war.": (21, 25),
    "Le vieil homme marchait lentement le long du rivage en pensant à tout ce qui s'était passé.": (24, 24),
}
BETWEEN = {
    "Старик медленно шёл вдоль берега и думал обо всём, что случилось летом.": (23, 35),
    "老人沿着海岸慢慢地走着,想着夏天发生的一切。您能否向我解释一下偿还贷款有哪些可能性?": (32, 57),
    "会議は来週の木曜日に延期されましたが、誰にも知らされませんでした。": (21, 33),
    "회의는 다음 주 목요일로 연기되었지만 아무도 제때 통보받지 못했다.": (23, 37),
    "تم تأجيل الاجتماع إلى يوم الخميس المقبل ولم يخبر أحد بذلك.": (14, 41),
    "बैठक अगले गुरुवार तक स्थगित कर दी गई है और किसी को नहीं बताया गया।": (21, 71),
}


@pytest.mark.parametrize("text", NEAR)
def test_latin_script_code_and_json_come_out_within_a_third(text):
    newer, older = NEAR[text]
    assert 0.67 * min(newer, older) <= text_tokens(text) <= 1.34 * max(newer, older)


@pytest.mark.parametrize("text", BETWEEN)
def test_other_scripts_lie_between_the_vocabularies(text):
    newer, older = BETWEEN[text]
    assert newer <= text_tokens(text) <= older


def request(*content, role="user"):
    return {"input": [{"role": role, "content": list(content)}]}


EMPTY = estimate_input_tokens({"input": [{"role": "user", "content": []}]})
HELLO = text_tokens("hello you")


@pytest.mark.parametrize(
    "document",
    [
        {"input": "hello you"},
        {"input": [{"role": "user", "content": "hello you"}]},
        {"input": [{"type": "message", "role": "user", "content": "hello you"}]},
        request({"type": "input_text", "text": "hello you"}),
        {"messages": [{"role": "user", "content": "hello you"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello you"}]}]},
        {"input": [{"type": "function_call_output", "call_id": "c" * 90, "output": "hello you"}]},
        {"instructions": "hello you"},
    ],
)
def test_a_text_counts_the_same_however_it_is_put(document):
    assert estimate_input_tokens(document) == EMPTY + HELLO


def test_an_empty_request_has_next_to_nothing():
    assert 0 < estimate_input_tokens({}) < EMPTY < 10


def test_what_is_no_text_of_the_conversation_does_not_count():
    asked = {"input": "hello you"}
    more = {"model": "m" * 500, "metadata": {"a": "b" * 400}, "previous_response_id": "r" * 60}
    assert estimate_input_tokens({**asked, **more}) == estimate_input_tokens(asked)


@pytest.mark.parametrize(
    "image",
    [
        lambda detail: {"type": "input_image", "image_url": "data:" + "A" * 10**6, **detail},
        lambda detail: {"type": "image_url", "image_url": {"url": "A" * 10**6, **detail}},
        lambda detail: {"type": "computer_screenshot", "image_url": "A" * 10**6, **detail},
    ],
)
def test_an_image_costs_what_its_detail_says_however_large_its_text(image):
    low = estimate_input_tokens(request(image({"detail": "low"})))
    high = estimate_input_tokens(request(image({"detail": "high"})))
    assert 50 < low - EMPTY < 150
    assert 500 < high - EMPTY < 1_500
    assert estimate_input_tokens(request(image({}))) == high


def test_files_and_sound_count_by_their_size_and_not_as_text():
    size = 100_000
    for part in (
        {"type": "input_file", "filename": "a.pdf", "file_data": "A" * size},
        {"type": "file", "file": {"file_data": "A" * size}},
        {"type": "input_audio", "input_audio": {"data": "A" * size, "format": "mp3"}},
    ):
        assert 10 < estimate_input_tokens(request(part)) < size // 20
    by_id = {"type": "input_file", "file_id": "file-1"}
    assert estimate_input_tokens(request(by_id)) > 1_000


def test_tools_and_schemas_count():
    asked = {"input": "hello you"}
    tools = text_tokens(json.dumps([WEATHER], separators=(",", ":")))
    assert estimate_input_tokens({**asked, "tools": [WEATHER]}) == EMPTY + HELLO + tools
    schema = {"format": {"type": "json_schema", "schema": WEATHER["parameters"]}}
    assert estimate_input_tokens({**asked, "text": schema}) > EMPTY + HELLO + 20
    assert estimate_input_tokens({**asked, "response_format": schema}) > EMPTY + HELLO + 20


def test_the_turns_of_a_conversation_with_tools_count():
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"town":"Ulm"}'}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hello you"}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    asked = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"town":"Ulm"}'}}],
    }
    for item in (call, thought, said, asked):
        assert estimate_input_tokens({"input": [item]}) > EMPTY


# fmt: off
FIELDS = [
    "type", "content", "role", "input_image", "image_url", "detail", "text", "output", "tool_calls",
    "file_data", "input_audio", "data", "summary", "message", "arguments",
]
# fmt: on
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["input", "messages", "instructions", "tools", "text", "functions"]), JSON))
def test_whatever_stands_in_a_request_it_is_counted(document):
    assert estimate_input_tokens(document) > 0


@given(st.text(), st.text())
def test_more_text_is_never_fewer_tokens(one, other):
    assert text_tokens(one) <= text_tokens(one + other) <= text_tokens(one) + text_tokens(other)


@pytest.mark.parametrize(
    "body",
    [
        b'{"input":' + b"[" * 1_000 + b"]" * 1_000 + b"}",
        b'{"tools":' + b"[" * 1_000 + b"]" * 1_000 + b"}",
        b'{"input":"\\ud83d","tools":["\\ud83d"]}',
        b'{"input":[{"content":[{"text":"\\ud83d"}]},"\\ud83d"]}',
    ],
)
def test_what_only_just_is_json_is_counted(body):
    assert estimate_input_tokens(parse_json(body)) > 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"input":"' + b"hello you, " * 400_000 + b'"}',
        b'{"input":[' + b"1," * 2_000_000 + b"1]}",
        b'{"input":[' + b"{}," * 1_500_000 + b"1]}",
        b'{"messages":[{"content":[' + b"{}," * 1_500_000 + b"1]}]}",
    ],
)
def test_a_large_body_does_not_hold_the_gateway_up(body):
    document = parse_json(body)
    # Of a long list, the first ten thousand items are looked into.
    assert lines_executed(lambda: estimate_input_tokens(document)) < 500_000
    assert estimate_input_tokens(document) > len(body) // 10
