"""What is done to a result on its way to the client: nothing, unless the client asked the gateway itself for something."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Protocol

from lcp_gateway.adapters.completions import FromChatStream, from_chat, to_chat
from lcp_gateway.adapters.routing_info import IntoStream, header_value, into_result
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.stored.given_ids import GivenId
from lcp_gateway.stored.recordings import response_id
from lcp_gateway.stored.replay import with_changes

ADAPTER_HEADER = "X-Lcp-Adapter"
ROUTING_HEADER = "X-Lcp-Routing"


class Step(Protocol):
    """Changes a stream as it flows."""

    def feed(self, chunk: bytes) -> bytes:
        """Take some bytes and give those that can go on."""
        ...

    def rest(self) -> bytes:
        """Give what was held back, at the end."""
        ...


class Shaping:
    """What the answer to one order needs: the way back through an adapter, and the word on the routing."""

    def __init__(
        self,
        order: Order,
        purchase: Purchase,
        content_encoding: str,
        *,
        given_id: str = "",
    ) -> None:
        """``order`` is as the client sent it: it tells what a result has to be turned back into.

        ``given_id`` is the id of a result that has none.
        """
        candidate = purchase.candidate
        plain = content_encoding.strip().lower() in {"", "identity"}
        self._adapter = candidate.adapter
        self._plan = to_chat(order.task.body).plan if self._adapter and plain else None
        self._info: Mapping[str, object] | None = None
        if candidate.routing is not None:
            self._info = {**candidate.routing, "price_msat": purchase.cost_msat}
        self._tells_inside = self._info is not None and plain
        self._purchase = purchase
        self._given_id = given_id if plain else ""

    def headers(self) -> dict[str, str]:
        """Give the headers that say what was done."""
        found = {}
        if self._adapter:
            found[ADAPTER_HEADER] = self._adapter
        if self._info is not None:
            found[ROUTING_HEADER] = header_value(self._info)
        return found

    def whole(self, body: bytes) -> bytes:
        """Give a whole result as the client gets it."""
        if self._plan is not None:
            try:
                body = from_chat(body, self._plan)
            except ValueError as error:
                raise self._undelivered(error) from error
        if self._given_id and response_id((body,), stream=False) is None:
            # What is no JSON object has no place for an id, and is not stored either.
            with suppress(ValueError):
                body = with_changes(body, {"id": self._given_id})
        if self._tells_inside and self._info is not None:
            body = into_result(body, self._info)
        return body

    def stream(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Give a stream's bytes as the client gets them."""
        steps: list[Step] = []
        if self._plan is not None:
            steps.append(FromChatStream(self._plan))
        if self._given_id:
            steps.append(GivenId(self._given_id))
        if self._tells_inside and self._info is not None:
            steps.append(IntoStream(self._info))
        return self._through(chunks, steps) if steps else chunks

    async def _through(
        self, chunks: AsyncGenerator[bytes, None], steps: Sequence[Step]
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    shaped = chunk
                    for step in steps:
                        shaped = step.feed(shaped)
                    if shaped:
                        yield shaped
            tail = b""
            for step in steps:
                tail = step.feed(tail) + step.rest()
            if tail:
                yield tail
        except ValueError as error:
            # It came whole, and is beyond what the adapter can turn back.
            raise self._undelivered(error) from error

    def _undelivered(self, error: ValueError) -> Undelivered:
        purchase = self._purchase
        return Undelivered(
            f"the result cannot be adapted: {error}",
            quote=purchase.quote,
            verdict=purchase.verdict,
        )
