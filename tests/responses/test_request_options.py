import pytest

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.responses.request_options import NO_OPTIONS, InvalidOption, RequestOptions, read_metadata, read_options
from tests.support.cases import each_case

RESPONSE, CHAT = TaskKind.RESPONSES, TaskKind.CHAT_COMPLETIONS


def refused(kind, document):
    with pytest.raises(InvalidOption) as caught:
        read_options(kind, document)
    return caught.value.param, caught.value.code


@pytest.mark.parametrize(
    ("document", "store", "explicitly"),
    [({}, True, False), ({"store": None}, True, False), ({"store": True}, True, True), ({"store": False}, False, False)],
)  # fmt: skip
def test_a_response_is_stored_unless_it_says_no(document, store, explicitly):
    options = read_options(RESPONSE, document)
    assert (options.store, options.stores_explicitly) == (store, explicitly)


@pytest.mark.parametrize("document", [{}, {"store": None}, {"store": False}])
def test_a_chat_completion_is_not_stored_unless_it_says_yes(document):
    assert read_options(CHAT, {**document, "metadata": {"a": 1}}) is NO_OPTIONS


def test_a_chat_completion_that_says_yes_is_stored_with_its_metadata():
    options = read_options(CHAT, {"store": True, "metadata": {"run": "7"}})
    assert options == RequestOptions(store=True, stores_explicitly=True, metadata={"run": "7"})


@pytest.mark.parametrize("kind", [TaskKind.COMPLETIONS, TaskKind.EMBEDDINGS])
def test_other_routes_have_no_options(kind):
    document = {"store": "perhaps", "background": True, "previous_response_id": 7}
    assert read_options(kind, document) is NO_OPTIONS


def test_an_earlier_response_or_the_background_asks_for_storing_explicitly():
    chained = read_options(RESPONSE, {"previous_response_id": "resp_1"})
    assert (chained.previous_response_id, chained.stores_explicitly) == ("resp_1", True)
    later = read_options(RESPONSE, {"background": True})
    assert (later.background, later.store, later.stores_explicitly) == (True, True, True)


def test_a_chained_response_may_itself_not_be_stored():
    options = read_options(RESPONSE, {"previous_response_id": "resp_1", "store": False})
    assert not options.store and options.previous_response_id == "resp_1"


@pytest.mark.parametrize("background", [None, False])
def test_a_response_that_is_not_for_the_background_need_not_be_stored(background):
    assert not read_options(RESPONSE, {"background": background, "store": False}).background


@pytest.mark.parametrize(
    ("kind", "document", "expected"),
    [
        (RESPONSE, {"store": "true"}, ("store", "invalid_type")),
        (RESPONSE, {"store": 0}, ("store", "invalid_type")),
        (CHAT, {"store": []}, ("store", "invalid_type")),
        (RESPONSE, {"background": 1}, ("background", "invalid_type")),
        (RESPONSE, {"background": True, "store": False}, ("background", "invalid_value")),
        (RESPONSE, {"previous_response_id": 7}, ("previous_response_id", "invalid_type")),
        (RESPONSE, {"previous_response_id": ""}, ("previous_response_id", "invalid_value")),
        (RESPONSE, {"previous_response_id": "r" * 257}, ("previous_response_id", "invalid_value")),
        (RESPONSE, {"previous_response_id": "r", "conversation": "conv_1"}, ("previous_response_id", "invalid_value")),
        (CHAT, {"store": True, "metadata": []}, ("metadata", "invalid_type")),
    ],
)
def test_an_invalid_value_is_refused_and_its_field_named(kind, document, expected):
    assert refused(kind, document) == expected


@each_case("conversation", ["conv_1", {"id": "conv_1"}, "", 5])
@each_case("more", [{}, {"store": False}, {"background": True}])
def test_a_conversation_is_refused_since_no_provider_keeps_one(conversation, more):
    """Regression: the request was paid for and its conversation ignored."""
    with pytest.raises(InvalidOption) as caught:
        read_options(RESPONSE, {"conversation": conversation, **more})
    assert (caught.value.param, caught.value.code) == ("conversation", "unsupported_parameter")
    assert "previous_response_id" in caught.value.message


def test_no_conversation_is_none():
    assert read_options(RESPONSE, {"conversation": None}).store


@pytest.mark.parametrize("document", [{}, {"metadata": None}, {"metadata": {}}])
def test_no_metadata_is_no_pairs(document):
    assert read_metadata(document) == {}


def test_metadata_may_be_as_large_as_openai_lets_it_be():
    pairs = {f"{place:064d}": "v" * 512 for place in range(16)}
    assert read_metadata({"metadata": pairs}) == pairs


@pytest.mark.parametrize(
    "metadata",
    ["text", 7, [["a", "b"]], {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"k" * 65: "v"}, {"k": "v" * 513},
     {str(place): "" for place in range(17)}],
)  # fmt: skip
def test_metadata_that_openai_would_not_take_is_refused(metadata):
    with pytest.raises(InvalidOption) as caught:
        read_metadata({"metadata": metadata})
    assert caught.value.param == "metadata"


def test_metadata_is_in_no_repr():
    assert "secret" not in repr(RequestOptions(metadata={"secret": "secret"}))
