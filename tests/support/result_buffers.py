"""Result buffers, complete or empty, without a purchase service."""

import asyncio

from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import BufferLimits, BufferPool, ResultBuffer, ResultHead
from lcp_gateway.purchase.states import PurchaseEvent
from tests.support.purchases import quote

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
PAID = (PurchaseEvent.PAY, PurchaseEvent.SETTLE, PurchaseEvent.DELIVER)


def order_of(
    body: bytes = b'{"model":"m","input":"hi"}',
    *,
    kind: TaskKind = TaskKind.RESPONSES,
    stream: bool = False,
    key_id: str = "key_1",
) -> Order:
    task = Task(kind, "m", body, stream=stream)
    return Order.of(task, request_id="req_1", key_id=key_id, limit_msat=None)


def begun(order: Order | None = None, *events: PurchaseEvent, bounds: BufferLimits | None = None) -> ResultBuffer:
    """Return a buffer without any bytes; ``events`` are those of its purchase, if it has one."""
    answer = ResultBuffer(order or order_of(), bounds or BufferLimits(), BufferPool(10**9))
    if events:
        answer.purchase = Purchase(answer.order, quote())
        for event in events:
            answer.purchase.apply(event)
    return answer


def came(
    *blocks: bytes,
    content_type: str = JSON,
    encoding: str = "identity",
    order: Order | None = None,
    bounds: BufferLimits | None = None,
) -> ResultBuffer:
    """Return a buffer with a complete result."""
    answer = begun(order, *PAID, bounds=bounds)
    answer.begin(ResultHead(content_type, encoding))
    for block in blocks:
        answer.append(block)
    answer.end()
    return answer


class Complaints:
    """Record the uncaught errors that the running event loop reports."""

    def __init__(self) -> None:
        self.heard: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: self.heard.append(context))
