"""Metadata of a model: from the operator's configuration first, then providers' lists, then the model's name."""

import dataclasses

import pytest

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.catalog import ModelFacts
from lcp_gateway.routing.model_registry import AUTO, ModelCard, ModelRegistry, Traits, kinds_for
from tests.support.cases import each_case

CHAT = TaskKind.CHAT_COMPLETIONS
RESPONSES = TaskKind.RESPONSES
COMPLETIONS = TaskKind.COMPLETIONS
EMBEDDINGS = TaskKind.EMBEDDINGS
ALL = frozenset(TaskKind)


def traits(model="some-model", facts=(), **card):
    return ModelRegistry({model: ModelCard(**card)} if card else {}).traits(model, facts)


def test_an_alias_is_resolved_and_any_other_name_stays():
    registry = ModelRegistry(
        {"qwen2.5-coder:14b": ModelCard(aliases=("gpt-4o-mini", "coder")), AUTO: ModelCard(aliases=("default",))}
    )
    assert registry.resolve("gpt-4o-mini") == "qwen2.5-coder:14b"
    assert registry.resolve("default") == AUTO
    assert registry.resolve("qwen2.5-coder:14b") == "qwen2.5-coder:14b"
    assert registry.resolve("never-heard-of") == "never-heard-of"


def test_a_described_model_is_never_an_alias_of_another():
    registry = ModelRegistry({"a": ModelCard(aliases=("b",)), "b": ModelCard()})
    assert registry.resolve("b") == "b"


def test_cards_go_by_real_names_and_auto_is_no_model():
    card = ModelCard(aliases=("nick",))
    registry = ModelRegistry({"b": card, AUTO: ModelCard(aliases=("x",)), "a": ModelCard()})
    assert registry.names() == ("b", "a")
    assert registry.card("b") is card
    assert registry.card("nick") is None


def test_later_changes_of_what_was_given_change_nothing():
    cards = {"a": ModelCard()}
    registry = ModelRegistry(cards)
    cards["b"] = ModelCard()
    assert registry.names() == ("a",)


def test_without_a_card_the_name_and_the_list_speak():
    found = traits("Qwen2.5-Coder-14B", [ModelFacts(context_length=32_768, capabilities=frozenset({"tools"}))])
    assert found == Traits(
        type="",
        context_length=32_768,
        dimensions=0,
        params_b=14,
        capabilities=frozenset({"code", "tools"}),
        complete=False,
        vendor="qwen",
        owned_by="",
    )


def test_the_operators_word_beats_list_and_name():
    found = traits(
        "nomic-embed-text-7b",
        [ModelFacts(context_length=100, capabilities=frozenset({"vision"}))],
        type="chat",
        context_length=8_192,
        dimensions=768,
        params_b=3.5,
        capabilities=("tools",),
        owned_by="me",
    )
    assert (found.type, found.context_length, found.dimensions) == ("chat", 8_192, 768)
    assert (found.params_b, found.owned_by, found.vendor) == (3.5, "me", "nomic")
    assert (found.capabilities, found.complete) == (frozenset({"tools"}), True)


def test_a_card_that_says_nothing_of_something_leaves_it_to_the_others():
    found = traits("llava:13b", [ModelFacts(context_length=4_096)], owned_by="me", aliases=("eyes",))
    assert (found.params_b, found.context_length, found.complete) == (13, 4_096, False)
    assert found.capabilities == {"vision"}


def test_a_context_is_as_long_as_the_shortest_that_is_known():
    facts = [ModelFacts(context_length=length) for length in (0, 32_768, 8_192, 0)]
    assert traits(facts=facts).context_length == 8_192
    assert traits(facts=[ModelFacts()]).context_length == 0


def test_facts_may_be_read_once_only():
    facts = iter([ModelFacts(context_length=5, capabilities=frozenset({"audio"}))])
    found = traits(facts=facts)
    assert (found.context_length, found.capabilities) == (5, frozenset({"audio"}))


@each_case(
    "model, card, capability, expected",
    [
        ("llava", {}, "vision", True),
        ("llava", {}, "tools", None),
        ("llava", {"capabilities": ()}, "vision", False),
        ("llava", {"capabilities": ("tools",)}, "tools", True),
        ("llava", {"capabilities": ("tools",)}, "json_schema", False),
        ("bge-m3", {}, "vision", False),
        ("bge-m3", {}, "tools", False),
        ("bge-m3", {}, "json_schema", False),
        ("bge-m3", {}, "audio", False),
        ("bge-m3", {}, "code", None),
        ("bge-m3", {"type": "chat"}, "tools", None),
        ("some-model", {"type": "embedding"}, "tools", False),
        ("some-model", {"type": "embedding", "capabilities": ("vision",)}, "vision", True),
    ],
)
def test_a_capability_is_there_or_missing_or_not_known(model, card, capability, expected):
    assert traits(model, **card).has(capability) is expected


@pytest.mark.parametrize(
    ("card", "endpoints", "expected"),
    [
        ({"type": "embedding"}, ALL, {EMBEDDINGS}),
        ({"type": "embedding"}, {CHAT}, set()),
        ({"type": "completion"}, ALL, {COMPLETIONS}),
        ({"type": "completion"}, {CHAT, EMBEDDINGS}, set()),
        ({"type": "chat"}, ALL, {CHAT, RESPONSES, COMPLETIONS}),
        ({"type": "chat"}, {EMBEDDINGS}, set()),
        ({}, ALL, {CHAT, RESPONSES, COMPLETIONS}),
        ({}, {CHAT, EMBEDDINGS}, {CHAT}),
        ({}, {EMBEDDINGS}, {EMBEDDINGS}),
        ({}, set(), set()),
    ],
)
def test_a_model_takes_the_tasks_of_its_type_that_the_node_serves(card, endpoints, expected):
    assert kinds_for(traits(**card), frozenset(endpoints)) == expected


def test_a_card_says_what_the_configuration_can_say():
    from lcp_gateway.config.models import ModelConfig

    # Customers' charges come from the tariff, and local models are run beside the gateway; routing uses neither.
    of_others = {"markup_percent", "markup_msat", "path", "hf_repo", "llama_server_args"}
    said = dataclasses.asdict(ModelConfig())
    assert of_others <= said.keys()
    assert dataclasses.asdict(ModelCard()) == {name: value for name, value in said.items() if name not in of_others}
