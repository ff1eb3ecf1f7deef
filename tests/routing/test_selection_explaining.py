"""How an order would be routed now, described without effect."""

import json

import pytest

from lcp_gateway.routing.auto import replay
from lcp_gateway.routing.explicit import ModelNotFound, NoProvider
from tests.routing.offering import provider
from tests.routing.test_selection import among, task


@pytest.mark.parametrize("model", ["m", "auto"])
async def test_explaining_changes_nothing(model):
    choosing = among(provider("a", "m"))
    choosing.rests("a")
    choosing.now = 11
    for _ in range(3):
        assert choosing.explain(task(model))["chosen"]["provider"] == "a"
    assert choosing.asked == [] and choosing.decisions == [] and choosing.catalogs.refreshes == 0
    assert await choosing.ids(task(model)) == ["a"], "the trial is still available"


def test_a_choice_of_auto_is_explained_as_it_would_be_made():
    choosing = among(provider("a", "m1"), provider("node:n", "m2", list_price_msat=0))
    choosing.measured("a", "m1", 30)
    choosing.measured("node:n", "m2", 1)
    document = choosing.explain(task("auto:fast"))
    assert document["chosen"] == document["candidates"][0]
    assert [one["provider"] for one in document["candidates"]] == ["node:n", "a"]
    assert replay(document["decision"]) == ("node:n", "m2")
    json.dumps(document)


def test_a_named_model_is_explained_with_its_providers_in_the_order_of_asking():
    for by_score, expected in ((True, ["b", "a"]), (False, ["a", "b"])):
        choosing = among(
            provider("a", "m"), provider("b", "m"), cards={"m": {"aliases": ("x",)}}, rules={"by_score": by_score}
        )
        choosing.measured("a", "m", 10)
        choosing.measured("b", "m", 1)
        document = choosing.explain(task("x"))
        assert [one["provider"] for one in document["candidates"]] == expected
        assert (document["model"], document["resolved_model"]) == ("x", "m")
        assert document["decision"] is None


def test_where_a_node_offers_a_named_model_it_is_explained_by_the_score():
    choosing = among(provider("a", "m"), provider("node:n", "m"))
    choosing.measured("a", "m", 10)
    choosing.measured("node:n", "m", 1)
    document = choosing.explain(task())
    assert [one["provider"] for one in document["candidates"]] == ["node:n", "a"]
    assert "by their score" in document["chosen"]["reason"]


def test_a_model_without_a_provider_cannot_be_explained():
    with pytest.raises(ModelNotFound):
        among(provider("a", "m")).explain(task("unheard-of"))
    with pytest.raises(NoProvider):
        among().explain(task("auto"))


def test_a_model_that_no_provider_advertises_is_explained_by_its_name():
    document = among(provider("a"), rules={"allow_unlisted": True}).explain(task("whatever"))
    assert document["chosen"]["provider"] == "a"
