"""lnd as commands use it: opened for a block, to ask which network it is on and to make the invoices of top-ups."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from lcp_gateway.cli.output import CommandFailed, report
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.lightning.lnd.records import LndError

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.client import LndClient
    from lcp_gateway.lightning.lnd.invoice_issuer import InvoiceIssuer

OWN_NODE_SETTINGS = ("embedded", "node_listen", "lcpd_grpc_addr", "lcpd_tls")
"""The settings that say where a simulated node is."""

INVOICE_SETTINGS = (
    *("lnd_grpc_addr", "lnd_tls_cert", "lnd_macaroon_file", "lnd_invoice_macaroon_file"),
    *("proxy_from_environment", "network", "node_listen", "preflight_timeout_s"),
    *("topup_min_msat", "topup_max_msat", "topup_expiry_s", "topups_open_max"),
)
"""The settings that say where invoices are made, and within which bounds."""


@contextlib.asynccontextmanager
async def opened_lnd(settings: Settings) -> AsyncIterator["LndClient | None"]:
    """Open lnd for the block; yields None where the settings name none."""
    cert, macaroon = settings.lnd_tls_cert, settings.lnd_macaroon_file
    if not settings.lnd_grpc_addr or cert is None or macaroon is None:
        yield None
        return
    from lcp_gateway.lightning.lnd.channel import LndAddress  # noqa: PLC0415 - loads gRPC
    from lcp_gateway.lightning.lnd.client import LndClient  # noqa: PLC0415 - an optional extra

    proxy = may_use_proxy(settings, settings.lnd_grpc_addr)
    with _opening_fails():
        lnd = LndClient(
            LndAddress(settings.lnd_grpc_addr, cert, macaroon, proxy), timeout_s=settings.preflight_timeout_s
        )
    async with lnd:
        yield lnd


async def invoice_network(settings: Settings, *, warns: bool = True) -> str | None:
    """Return the prefix of the invoices that may be paid: of the settings, else of lnd; None for any.

    With ``warns``, an lnd that does not answer is reported.
    """
    if settings.network:
        return settings.network
    async with opened_lnd(settings) as lnd:
        if lnd is None:
            return None
        try:
            return (await lnd.info()).invoice_prefix
        except LndError as error:
            if warns:
                report(f"warning: lnd did not report its network ({error.status}): see lcp-gateway doctor")
            return None


def own_node(settings: Settings) -> str:
    """Return the gRPC target of a simulated node; whether it is one is not known yet."""
    if not settings.embedded:
        if settings.lcpd_tls:
            raise CommandFailed("a daemon that is reached with TLS (lcpd_tls) is not a simulated node")
        return settings.lcpd_grpc_addr
    if not settings.node_listen:
        raise CommandFailed(
            "the embedded node listens where only its own gateway finds it: set node_listen, for the gateway and here"
        )
    listen = settings.node_listen
    return f"127.0.0.1{listen}" if listen.startswith(":") else listen


@contextlib.asynccontextmanager
async def opened_invoice_issuer(settings: Settings) -> "AsyncIterator[InvoiceIssuer]":
    """Open the issuer of invoices for the block: lnd, or a simulated node, which serves the same calls."""
    if not (settings.lnd_grpc_addr or settings.embedded):
        raise CommandFailed(
            "top-ups are disabled: no lnd is configured; set lnd_grpc_addr, lnd_tls_cert and "
            "lnd_invoice_macaroon_file (see the documentation of lnd), or use --embedded"
        )
    from lcp_gateway.app.wiring.lnd import invoice_address  # noqa: PLC0415 - imports the whole gateway
    from lcp_gateway.lightning.lnd.invoice_issuer import InvoiceIssuer  # noqa: PLC0415 - an optional extra
    from lcp_gateway.lightning.lnd.invoices import LndInvoices  # noqa: PLC0415 - as above

    node = "" if settings.lnd_grpc_addr else own_node(settings)
    with _opening_fails():
        invoices = LndInvoices(
            invoice_address(settings, node), network=settings.network or None, timeout_s=settings.preflight_timeout_s
        )
    async with invoices:
        yield InvoiceIssuer(invoices)


@contextlib.contextmanager
def _opening_fails() -> Iterator[None]:
    """Turn the errors of opening lnd into one of the command."""
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - an optional extra

    try:
        yield
    except LndNotInstalled as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from None
