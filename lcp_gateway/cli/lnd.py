"""lnd as commands see it: opened for a block, where the settings name one."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from lcp_gateway.cli.outcome import CommandFailed, complain
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.lightning.payments import LndError

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd import Lnd


@contextlib.asynccontextmanager
async def opened_lnd(settings: Settings) -> AsyncIterator["Lnd | None"]:
    """Open lnd for the block; gives ``None`` where the settings name none.

    Raises:
        CommandFailed: its files cannot be read, or what speaks to it is not installed.
    """
    cert, macaroon = settings.lnd_tls_cert, settings.lnd_macaroon_file
    if not settings.lnd_grpc_addr or cert is None or macaroon is None:
        yield None
        return
    from lcp_gateway.lightning.lnd import Lnd, LndAddress, LndNotInstalled  # noqa: PLC0415 - an optional extra

    try:
        lnd = Lnd(
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


async def known_network(settings: Settings, *, warns: bool = True) -> str | None:
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
                complain(
                    f"warning: lnd does not tell its network ({error.status}): see lcp-gateway doctor"
                )
            return None
