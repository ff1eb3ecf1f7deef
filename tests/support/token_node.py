"""A stand-in for a virtual node that also counts tokens, at ``POST /v1/responses/input_tokens``."""

import asyncio
import json
from dataclasses import dataclass, field

from aiohttp import web

from tests.support.http_node import HttpNodeThread, Seen, StandIn


@dataclass
class Counting:
    """How it counts: it answers with ``status`` and ``text`` after ``delay_s``; without a text, with ``tokens``."""

    tokens: int = 42
    status: int = 200
    text: str | None = None
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


class CountingStandIn(StandIn):
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.counting = Counting()
        self.counts: list[Seen] = []
        self.most_at_once = 0
        self._at_once = 0

    def application(self) -> web.Application:
        app = super().application()
        app.router.add_post("/v1/responses/input_tokens", self._count)
        return app

    async def _count(self, request):
        body = await request.read()
        self.counts.append(Seen("POST", request.path, dict(request.headers), body))
        if refused := self._refused(request):
            return refused
        c = self.counting
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(c.delay_s)
        self._at_once -= 1
        if c.cut:
            request.transport.abort()
            return web.Response()
        document = {"object": "response.input_tokens", "input_tokens": c.tokens}
        text = json.dumps(document) if c.text is None else c.text
        return web.Response(status=c.status, text=text, content_type="application/json", headers=c.headers)


class CountingNode(HttpNodeThread):
    """Runs the stand-in in a thread of the test."""

    def __init__(self, name: str = "node", models: tuple[str, ...] = (), **options) -> None:
        super().__init__(name, models, **options)
        self.server = CountingStandIn(name, models, **options)

    @property
    def counting(self) -> Counting:
        return self.server.counting

    @property
    def counts(self) -> list[Seen]:
        """The requests for a count that were received."""
        return self.server.counts
