import pytest

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.requirements import requirements_of

CHAT, RESPONSES = TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}


def chat(**fields):
    return requirements_of(CHAT, {"messages": [], **fields}, 400)


def test_a_plain_prompt_requires_only_context():
    needs = chat(messages=[{"role": "user", "content": "hi"}])
    assert needs.capabilities == frozenset() and needs.tokens == 100


@pytest.mark.parametrize(
    ("fields", "capability"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"messages": [{"content": [{"type": "image_url"}]}]}, "vision"),
        ({"messages": [{"content": [{"type": "input_audio"}]}]}, "audio"),
    ],
)
def test_the_features_a_chat_uses_are_required(fields, capability):
    assert chat(**fields).capabilities == {capability}


@pytest.mark.parametrize(
    ("fields", "capability"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"text": {"format": {"type": "json_schema"}}}, "json_schema"),
        ({"input": [{"content": [{"type": "input_image"}]}]}, "vision"),
        ({"input": [{"type": "input_image"}]}, "vision"),
    ],
)
def test_the_features_a_response_uses_are_required(fields, capability):
    assert requirements_of(RESPONSES, fields, 40).capabilities == {capability}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": [{}], "tool_choice": "none"},
        {"response_format": {"type": "json_object"}},
        {"messages": "text"},
        {"messages": [1, None, {"content": [1, None]}, {"content": 3}]},
        {"response_format": "json_schema"},
        {"tools": "f"},
    ],
)
def test_unused_or_malformed_features_are_not_required(fields):
    assert chat(**fields).capabilities == frozenset()


def test_an_image_counts_as_an_image_and_not_as_the_text_it_is_encoded_in():
    document = {"messages": [{"content": [{"type": "text", "text": "x"}, IMAGE]}]}
    assert 1_000 <= requirements_of(CHAT, document, 400_100).tokens < 1_100


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_the_allowed_output_needs_context_too(name):
    assert chat(**{name: 900}).tokens == 1_000
    assert chat(**{name: True}).tokens == chat(**{name: "900"}).tokens == 100
