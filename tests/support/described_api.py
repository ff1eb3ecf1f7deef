"""A gateway with customers, tried by its own description."""

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.gateway import RunningGateway, gateway

ADMIN_KEY = "an-administrators-key-of-many-characters"
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
# It has no end.
_STREAMS = {"/api/events", "/api/nodes/connect"}
# These end the credentials that the other requests need.
_ENDS = {("DELETE", "/api/account")}


@dataclass
class Seller:
    """A running gateway, and the keys by which it is tried."""

    gateway: RunningGateway
    keys: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def running(cls) -> "Iterator[Seller]":
        env = {
            "LCP_GATEWAY_AUTH": "accounts",
            "LCP_GATEWAY_ADMIN_KEY": ADMIN_KEY,
            # Every request comes from one address, and registrations are limited by it.
            "LCP_GATEWAY_REGISTRATION": "open",
        }
        with gateway(env=env) as running:
            seller = cls(running)
            account = seller.ask("POST", "/api/admin/accounts", ADMIN_KEY, {"name": "tried"})
            made = seller.ask(
                "POST",
                f"/api/admin/accounts/{account['id']}/keys",
                ADMIN_KEY,
                {"scopes": ["account", "wallet", "inference"]},
            )
            seller.ask(
                "POST",
                f"/api/admin/accounts/{account['id']}/adjustments",
                ADMIN_KEY,
                {"amount_msat": 10_000_000, "reason": "to be tried with"},
            )
            message = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
            seller.ask("POST", "/v1/chat/completions", made["key"], message)
            seller.keys = {"operator": ADMIN_KEY, "customer": made["key"], "no key": None}
            yield seller

    def ask(self, method: str, path: str, key: str | None, document: object = None) -> Any:
        """Send a request; return the document of its response."""
        request = urllib.request.Request(
            self.gateway.base_url + path,
            method=method,
            data=None if document is None else json.dumps(document).encode(),
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def operations(self) -> Sequence[Any]:
        """Return the operations of the description that can be tried."""
        described = self.ask("GET", "/openapi.json", None)
        schema = schemathesis.openapi.from_dict(described)
        found = [result.ok() for result in schema.get_all_operations()]
        return [
            operation
            for operation in found
            if operation.path not in _STREAMS and (operation.method.upper(), operation.path) not in _ENDS
        ]

    def is_sound(self) -> bool:
        """Return whether the books agree."""
        return bool(self.ask("GET", "/api/admin/audit", ADMIN_KEY)["ok"])


def try_operation(operation: Any, seller: Seller, key: str | None, *, examples: int, anew: bool = False) -> None:
    """Try an operation with good and bad values, the same ones each time unless ``anew``.

    Raises:
        Exception, ExceptionGroup: what was found.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for mode in schemathesis.GenerationMode:
        strategy = operation.as_strategy(generation_mode=mode)

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=not anew,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def run(case: Any) -> None:
            case.call_and_validate(base_url=seller.gateway.base_url, headers=headers, timeout=120, checks=[*CHECKS])

        try:
            run()
        except Unsatisfiable:
            # A route without parameters has no bad values.
            if mode is not schemathesis.GenerationMode.NEGATIVE:
                raise


def problems_of(
    operation: Any, seller: Seller, name: str, key: str | None, *, examples: int, anew: bool = False
) -> list[str]:
    """Return what trying an operation as a caller found, each with a command that repeats it."""
    try:
        try_operation(operation, seller, key, examples=examples, anew=anew)
    except BaseExceptionGroup as group:
        return [f"{operation.label} as {name}: {error}"[:1_500] for error in group.exceptions]
    except Exception as error:  # noqa: BLE001 - whatever it is, it was found
        return [f"{operation.label} as {name}: {error}"[:1_500]]
    return []
