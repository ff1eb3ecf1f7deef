"""The composition root: builds the parts from the settings, wires them, and runs them until the gateway is stopped."""

from lcp_gateway.app.main import run
from lcp_gateway.app.wiring.purchase import spending_limits
from lcp_gateway.app.wiring.routing import lcpd_address, routing_rules

__all__ = ["lcpd_address", "routing_rules", "run", "spending_limits"]
