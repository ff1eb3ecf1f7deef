"""The check of a node's macaroon before the node starts: a call that it does not allow is named, not met later."""

from typing import Final

from lcp_gateway.lightning.lnd.channel import LndAddress
from lcp_gateway.lightning.lnd.permissions import (
    NODE_BUYING,
    NODE_CONNECTING,
    NODE_HOLDING,
    NODE_LISTENING,
    NODE_SELLING,
    MacaroonNotAccepted,
    MacaroonProbe,
    Permission,
)
from lcp_gateway.node.lnd.transport import away

_TIMEOUT_S: Final = 10.0


class NotPermitted(Exception):
    """The macaroon does not allow calls that the node needs. The text names them, and how to bake another one."""


def needed(*, buys: bool, sells: bool, holds: bool, connects: bool = False) -> tuple[Permission, ...]:
    """Return the calls that a node needs that buys, sells, sells with hold invoices, or connects with named peers."""
    return (
        *NODE_LISTENING,
        *(NODE_BUYING if buys else ()),
        *(NODE_SELLING if sells else ()),
        *(NODE_HOLDING if sells and holds else ()),
        *(NODE_CONNECTING if connects else ()),
    )


async def check_permissions(
    address: LndAddress, *, buys: bool = True, sells: bool = False, holds: bool = False, connects: bool = False
) -> None:
    """Try each call that the node needs, in a form that changes nothing at lnd.

    Raises:
        NotPermitted: the macaroon allows too little.
        LightningAway: lnd does not answer, or has not started yet.
        LndNotInstalled: the extra is missing.
        OSError: the certificate or the macaroon cannot be read.
    """
    wanted = needed(buys=buys, sells=sells, holds=holds, connects=connects)
    bake = "lncli bakemacaroon " + " ".join(it.uri for it in wanted)
    with away():
        async with MacaroonProbe(address, timeout_s=_TIMEOUT_S) as probe:
            try:
                missing = await probe.missing(wanted)
            except MacaroonNotAccepted as error:
                raise NotPermitted(
                    f"lnd does not accept the macaroon {address.macaroon} ({error.message}); make one with: {bake}"
                ) from error
    if missing:
        calls = ", ".join(f"{it.call} ({it.takes}: {it.purpose})" for it in missing)
        raise NotPermitted(f"the macaroon {address.macaroon} does not allow {calls}; make one with: {bake}")
