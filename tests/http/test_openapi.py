"""/openapi.json describes every route of the gateway's own, and nothing else; the front holds every response against it."""

import json
from importlib.util import find_spec

import pytest

from lcp_gateway.config import Settings
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


async def test_every_route_of_its_own_is_described(served):
    there = {(method, path) for method, path, _ in own_routes(served.client.server.app)}
    assert there - OPERATIONS.keys() == set(), "describe them in http/openapi/operations.py"
    described = {
        (method.upper(), path) for path, operations in served.document["paths"].items() for method in operations
    }
    assert described == there & OPERATIONS.keys()
    assert {"/api/purchases", "/api/events", "/healthz", "/openapi.json", "/api/session"} <= set(
        served.document["paths"]
    )


async def test_nothing_is_described_that_no_gateway_serves(served):
    # The front has no lnd, and so no withdrawals.
    there = {(method, path) for method, path, _ in own_routes(served.client.server.app)}
    missing = {(method, path) for method, path in OPERATIONS if (method, path) not in there}
    assert {path for _, path in missing if "withdrawals" not in path and "demo-invoice" not in path} == set()


async def test_the_description_is_whole_and_says_who_may(served):
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
