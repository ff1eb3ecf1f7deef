"""The findings of the doctor about lnd: whether it answers, which node it is, what its macaroons allow, and what it can pay."""

import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lcp_gateway.cli.doctor.findings import Finding
from lcp_gateway.cli.lnd import opened_lnd
from lcp_gateway.cli.output import CommandFailed, printable
from lcp_gateway.config import Settings, auth_mode, may_use_proxy, others_may_read
from lcp_gateway.lightning.lnd.channel import NOT_READY, LndAddress
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.purchase.money import format_sat

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.client import LndClient, LndInfo
    from lcp_gateway.lightning.lnd.permissions import Permission

_BAD_CERTIFICATE = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|not in peer certificate|Hostname Verification", re.IGNORECASE
)
_NO_TLS = re.compile(r"WRONG_VERSION_NUMBER|handshake", re.IGNORECASE)


async def lnd_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Ask lnd for its state, where one is configured."""
    try:
        async with opened_lnd(settings) as lnd:
            if lnd is None:
                return
            permissions = [it async for it in _permission_findings(settings)]
            for finding in permissions:
                yield finding
            if not all(finding.ok for finding in permissions):
                return
            info = await lnd.info()
            for finding in _state(info, settings):
                yield finding
            async for finding in _money(lnd, settings):
                yield finding
    except CommandFailed as error:
        yield Finding("lnd", False, str(error), "see lnd_tls_cert and lnd_macaroon_file")
    except LndError as error:
        yield _unanswered(error, settings)


async def identity_finding(settings: Settings, daemon_node_id: str) -> Finding | None:
    """Compare lnd with the node that the daemon pays from; None where there is no lnd, or none that answers.

    Only the lnd that pays knows fees and preimages, and can tell that a payment was never made.
    """
    if settings.embedded:
        # It pays by itself, which a warning says.
        return None
    with contextlib.suppress(CommandFailed, LndError):
        async with opened_lnd(settings) as lnd:
            if lnd is None:
                return None
            info = await lnd.info()
            if info.identity == daemon_node_id:
                return Finding("lnd node", True, "the one that the daemon pays with")
            return Finding(
                "lnd node",
                False,
                f"lnd is node {printable(info.identity)}, the daemon pays with node {printable(daemon_node_id)}",
                "name the daemon's own lnd in lnd_grpc_addr: another one knows nothing of these payments, and the "
                "top-ups that customers pay there cannot be spent here",
            )
    return None


async def _permission_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Try what each macaroon allows."""
    from lcp_gateway.lightning.lnd.permissions import READING, SELLING  # noqa: PLC0415 - an optional extra

    sells = auth_mode(settings) == "accounts"
    own = settings.lnd_invoice_macaroon_file
    reading = list(READING)
    if sells and own is None:
        reading += [it for it in SELLING if it not in READING and it.call != "Lightning.GetInfo"]
    if settings.lnd_macaroon_file is not None:
        yield await _permission_finding(
            settings, "lnd_macaroon_file", settings.lnd_macaroon_file, reading
        )
    if own is not None:
        yield await _permission_finding(settings, "lnd_invoice_macaroon_file", own, SELLING)


async def _permission_finding(
    settings: Settings, setting: str, macaroon: Path, wanted: Sequence["Permission"]
) -> Finding:
    from lcp_gateway.lightning.lnd.permissions import MacaroonNotAccepted, MacaroonProbe  # noqa: PLC0415 - loads gRPC

    name = "lnd macaroon"
    try:
        probe = MacaroonProbe(
            LndAddress(
                settings.lnd_grpc_addr,
                settings.lnd_tls_cert,
                macaroon,
                may_use_proxy(settings, settings.lnd_grpc_addr),
            ),
            timeout_s=settings.preflight_timeout_s,
        )
    except OSError as error:
        return Finding(name, False, f"{setting}: {error.filename}: {error.strerror}")
    try:
        missing = await probe.missing(wanted)
        may_pay = not missing and await probe.may_pay()
    except MacaroonNotAccepted as error:
        return Finding(
            name,
            False,
            f"{setting}: lnd does not accept {macaroon}: {printable(error.message)}",
            "it is of another lnd, its root key was deleted, or the file holds no macaroon: bake one at this lnd\n"
            + _bake(wanted, setting),
        )
    finally:
        await probe.close()
    if missing:
        lacks = ", ".join(f"{it.call} ({it.takes}, for {it.purpose})" for it in missing)
        return Finding(
            name,
            False,
            f"{setting}: {macaroon} does not allow {lacks}",
            f"bake one that does:\n{_bake(wanted, setting)}",
        )
    advice = ""
    if may_pay:
        advice = f"it can also spend: bake one that cannot:\n{_bake(wanted, setting)}"
    elif others_may_read(macaroon):
        advice = f"other users may read it, and it is all that they need: chmod 600 {macaroon}"
    return Finding(name, True, f"{setting} allows all that is needed", advice)


def _bake(wanted: Sequence["Permission"], setting: str) -> str:
    """Return the command that makes a macaroon; never over the present one, which may be lnd's own."""
    name = "lcp-gateway" if setting == "lnd_macaroon_file" else "lcp-gateway-invoices"
    uris = " ".join(it.uri for it in wanted)
    return f"umask 077; lncli bakemacaroon --save_to={name}.macaroon {uris}"


def _state(info: "LndInfo", settings: Settings) -> Sequence[Finding]:
    synced = info.synced_to_chain
    advice = ""
    if not synced:
        advice = "wait until lnd has caught up with the chain: until then it neither pays nor sees payments"
    elif not info.synced_to_graph:
        advice = "lnd has not read the network's graph yet: it may find no route until then"
    found = [
        Finding(
            "lnd",
            synced,
            f"{printable(info.alias)} {printable(info.version)} on {printable(info.network)}, block {info.block_height}, "
            f"{'synced' if synced else 'not synced'}",
            advice,
        )
    ]
    if settings.network and info.invoice_prefix != settings.network:
        found.append(
            Finding(
                "lnd network",
                False,
                f"lnd is on {printable(info.network)}, network is set to {settings.network}",
                "one of the two is wrong: every quote will be refused",
            )
        )
    return found


async def _money(lnd: "LndClient", settings: Settings) -> AsyncIterator[Finding]:
    balance, channels = await lnd.balance(), await lnd.channels()
    usable = channels.active > 0 and channels.spendable_msat > 0
    yield Finding(
        "lnd channels",
        usable,
        f"{channels.active} active, {channels.inactive} not; "
        f"{format_sat(balance.local_msat)} local, {format_sat(channels.largest_spendable_msat)} "
        "at most in one payment",
        "" if usable else "nothing can be paid: open a channel, or wait for its peer",
    )
    if auth_mode(settings) == "accounts" and balance.remote_msat < settings.topup_min_msat:
        yield Finding(
            "lnd inbound",
            False,
            f"{format_sat(balance.remote_msat)} can be received, a top-up is at least "
            f"{settings.topup_min_msat} msat",
            "customers cannot top up: inbound liquidity is needed, from a channel that another node opens, or by paying out",
        )


def _unanswered(error: LndError, settings: Settings) -> Finding:
    """Report why lnd did not answer, with advice."""
    where, text = settings.lnd_grpc_addr, error.message
    if _BAD_CERTIFICATE.search(text):
        return Finding(
            "lnd",
            False,
            f"the certificate of lnd at {where} is not the one in lnd_tls_cert ({settings.lnd_tls_cert}), "
            "or not for this address",
            "copy lnd's present tls.cert there; for another name or address set lnd's tlsextradomain or tlsextraip, "
            "and delete its tls.cert and tls.key before its restart",
        )
    if NOT_READY.search(text):
        return Finding(
            "lnd",
            False,
            f"lnd at {where} is not ready: {printable(text)}",
            "unlock its wallet (lncli unlock), or wait until it has started",
        )
    if error.status.is_unanswered:
        if _NO_TLS.search(text):
            return Finding(
                "lnd",
                False,
                f"the server at {where} does not speak TLS as lnd does",
                "see lnd_grpc_addr: it is lnd's gRPC address, port 10009 by default",
            )
        return Finding(
            "lnd",
            False,
            f"lnd at {where} does not answer ({error.status})",
            "see lnd_grpc_addr, and whether lnd runs",
        )
    return Finding(
        "lnd",
        False,
        printable(str(error)),
        "see lnd_grpc_addr, and the permissions of the macaroon",
    )
