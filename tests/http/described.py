"""Holds responses against the description of the routes: status, type and schema have to be those that it states."""

import re
from typing import Any

import orjson
from aiohttp import web

from lcp_gateway.http.openapi.document import describe

_PLACE = re.compile(r"\\\{[a-z_]+\\\}")
# Answers of the server itself, whatever the route: a path with another method, headers and bodies that are too large.
_ANY_ROUTES = {405, 413, 417, 421, 431, 505}


class DescribedApi:
    """The description of one application."""

    def __init__(self, app: web.Application) -> None:
        self.document = describe(app)
        self._validators: dict[str, Any] = {}
        self._paths = [
            (re.compile(_PLACE.sub(r"[^/]+", re.escape(path))), path, operations)
            for path, operations in self.document["paths"].items()
        ]

    def check(self, method: str, path: str, status: int, media: str, body: bytes) -> None:
        """Fail unless a response is one that the description states; paths that it does not have are not looked at."""
        for pattern, name, operations in self._paths:
            if pattern.fullmatch(path.partition("?")[0]) and method.lower() in operations:
                self._check(f"{method} {name}", operations[method.lower()], status, media, body)
                return

    def _check(self, name: str, operation: dict, status: int, media: str, body: bytes) -> None:
        if status in _ANY_ROUTES:
            return
        assert str(status) in operation["responses"], f"{name} does not state {status}: {body[:300]!r}"
        content = operation["responses"][str(status)]["content"]
        assert media in content, f"{name} does not state {media} for {status}"
        if media != "application/json":
            return
        schema = content[media]["schema"]
        problems = [
            f"{'/'.join(map(str, error.instance_path))}: {error.message:.300}"
            for error in self._validator(name + str(status), schema).iter_errors(orjson.loads(body))
        ]
        assert not problems, f"{name}: {status}: {problems}"

    def _validator(self, name: str, schema: dict) -> Any:
        import jsonschema_rs

        if name not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[name] = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
        return self._validators[name]
