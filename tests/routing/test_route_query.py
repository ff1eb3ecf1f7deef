import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.route_query import (
    MAX_RESULTS,
    BadQuery,
    RouteQuery,
    endpoints_of,
    explain_no_match,
    rank_models,
    read_query,
)
from tests.routing.offering import Bench, provider
from tests.support.cases import each_case


def market() -> Bench:
    return Bench(
        provider("a", "Qwen2.5-Coder-14B", "llama3.1:8b"),
        provider("node:Lab", "llama3.1:70b", "llama3.1:8b", owned_by="Acme"),
        provider("node:e", "nomic-embed-text", kind=TaskKind.EMBEDDINGS),
        provider("b", "mystery"),
        cards={"mystery": {"capabilities": ("singing",), "owned_by": "Maker"}},
    )


def found(bench=None, **fields):
    """Return the documents for a query."""
    bench = bench or market()
    return rank_models(read_query(fields), bench.offers, bench.auto)


def names(bench=None, **fields):
    return [one["model"] for one in found(bench, **fields)]


def reasons(bench=None, **fields):
    """Return the reasons why no model was found."""
    bench = bench or market()
    assert not found(bench, **fields)
    return explain_no_match(read_query(fields), bench.offers)


# -- reading --------------------------------------------------------------------------------------


def test_an_empty_query_restricts_nothing():
    assert read_query({}) == RouteQuery()


def test_every_field_may_be_null():
    fields = ("providers", "min_params_b", "max_params_b", "capabilities", "prefer_size", "limit")
    assert read_query(dict.fromkeys(fields)) == RouteQuery()


def test_words_are_compared_in_lower_case():
    query = read_query({"providers": ["Qwen", "META"], "capabilities": ["Code"]})
    assert query.providers == {"qwen", "meta"} and query.capabilities == {"code"}


@each_case(
    "fields, param, code",
    [
        ({"modell": 1}, "modell", "unknown_parameter"),
        ({"": 1}, "", "unknown_parameter"),
        ({"x" * 500: 1}, "x" * 64, "unknown_parameter"),
        ({"providers": "qwen"}, "providers", "invalid_type"),
        ({"providers": [1]}, "providers", "invalid_type"),
        ({"providers": {"a": 1}}, "providers", "invalid_type"),
        ({"capabilities": [None]}, "capabilities", "invalid_type"),
        ({"capabilities": ["x"] * 51}, "capabilities", "invalid_value"),
        ({"min_params_b": "7"}, "min_params_b", "invalid_type"),
        ({"min_params_b": True}, "min_params_b", "invalid_type"),
        ({"max_params_b": []}, "max_params_b", "invalid_type"),
        ({"max_params_b": -1}, "max_params_b", "invalid_value"),
        ({"max_params_b": float("inf")}, "max_params_b", "invalid_value"),
        ({"max_params_b": float("nan")}, "max_params_b", "invalid_value"),
        ({"min_params_b": 8, "max_params_b": 7}, "min_params_b", "invalid_value"),
        ({"prefer_size": "huge"}, "prefer_size", "invalid_value"),
        ({"prefer_size": 5}, "prefer_size", "invalid_value"),
        ({"prefer_size": {}}, "prefer_size", "invalid_value"),
        ({"limit": 1.5}, "limit", "invalid_type"),
        ({"limit": True}, "limit", "invalid_type"),
        ({"limit": "5"}, "limit", "invalid_type"),
        ({"limit": 0}, "limit", "invalid_value"),
        ({"limit": MAX_RESULTS + 1}, "limit", "invalid_value"),
    ],
)
def test_an_invalid_field_is_named(fields, param, code):
    with pytest.raises(BadQuery) as caught:
        read_query(fields)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert len(caught.value.message) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(["providers", "min_params_b", "max_params_b", "capabilities", "prefer_size", "limit", "x"])
MARKET = market()


@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_query_is_answered_or_refused_with_its_field(fields):
    named = None
    try:
        query = read_query(fields)
    except BadQuery as error:
        named = error.param
    else:
        assert len(rank_models(query, MARKET.offers, MARKET.auto)) <= query.limit
    assert named is None or named in fields


# -- answering ------------------------------------------------------------------------------------


def test_every_model_is_named_once_at_its_best_provider():
    bench = market()
    for _ in range(3):
        bench.measured("a", "llama3.1:8b", 20)
        bench.measured("node:Lab", "llama3.1:8b", 1)
    documents = found(bench, limit=100)
    assert sorted(one["model"] for one in documents) == ["Qwen2.5-Coder-14B", "llama3.1:70b", "llama3.1:8b", "mystery"]
    (small,) = [one for one in documents if one["model"] == "llama3.1:8b"]
    assert (small["provider"], small["source"]) == ("node:Lab", "node")
    assert small["providers"] == ["node:Lab", "a"]
    scores = [one["score"] for one in documents]
    assert scores == sorted(scores, reverse=True)


def test_no_more_come_than_were_asked_for():
    assert len(names(limit=2)) == 2
    assert len(names(Bench(provider("a", *(f"m{n}" for n in range(9)))))) == 5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qwen"], {"Qwen2.5-Coder-14B"}),
        (["ACME"], {"llama3.1:70b", "llama3.1:8b"}),
        (["lab"], {"llama3.1:70b", "llama3.1:8b"}),
        (["node:lab"], {"llama3.1:70b", "llama3.1:8b"}),
        (["a"], {"Qwen2.5-Coder-14B", "llama3.1:8b"}),
        (["maker"], {"mystery"}),
        (["lcp"], {"Qwen2.5-Coder-14B", "llama3.1:8b", "mystery"}),
        (["node"], {"llama3.1:70b", "llama3.1:8b"}),
        (["qwen", "maker"], {"Qwen2.5-Coder-14B", "mystery"}),
        (["missing"], set()),
        ([""], set()),
    ],
)
def test_providers_are_makers_owners_names_or_ids(words, expected):
    assert set(names(providers=words)) == expected


def test_where_a_provider_is_asked_for_only_it_is_named():
    (one,) = [one for one in found(providers=["lab"]) if one["model"] == "llama3.1:8b"]
    assert one["providers"] == ["node:Lab"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"min_params_b": 14}, {"Qwen2.5-Coder-14B", "llama3.1:70b"}),
        ({"max_params_b": 14}, {"Qwen2.5-Coder-14B", "llama3.1:8b"}),
        ({"min_params_b": 8, "max_params_b": 8.0}, {"llama3.1:8b"}),
        ({"min_params_b": 0}, {"Qwen2.5-Coder-14B", "llama3.1:8b", "llama3.1:70b"}),
        ({"max_params_b": 0}, set()),
    ],
)
def test_a_size_leaves_out_those_whose_size_is_not_known(fields, expected):
    assert set(names(**fields)) == expected


def test_capabilities_have_to_be_known():
    assert names(capabilities=["code"]) == ["Qwen2.5-Coder-14B"]
    assert names(capabilities=["singing"]) == ["mystery"]
    assert names(capabilities=["code", "singing"]) == []


def test_models_that_embed_are_found_by_that_alone():
    assert names(capabilities=["embedding"]) == ["nomic-embed-text"]
    assert "nomic-embed-text" not in names(limit=100)
    assert names(capabilities=["embedding", "tools"]) == []


def test_the_size_that_is_preferred_comes_first():
    assert names(prefer_size="large", min_params_b=1)[0] == "llama3.1:70b"
    assert names(prefer_size="small", min_params_b=1)[0] == "llama3.1:8b"
    assert names(prefer_size="balanced", min_params_b=1)[0] == "Qwen2.5-Coder-14B"


def test_why_lists_the_parts_of_the_score():
    (one,) = found(capabilities=["code"], prefer_size="small")
    assert "fit 0.22" in one["why"] and "14B against small" in one["why"]
    assert one["why"].endswith("has code")
    assert set(one["features"]) == {"availability", "speed", "delivery", "price", "fit"}


def test_the_metadata_of_a_model_is_reported():
    bench = market()
    bench.measured("a", "Qwen2.5-Coder-14B", 2, price_msat=4_000)
    (one,) = found(bench, providers=["qwen"])
    assert one["params_b"] == 14 and one["vendor"] == "qwen" and "code" in one["capabilities"]
    assert one["price_msat"] == 4_000
    assert one["tokens_per_s"] == pytest.approx(50)
    assert (one["first_byte_s"], one["context_length"]) == (None, None)
    assert one["endpoints"] == ["chat", "completions"]
    json.dumps(one)


def test_a_nodes_price_list_counts_for_more_than_what_was_asked_elsewhere():
    bench = Bench(provider("node:n", "m", list_price_msat=70))
    bench.records.quoted("other", "m", 9_000)
    assert found(bench)[0]["price_msat"] == 70


def test_those_that_rest_are_ranked_too_and_lower():
    bench = Bench(provider("a", "m1"), provider("b", "m2"))
    bench.ready["a"] = 0.0
    first, second = found(bench)
    assert (first["model"], second["model"]) == ("m2", "m1")
    assert second["features"]["availability"] == 0


def test_endpoints_are_told_by_their_words():
    bench = market()
    assert endpoints_of(bench.offers, "nomic-embed-text") == ["embeddings"]
    assert endpoints_of(bench.offers, "gone") == []


# -- no matching model ----------------------------------------------------------------------------


def test_each_condition_says_how_many_it_left_out_and_how_many_for_want_of_knowledge():
    assert reasons(providers=["missing"]) == ["providers: 4 of 4 models left out"]
    assert reasons(min_params_b=100) == ["min_params_b: 4 of 4 models left out, 1 of them because it is not known"]
    assert reasons(max_params_b=20, capabilities=["singing"], providers=["a", "b"]) == [
        "providers: 2 of 4 models left out",
        "max_params_b: 2 of 4 models left out, 1 of them because it is not known",
        "capabilities (singing): 3 of 4 models left out, 3 of them because it is not known",
    ]


def test_where_nothing_is_on_offer_that_is_the_reason():
    assert reasons(Bench()) == ["no provider offers any model now"]
    assert reasons(Bench(provider("a", "m")), capabilities=["embedding"]) == [
        "capabilities: none of the 1 on offer is among the models that embed"
    ]
