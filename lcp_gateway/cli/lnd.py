"""lnd as commands use it: opened for a block, for what it knows and for the invoices of top-ups."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from lcp_gateway.cli.output import CommandFailed, report
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.lightning.lnd.records import LndError

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.client import LndClient
if TYPE_CHECKING:
    from lcp_gateway.app.till import LndTill
    from lcp_gateway.lightning.lnd.channel import LndAddress


@contextlib.asynccontextmanager
async def opened_lnd(settings: Settings) -> AsyncIterator["LndClient | None"]:
    """Open lnd for the block; gives ``None`` where the settings name none.

    Raises:
        CommandFailed: its files cannot be read, or what speaks to it is not installed.
    """
    cert, macaroon = settings.lnd_tls_cert, settings.lnd_macaroon_file
    if not settings.lnd_grpc_addr or cert is None or macaroon is None:
        yield None
        return
    from lcp_gateway.lightning.lnd.client import LndAddress, LndClient, LndNotInstalled  # noqa: PLC0415 - an optional extra

    try:
        lnd = LndClient(
            LndAddress(
                settings.lnd_grpc_addr,
                cert,
                macaroon,
                may_use_proxy(settings, settings.lnd_grpc_addr),
            ),
            timeout_s=settings.preflight_timeout_s,
        )
    except LndNotInstalled as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from None
    async with lnd:
        yield lnd


async def invoice_network(settings: Settings, *, warns: bool = True) -> str | None:
    """Return the prefix of the invoices that may be paid: as the settings have it, else as lnd says; ``None`` for any.

    ``warns`` has it complain of an lnd that does not answer.
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
                report(
                    f"warning: lnd does not tell its network ({error.status}): see lcp-gateway doctor"
                )
            return None


OWN_NODE_SETTINGS = ("embedded", "node_listen", "lcpd_grpc_addr", "lcpd_tls")
"""The settings that say where a node of our own is."""

INVOICE_SETTINGS = (
    *("lnd_grpc_addr", "lnd_tls_cert", "lnd_macaroon_file", "lnd_invoice_macaroon_file"),
    *("proxy_from_environment", "network", "node_listen", "preflight_timeout_s"),
    *("topup_min_msat", "topup_max_msat", "topup_expiry_s", "topups_open_max"),
)
"""The settings that say who makes invoices, and which."""


def own_node(settings: Settings) -> str:
    """Give where a node of our own is reached, as a gRPC target; nothing says yet that it is one.

    Raises:
        CommandFailed: it cannot be known, or cannot be one.
    """
    if not settings.embedded:
        if settings.lcpd_tls:
            raise CommandFailed("what is reached with TLS (lcpd_tls) is no node of our own")
        return settings.lcpd_grpc_addr
    if not settings.node_listen:
        raise CommandFailed(
            "the embedded node listens where only its own gateway finds it: "
            "set node_listen, for the gateway and here"
        )
    listen = settings.node_listen
    return f"127.0.0.1{listen}" if listen.startswith(":") else listen


@contextlib.asynccontextmanager
async def opened_invoice_issuer(settings: Settings) -> "AsyncIterator[LndTill]":
    """Open who makes invoices for the block.

    Raises:
        CommandFailed: the settings name nobody, or its files or what speaks to it are missing.
    """
    address = _address(settings)
    from lcp_gateway.app.till import LndTill  # noqa: PLC0415 - imports the whole gateway
    from lcp_gateway.lightning.lnd.invoices import LndInvoices  # noqa: PLC0415 - an optional extra
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - as above

    try:
        invoices = LndInvoices(
            address, network=settings.network or None, timeout_s=settings.preflight_timeout_s
        )
    except LndNotInstalled as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"{error.filename}: {error.strerror}") from None
    async with invoices:
        yield LndTill(invoices)


def _address(settings: Settings) -> "LndAddress":
    from lcp_gateway.lightning.lnd.channel import LndAddress  # noqa: PLC0415 - loads gRPC

    if settings.lnd_grpc_addr:
        macaroon = settings.lnd_invoice_macaroon_file or settings.lnd_macaroon_file
        proxy = may_use_proxy(settings, settings.lnd_grpc_addr)
        return LndAddress(settings.lnd_grpc_addr, settings.lnd_tls_cert, macaroon, proxy)
    if settings.embedded:
        return LndAddress(own_node(settings))
    raise CommandFailed(
        "nobody is there to make an invoice: set lnd_grpc_addr, lnd_tls_cert and "
        "lnd_invoice_macaroon_file (see the documentation of lnd), or use --embedded"
    )
