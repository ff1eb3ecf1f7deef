import json

import pytest

from lcp_gateway.responses.items import Item, ItemKind, metadata_text
from tests.support.cases import each_case

DOCUMENT = b'{ "id":"resp_1", "output":[ {"type":"message","n":1.0E0} ],"x":"\\u0061"}'


def item(*blocks, kind=ItemKind.RESPONSE, stream=False, **fields):
    return Item(kind=kind, id="resp_1", created_at=7, model="m", blocks=blocks, stream=stream, **fields)


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def test_a_response_is_shown_as_its_provider_sent_it():
    assert item(DOCUMENT).document() == DOCUMENT


def test_what_the_gateway_answers_for_is_put_in_and_nothing_else_changes():
    shown = item(DOCUMENT, changes={"id": "resp_bg_1", "background": True}).document()
    assert b'"output":[ {"type":"message","n":1.0E0} ],"x":"\\u0061"' in shown
    assert json.loads(shown) == {**json.loads(DOCUMENT), "id": "resp_bg_1", "background": True}


def test_a_streamed_response_is_shown_as_its_last_event_has_it():
    blocks = (
        event({"type": "response.created", "response": {"id": "r"}}),
        event({"type": "response.completed", "response": {"id": "r", "output": [1], "status": "completed"}}),
    )
    assert json.loads(item(*blocks, stream=True).document())["output"] == [1]


def test_a_chat_is_shown_with_its_metadata_even_where_it_has_none():
    document = b'{"id":"chatcmpl-1","choices":[]}'
    assert json.loads(item(document, kind=ItemKind.CHAT).document())["metadata"] == {}
    other = item(document, kind=ItemKind.CHAT, attached=metadata_text({"a": "b"})).with_metadata({"c": "d"})
    assert json.loads(other.document())["metadata"] == {"c": "d"}


def test_the_conversation_so_far_is_the_inputs_and_then_the_output():
    first = item(DOCUMENT, inputs=(b'"one"',))
    assert first.context() == (b'"one"', b'{"type":"message","n":1.0E0}')
    second = item(b'{"output":[]}', inputs=(*first.context(), b'"two"'))
    assert second.context() == second.inputs


def test_a_later_turn_holds_on_to_the_same_bytes_as_the_earlier_one():
    first = item(DOCUMENT, inputs=(b'"a long beginning"',))
    second = item(DOCUMENT, inputs=(*first.context(), b'"two"'))
    assert second.inputs[0] is first.inputs[0]
    assert list(second.segments()) == [*second.inputs, DOCUMENT]


def test_items_of_a_stream_that_only_its_events_tell_are_part_of_what_was_said():
    blocks = (
        event({"type": "response.output_item.done", "output_index": 0, "item": {"type": "function_call"}}),
        event({"type": "response.completed", "response": {"id": "r", "output": []}}),
    )
    assert item(*blocks, stream=True).context() == (b'{"type": "function_call"}',)


@each_case("kind", list(ItemKind))
@each_case("stream", [False, True])
@each_case("block", [b"", b"[]", b"nonsense", b"data: nonsense\n\n", b"{", b"\xff\xfe"])
def test_an_unreadable_result_is_a_value_error(kind, stream, block):
    with pytest.raises(ValueError, match=r"."):
        item(block, kind=kind, stream=stream, changes={"id": "x"}).document()


@pytest.mark.parametrize("output", [b'{"a":1}', b'"text"', b"7"])
def test_an_output_that_is_no_array_cannot_be_built_on(output):
    with pytest.raises(ValueError, match="array"):
        item(b'{"output":' + output + b"}").context()


def test_neither_prompt_nor_output_is_in_a_repr():
    shown = repr(item(b'{"output":"SECRET"}', inputs=(b'"SECRET"',), attached=metadata_text({"k": "SECRET"})))
    assert "SECRET" not in shown


@pytest.mark.parametrize(
    ("model", "metadata", "found"),
    [
        (None, {}, True),
        ("m", {}, True),
        ("n", {}, False),
        ("bought", {}, True),
        (None, {"a": "1"}, True),
        ("m", {"a": "1", "b": "2"}, True),
        (None, {"a": "2"}, False),
        (None, {"c": "1"}, False),
        ("n", {"a": "1"}, False),
    ],
)
def test_a_filter_means_those_that_have_all_of_it(model, metadata, found):
    chat = Item(
        kind=ItemKind.CHAT,
        id="c",
        created_at=0,
        model="m",
        bought_model="bought",
        blocks=(),
        stream=False,
        attached=metadata_text({"a": "1", "b": "2"}),
    )
    assert chat.matches(model=model, metadata=metadata) is found
