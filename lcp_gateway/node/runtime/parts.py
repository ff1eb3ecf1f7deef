"""What the parts of a node share."""

from collections.abc import Callable
from dataclasses import dataclass

from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.ports import Compute, Invoices, Payments, Store, Transport
from lcp_gateway.node.runtime.bounds import Bounds, Delays
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.observer import NodeObserver
from lcp_gateway.node.runtime.tasks import Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeParts:
    """The ports of a node and what it is set to. ``limits`` is what it takes itself, ``clock`` returns Unix seconds.

    ``compute`` is None where nothing is sold.
    """

    transport: Transport
    payments: Payments
    invoices: Invoices
    store: Store
    compute: Compute | None
    tasks: Tasks
    observer: NodeObserver
    log: NodeLog
    limits: Limits
    bounds: Bounds
    delays: Delays
    clock: Callable[[], float]
