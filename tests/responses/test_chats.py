from openai.types.chat.chat_completion_store_message import ChatCompletionStoreMessage

from lcp_gateway.responses.chats import message_object

PARTS = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "http://i.invalid/"}}]


def listed(*messages):
    return [message_object(message, "chatcmpl-1", n) for n, message in enumerate(messages)]


def test_a_message_is_listed_with_an_id_and_its_place():
    assert listed({"role": "system", "content": "a"}, {"role": "user", "name": "Eve", "content": "b"}) == [
        {"role": "system", "content": "a", "id": "chatcmpl-1-0", "name": None, "content_parts": None},
        {"role": "user", "name": "Eve", "content": "b", "id": "chatcmpl-1-1", "content_parts": None},
    ]  # fmt: skip


def test_parts_stand_beside_the_content():
    (found,) = listed({"role": "user", "content": PARTS})
    assert (found["content"], found["content_parts"]) == (None, PARTS)


def test_an_id_of_its_own_stays():
    assert [each["id"] for each in listed({"id": "mine"}, {"id": ""}, {"id": 5})] == [
        "mine", "chatcmpl-1-1", "chatcmpl-1-2",
    ]  # fmt: skip


def test_a_call_and_its_output_are_listed_whole():
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    found = listed({"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": "c", "content": "1"})
    assert (found[0]["tool_calls"], found[0]["content"], found[1]["tool_call_id"]) == (calls, None, "c")


def test_an_item_that_is_no_message_is_listed_too():
    assert listed("secret", None) == [
        {"id": "chatcmpl-1-0", "role": None, "content": None},
        {"id": "chatcmpl-1-1", "role": None, "content": None},
    ]


def test_openais_types_take_a_listed_message():
    found = message_object({"role": "assistant", "content": PARTS}, "c", 0)
    message = ChatCompletionStoreMessage.model_validate(found)
    assert (message.id, len(message.content_parts)) == ("c-0", 2)
