import pytest

from lcp_gateway.routing.model_registry import is_auto
from lcp_gateway.routing.preferences import UnknownPreference, Weights, parse_preferences


@pytest.mark.parametrize("name", ["auto", "auto:", "auto:fast", "auto:code+cheap"])
def test_auto_and_its_suffixes_leave_the_choice_to_the_gateway(name):
    assert is_auto(name)


@pytest.mark.parametrize("name", ["automatic", "Auto", "openrouter/auto", "m", ""])
def test_other_names_are_models(name):
    assert not is_auto(name)


def test_words_become_emphasis_capabilities_and_size():
    wish = parse_preferences("auto:code+cheap+large")
    assert wish.words == ("code", "cheap", "large")
    assert wish.capabilities == {"code"} and wish.size == "large" and not wish.only_free
    assert parse_preferences("auto:free").only_free
    assert parse_preferences("auto:fast,tools").capabilities == {"tools"}


def test_the_operators_own_capabilities_can_be_asked_for():
    assert parse_preferences("auto:medical", frozenset({"medical"})).capabilities == {"medical"}
    with pytest.raises(UnknownPreference) as caught:
        parse_preferences("auto:medical")
    assert "fast" in caught.value.known and "vision" in caught.value.known


@pytest.mark.parametrize(
    ("word", "name"), [("fast", "speed"), ("cheap", "price"), ("reliable", "delivery"), ("small", "fit")]
)
def test_a_word_makes_its_weight_heavier(word, name):
    plain = parse_preferences("auto").weights(Weights())
    preferred = parse_preferences(f"auto:{word}").weights(Weights())
    assert getattr(preferred, name) > getattr(plain, name) * 2
    total = preferred.availability + preferred.speed + preferred.delivery + preferred.price + preferred.fit
    assert total == pytest.approx(1)


def test_a_property_without_weight_counts_for_a_client_that_asks_for_it():
    weights = parse_preferences("auto:cheap").weights(Weights(1, 1, 1, 0, 1))
    assert weights.price > 0
