"""POST /api/models/route over a real application, with real routing behind it."""

import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.http.error_mapping import map_handler_error
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.gateway.route import RankingRoutes
from lcp_gateway.routing.route_query import BadQuery, RouteQuery, explain_no_match, rank_models
from tests.routing.offering import Bench, provider


@web.middleware
async def errors(request, handler):
    try:
        return await handler(request)
    except ApiError as error:
        return error.response()
    except BadQuery as error:
        return map_handler_error(error).response()


@asynccontextmanager
async def serving(answer_to):
    ranking = RankingRoutes(answer_to, read_timeout_s=5)
    app = web.Application(middlewares=[errors])
    app.router.add_post("/api/models/route", ranking.rank)
    async with TestClient(TestServer(app)) as client:
        yield client


async def asked(body: bytes, answer_to=lambda _query: []):
    """Return the status and the document of a response."""
    async with serving(answer_to) as client:
        response = await client.post("/api/models/route", data=body)
        assert response.content_type == "application/json"
        return response.status, await response.json()


@pytest.mark.parametrize("body", [b"", b" \n", b"{}"])
async def test_an_empty_question_is_for_the_best_of_all(body):
    queries = []
    status, document = await asked(body, lambda query: queries.append(query) or [])
    assert (status, document) == (200, {"object": "list", "data": []})
    assert queries == [RouteQuery()]


async def test_the_models_are_ranked_with_scores_and_reasons():
    bench = Bench(provider("a", "x-8b", "Qwen2.5-Coder-14B"), provider("node:n", "x-8b"))
    for _ in range(3):
        bench.measured("node:n", "x-8b", 1, price_msat=1_000)
        bench.measured("a", "Qwen2.5-Coder-14B", 60, price_msat=9_000)
    status, document = await asked(b'{"limit": 5}', lambda query: rank_models(query, bench.offers, bench.auto))
    assert status == 200
    first, second = document["data"]
    assert (first["model"], first["provider"], first["source"]) == ("x-8b", "node:n", "node")
    assert first["providers"] == ["node:n", "a"]
    assert first["score"] > second["score"]
    assert "speed 1.00" in first["why"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{", None, "invalid_json"),
        (b"[]", None, "invalid_json"),
        (b'"x"', None, "invalid_json"),
        (b"\xff", None, "invalid_json"),
        (b'{"modell":1}', "modell", "unknown_parameter"),
        (b'{"limit":"5"}', "limit", "invalid_type"),
        (b'{"limit":0}', "limit", "invalid_value"),
        (b'{"prefer_size":"huge"}', "prefer_size", "invalid_value"),
        (b'{"prefer_size":["small"]}', "prefer_size", "invalid_value"),
        (b'{"capabilities":"code"}', "capabilities", "invalid_type"),
        (b'{"min_params_b":"7"}', "min_params_b", "invalid_type"),
    ],
)
async def test_the_wrong_field_is_named(body, param, code):
    status, document = await asked(body)
    assert status == 400
    error = document["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


async def test_a_wrong_document_is_not_repeated():
    _, document = await asked(b'{"providers": ["secret"')
    assert "secret" not in json.dumps(document)


async def test_where_no_model_fits_the_reasons_are_returned():
    """Regression: the response was only an empty list."""
    bench = Bench(provider("a", "x-7b"))
    ranking = RankingRoutes(
        lambda query: rank_models(query, bench.offers, bench.auto),
        why_nothing=lambda query: explain_no_match(query, bench.offers),
        read_timeout_s=5,
    )
    app = web.Application(middlewares=[errors])
    app.router.add_post("/api/models/route", ranking.rank)
    async with TestClient(TestServer(app)) as client:
        found = await (await client.post("/api/models/route", data=b'{"min_params_b": 8}')).json()
        some = await (await client.post("/api/models/route", data=b"{}")).json()
    assert found["data"] == [] and found["reasons"] == ["min_params_b: 1 of 1 models left out"]
    assert len(some["data"]) == 1 and "reasons" not in some
