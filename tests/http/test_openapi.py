"""/openapi.json describes every route of the gateway's own, and nothing else; the front holds every response against it."""

import json
from dataclasses import fields
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from aiohttp import web

from lcp_gateway.config import Settings
from lcp_gateway.http.application import ConsoleRoutes, Routes, build_application
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.gateway.purchases import COST_FIELDS, CUSTOMER_FIELDS
from lcp_gateway.http.openapi.document import own_routes
from lcp_gateway.http.openapi.operations import OPERATIONS
from lcp_gateway.http.openapi.schemas import PURCHASE
from lcp_gateway.http.permissions import scopes_for
from tests.http.front import front


@pytest.fixture
async def served(bank):
    settings = Settings(auth="accounts", admin_key="boss-of-it-all", registration="open")
    async with front(bank, settings=settings) as gateway:
        found = await gateway.ask("GET", "/openapi.json", None)
        assert found.status == 200
        gateway.document = found.document
        yield gateway


def test_the_validator_is_installed():
    assert find_spec("jsonschema_rs"), (
        "it comes with schemathesis; without it no response is held against the description"
    )


def test_a_purchase_has_the_fields_of_its_schema():
    assert set(PURCHASE["required"]) == set(CUSTOMER_FIELDS)
    assert set(PURCHASE["properties"]) == {*CUSTOMER_FIELDS, *COST_FIELDS}


async def test_a_gateway_describes_the_routes_that_it_has(served):
    there = {(method, path) for method, path, _ in own_routes(served.client.server.app)}
    described = {
        (method.upper(), path) for path, operations in served.document["paths"].items() for method in operations
    }
    assert described == there & OPERATIONS.keys()
    assert {"/api/purchases", "/api/events", "/healthz", "/openapi.json", "/api/session"} <= set(
        served.document["paths"]
    )


class AnyRoutes:
    """Stands for the handlers of one subject, whichever they are."""

    def __getattr__(self, name):
        if name == "handler":
            return lambda _kind: self.serve
        return self.serve

    async def serve(self, _request):
        raise NotImplementedError


def every_route():
    """Return the methods and paths of the routes of a gateway with everything."""
    console = ConsoleRoutes(**{field.name: AnyRoutes() for field in fields(ConsoleRoutes)})
    others = {field.name: AnyRoutes() for field in fields(Routes) if field.name != "console"}
    middleware = SimpleNamespace(handle=web.normalize_path_middleware(), on_response_prepare=None)
    app = build_application(
        Routes(**others, console=console), middleware, max_body_bytes=1, with_metrics=True, api_limits=ApiLimits(1, 1)
    )
    return {(method, path) for method, path, _ in own_routes(app)}


def test_every_route_that_a_gateway_may_have_is_described_and_no_other():
    there = every_route()
    assert there - OPERATIONS.keys() == set(), "describe them in http/openapi/operations.py"
    assert OPERATIONS.keys() - there == set(), "no gateway has these"


async def test_the_description_is_whole_and_names_the_scopes_of_each_route(served):
    document = served.document
    assert document["openapi"] == "3.1.0"
    text = json.dumps(document)
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= document["components"]["schemas"].keys()
    ids = [one["operationId"] for operations in document["paths"].values() for one in operations.values()]
    assert len(ids) == len(set(ids))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"] and operation["tags"], path
            if operation["security"] and path != "/metrics":
                for scope in scopes_for(method.upper(), path):
                    assert scope.value in operation["description"], (path, scope)
    purchases = document["paths"]["/api/purchases"]["get"]
    assert purchases["summary"].startswith("The purchases that the caller may see")
    assert {one["name"] for one in purchases["parameters"]} >= {"limit", "after", "state", "since", "format"}
