"""The checks of lnd: whether it answers, its identity, the permissions of its macaroons, and the amount it can pay."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lcp_gateway.cli.doctor.report import Report
from lcp_gateway.cli.lnd import opened_lnd
from lcp_gateway.cli.output import CommandFailed, printable
from lcp_gateway.config import Settings, auth_mode, may_use_proxy, others_may_read
from lcp_gateway.lightning.lnd.channel import NOT_READY, LndAddress
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.purchase.money import format_sat

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.client import LndClient
    from lcp_gateway.lightning.lnd.permissions import Permission
    from lcp_gateway.lightning.lnd.records import LndInfo

_BAD_CERTIFICATE = re.compile(r"CERTIFICATE_VERIFY_FAILED|not in peer certificate|Hostname Verification", re.IGNORECASE)
_NO_TLS = re.compile(r"WRONG_VERSION_NUMBER|handshake", re.IGNORECASE)


_MACAROON_NAMES = {
    "lnd_macaroon_file": "lcp-gateway",
    "lnd_invoice_macaroon_file": "lcp-gateway-invoices",
    "lnd_withdrawal_macaroon_file": "lcp-gateway-withdrawals",
}


async def examine_lnd(report: Report, settings: Settings) -> None:
    """Ask lnd for its state, where one is configured."""
    try:
        async with opened_lnd(settings) as lnd:
            if lnd is None or not await _examine_macaroons(report, settings):
                return
            _examine_state(report, await lnd.info(), settings)
            await _examine_money(report, lnd, settings)
    except CommandFailed as error:
        report.fail("lnd", str(error), "see lnd_tls_cert and lnd_macaroon_file")
    except LndError as error:
        report.fail("lnd", *_unanswered(error, settings))


async def examine_identity(report: Report, settings: Settings, daemon_node_id: str) -> None:
    """Compare lnd with the node that the daemon pays from, where there is an lnd and it answers.

    Only the lnd that pays knows fees and preimages, and can prove that a payment was never made.
    """
    if settings.embedded:
        # The embedded node pays by itself; a warning says so.
        return
    with contextlib.suppress(CommandFailed, LndError):
        async with opened_lnd(settings) as lnd:
            if lnd is None:
                return
            info = await lnd.info()
            if info.identity == daemon_node_id:
                report.ok("lnd node", "the one that the daemon pays with")
            else:
                report.fail(
                    "lnd node",
                    f"lnd is node {printable(info.identity)}, the daemon pays with node {printable(daemon_node_id)}",
                    "name the daemon's own lnd in lnd_grpc_addr: another one knows nothing of these payments, and the "
                    "top-ups that customers pay there cannot be spent here",
                )


async def _examine_macaroons(report: Report, settings: Settings) -> bool:
    """Try what each macaroon allows; returns whether all of them suffice."""
    from lcp_gateway.lightning.lnd.permissions import PAYING, READING, SELLING  # noqa: PLC0415 - an optional extra

    own = settings.lnd_invoice_macaroon_file
    reading = list(READING)
    if auth_mode(settings) == "accounts" and own is None:
        reading += [it for it in SELLING if it not in READING and it.call != "Lightning.GetInfo"]
    suffices = True
    for setting, macaroon, wanted in (
        ("lnd_macaroon_file", settings.lnd_macaroon_file, reading),
        ("lnd_invoice_macaroon_file", own, SELLING),
        ("lnd_withdrawal_macaroon_file", settings.lnd_withdrawal_macaroon_file, PAYING),
    ):
        if macaroon is not None:
            suffices &= await _examine_macaroon(report, settings, setting, macaroon, wanted)
    return suffices


async def _examine_macaroon(
    report: Report, settings: Settings, setting: str, macaroon: Path, wanted: Sequence["Permission"]
) -> bool:
    from lcp_gateway.lightning.lnd.permissions import MacaroonNotAccepted, MacaroonProbe  # noqa: PLC0415 - loads gRPC

    name, bake = "lnd macaroon", _bake(wanted, setting)
    target = settings.lnd_grpc_addr
    proxy = may_use_proxy(settings, target)
    try:
        probe = MacaroonProbe(
            LndAddress(target, settings.lnd_tls_cert, macaroon, proxy), timeout_s=settings.preflight_timeout_s
        )
    except OSError as error:
        report.fail(name, f"{setting}: {error.filename}: {error.strerror}")
        return False
    try:
        missing = await probe.missing(wanted)
        may_pay = not missing and await probe.may_pay()
    except MacaroonNotAccepted as error:
        report.fail(
            name,
            f"{setting}: lnd does not accept {macaroon}: {printable(error.message)}",
            "it is of another lnd, its root key was deleted, or the file holds no macaroon: bake one at this lnd\n"
            + bake,
        )
        return False
    finally:
        await probe.close()
    if missing:
        lacks = ", ".join(f"{it.call} ({it.takes}, for {it.purpose})" for it in missing)
        text = f"{setting}: {macaroon} does not allow {lacks}"
        report.fail(name, text, f"bake one that does:\n{bake}")
        return False
    advice = ""
    if may_pay and setting != "lnd_withdrawal_macaroon_file":
        advice = f"it can also spend: bake one that cannot:\n{bake}"
    elif others_may_read(macaroon):
        advice = f"other users may read it, and it is all that they need: chmod 600 {macaroon}"
    report.ok(name, f"{setting} allows all that is needed", advice)
    return True


def _bake(wanted: Sequence["Permission"], setting: str) -> str:
    """Return the command that makes a macaroon; never over the present one, which may be lnd's own."""
    name = _MACAROON_NAMES[setting]
    uris = " ".join(it.uri for it in wanted)
    return f"umask 077; lncli bakemacaroon --save_to={name}.macaroon {uris}"


def _examine_state(report: Report, info: "LndInfo", settings: Settings) -> None:
    text = (
        f"{printable(info.alias)} {printable(info.version)} on {printable(info.network)}, "
        f"block {info.block_height}, {'synced' if info.synced_to_chain else 'not synced'}"
    )
    if not info.synced_to_chain:
        advice = "wait until lnd has caught up with the chain: until then it neither pays nor sees payments"
        report.fail("lnd", text, advice)
    elif not info.synced_to_graph:
        advice = "lnd has not read the network's graph yet: it may find no route until then"
        report.ok("lnd", text, advice)
    else:
        report.ok("lnd", text)
    if settings.network and info.invoice_prefix != settings.network:
        report.fail(
            "lnd network",
            f"lnd is on {printable(info.network)}, network is set to {settings.network}",
            "one of the two is wrong: every quote will be refused",
        )


async def _examine_money(report: Report, lnd: "LndClient", settings: Settings) -> None:
    balance, channels = await lnd.balance(), await lnd.channels()
    text = (
        f"{channels.active} active, {channels.inactive} not; {format_sat(balance.local_msat)} local, "
        f"{format_sat(channels.largest_spendable_msat)} at most in one payment"
    )
    if channels.active > 0 and channels.spendable_msat > 0:
        report.ok("lnd channels", text)
    else:
        advice = "nothing can be paid: open a channel, or wait for its peer"
        report.fail("lnd channels", text, advice)
    least_msat = settings.topup_min_msat
    if auth_mode(settings) == "accounts" and balance.remote_msat < least_msat:
        report.fail(
            "lnd inbound",
            f"{format_sat(balance.remote_msat)} can be received, a top-up is at least {least_msat} msat",
            "customers cannot top up: inbound liquidity is needed, from a channel that another node opens, or by paying out",
        )


def _unanswered(error: LndError, settings: Settings) -> tuple[str, str]:
    """Report why lnd did not answer, with advice."""
    where, text = settings.lnd_grpc_addr, error.message
    if _BAD_CERTIFICATE.search(text):
        problem = (
            f"the certificate of lnd at {where} is not the one in lnd_tls_cert ({settings.lnd_tls_cert}), "
            "or not for this address"
        )
        advice = (
            "copy lnd's present tls.cert there; for another name or address set lnd's tlsextradomain or tlsextraip, "
            "and delete its tls.cert and tls.key before its restart"
        )
        return problem, advice
    if NOT_READY.search(text):
        advice = "unlock its wallet (lncli unlock), or wait until it has started"
        return f"lnd at {where} is not ready: {printable(text)}", advice
    if not error.status.is_unanswered:
        return printable(str(error)), "see lnd_grpc_addr, and the permissions of the macaroon"
    if _NO_TLS.search(text):
        advice = "see lnd_grpc_addr: it is lnd's gRPC address, port 10009 by default"
        return f"the server at {where} does not speak TLS as lnd does", advice
    advice = "see lnd_grpc_addr, and whether lnd runs"
    return f"lnd at {where} does not answer ({error.status})", advice
