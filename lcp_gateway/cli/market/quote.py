"""``lcp-gateway quote``: the price of a request, asked of the provider, with every check of the quote. Nothing is paid."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.adapters.completions import NotAdaptable
from lcp_gateway.cli.lnd import invoice_network
from lcp_gateway.cli.market.providers import ReachableProviders, reachable_providers, unmeasured_routing
from lcp_gateway.cli.market.requests import (
    BodyArgument,
    KindOption,
    first_servable,
    kind_of,
    read_kind,
    read_request,
    task_from_prompt,
)
from lcp_gateway.cli.options import JsonOption, command_app, load_settings, setting_flags, text_option
from lcp_gateway.cli.output import (
    RUNTIME_ERROR,
    USAGE_ERROR,
    CommandFailed,
    format_time,
    print_json,
    print_pairs,
    printable,
    report,
)
from lcp_gateway.cli.serve.embedded import daemon_for
from lcp_gateway.config import Group, Settings
from lcp_gateway.lightning.bolt11 import InvoiceError, decode
from lcp_gateway.lightning.checks import MISMATCH_TEXTS, Mismatch, mismatch_of, mismatches, recompute_terms_hash
from lcp_gateway.lightning.terms import PROTOCOL_VERSIONS
from lcp_gateway.purchase.errors import PriceLimitExceeded, UpstreamError
from lcp_gateway.purchase.money import Msat, format_sat
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.quote import Candidate, ProviderSource, Quote
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.routing.explicit import RoutingError
from lcp_gateway.routing.route_query import ENDPOINT_NAMES

_NOT_CHECKED = "not checked"
_INVOICE_CHECKS = (
    Mismatch.NETWORK,
    Mismatch.PAYEE,
    Mismatch.AMOUNT,
    Mismatch.DESCRIPTION_HASH,
    Mismatch.EXPIRY,
    Mismatch.EXPIRED,
)


_MARKS = {True: "ok", False: "FAILED", None: "?"}

app = command_app()


@dataclass(frozen=True, slots=True)
class QuoteCheck:
    """One check by the name of its mismatch. ``ok`` is None for one that could not be made; ``words`` say why it is not ok."""

    name: str
    ok: bool | None
    words: str = ""


@dataclass(frozen=True, slots=True)
class QuotedRequest:
    """The request to quote: its bytes and fields, or a prompt for a model that may be left open."""

    kind: TaskKind | None
    model: str | None
    prompt: str
    max_tokens: int
    body: bytes | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class CheckedQuote:
    """A quote for a task, and its checks. ``over_limit`` is empty where no limit forbids it.

    A node's quote is the most that the task can cost, and has nothing to check; ``list_price_msat`` is the price of an
    ordinary request there.
    """

    task: Task
    quote: Quote
    max_fee_msat: Msat
    list_price_msat: int | None
    checks: Sequence[QuoteCheck]
    over_limit: str

    @property
    def may_be_bought(self) -> bool:
        """Whether the gateway would pay it; budgets and trust in the peer are not considered."""
        return not self.over_limit and all(check.ok is not False for check in self.checks)


@app.command()
@setting_flags(
    (Group.DAEMON, Group.ROUTING, Group.MONEY, Group.LND, Group.NODE), also=("quote_attempts", "timeout_quote_s")
)
def quote(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    body: BodyArgument = None,
    kind: KindOption = None,
    model: Annotated[str | None, text_option(metavar="MODEL", help="With --prompt: the model; else the first.")] = None,
    prompt: Annotated[str | None, text_option(metavar="TEXT", help="A prompt in place of a file.")] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --prompt: how long the answer may be.")
    ] = 512,
    json: JsonOption = False,
) -> int:
    """Ask for the price of a request and check the quote. Nothing is paid; ends with 1 if it would not be bought."""
    wanted = _read(body, kind, model, prompt, max_tokens)
    loaded = load_settings(flags, config)
    with daemon_for(loaded.settings) as settings:
        quoted = asyncio.run(_ask(wanted, settings))
    if json:
        print_json(_as_json(quoted))
    else:
        _print(quoted)
    return 0 if quoted.may_be_bought else RUNTIME_ERROR


def _read(body: str | None, kind: str | None, model: str | None, prompt: str | None, max_tokens: int) -> QuotedRequest:
    chosen = read_kind("--kind", kind)
    if (body is None) is (prompt is None):
        raise CommandFailed("give either a file (or -) or --prompt", exit_code=USAGE_ERROR)
    if body is None:
        return QuotedRequest(chosen, model, prompt or "", max_tokens)
    if model is not None:
        raise CommandFailed("--model: the file names the model", exit_code=USAGE_ERROR)
    raw, fields = read_request(body)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise CommandFailed("the request is not a JSON object with a model")
    stream = fields.get("stream") is True
    return QuotedRequest(chosen or kind_of(fields), model, "", 0, body=raw, stream=stream)


async def _ask(wanted: QuotedRequest, settings: Settings) -> CheckedQuote:
    async with reachable_providers(settings) as reachable:
        routing = unmeasured_routing(settings, reachable.catalog)
        task = _task(wanted, reachable.catalog, settings, routing.registry.resolve)
        order = Order.of(task, request_id="", key_id="", limit_msat=None)
        try:
            candidates = await routing.selector(order)
        except (RoutingError, NotAdaptable) as error:
            raise CommandFailed(error.message) from None
        return await _first_quote(reachable, task, candidates, settings)


def _task(wanted: QuotedRequest, catalog: Catalog, settings: Settings, resolve: Callable[[str], str]) -> Task:
    if wanted.model is None:
        kinds = (wanted.kind,) if wanted.kind else tuple(TaskKind)
        served = first_servable(catalog, settings, prompt=wanted.prompt, max_tokens=wanted.max_tokens, kinds=kinds)
        if served is None:
            raise CommandFailed("no model can be asked for: see lcp-gateway models")
        return served[0]
    resolved = resolve(wanted.model)
    offered = (kind for kind in TaskKind if catalog.offering(kind, resolved))
    kind = wanted.kind or next(offered, TaskKind.CHAT_COMPLETIONS)
    if wanted.body is None:
        return task_from_prompt(kind, wanted.model, wanted.prompt, wanted.max_tokens)
    return Task(kind=kind, model=wanted.model, body=wanted.body, stream=wanted.stream)


async def _first_quote(
    reachable: ReachableProviders, asked: Task, candidates: Sequence[Candidate], settings: Settings
) -> CheckedQuote:
    """Return the quote of the first provider that returns one, and cancel it: it is not going to be paid."""
    failure: UpstreamError | None = None
    for candidate in candidates[: settings.quote_attempts]:
        task, provider_id = candidate.adapt(asked), candidate.provider_id
        try:
            found = await reachable.upstream.request_quote(task, provider_id, settings.timeout_quote_s)
        except UpstreamError as error:
            report(f"{provider_id} returns no quote: {printable(error.message)} ({error.status})")
            failure = error
            continue
        with contextlib.suppress(UpstreamError):
            await reachable.upstream.cancel(found, "only a price was wanted", settings.cancel_timeout_s)
        return await _check_quote(task, found, reachable.catalog, settings)
    if failure is None:
        raise CommandFailed("no provider can be asked")
    raise CommandFailed("no provider returned a quote; see above") from failure


async def _check_quote(task: Task, found: Quote, catalog: Catalog, settings: Settings) -> CheckedQuote:
    from lcp_gateway.app import spending_limits  # noqa: PLC0415 - imports the whole gateway

    limits = spending_limits(settings)
    over_limit = ""
    try:
        limits.check_price(Order.of(task, request_id="", key_id="", limit_msat=None), found)
    except PriceLimitExceeded as error:
        over_limit = str(error)
    checks: Sequence[QuoteCheck] = ()
    if found.source is ProviderSource.LCP:
        network = await invoice_network(settings)
        checks = check_all(task, found, datetime.now(UTC), network=network)
    provider = catalog.peer(found.peer_id)
    return CheckedQuote(
        task=task,
        quote=found,
        max_fee_msat=limits.fee.fee_for(found),
        list_price_msat=provider.list_price_msat if provider else None,
        checks=checks,
        over_limit=over_limit,
    )


def _print(quoted: CheckedQuote) -> None:
    found = quoted.quote
    rows = [
        ("model", quoted.task.model),
        ("kind", ENDPOINT_NAMES[quoted.task.kind]),
        *(_node_rows(quoted) if found.source is ProviderSource.NODE else _peer_rows(quoted)),
        ("expires", format_time(found.expires_at)),
        ("job", found.job_id.hex()),
        ("terms hash", found.terms_hash.hex()),
    ]
    rows += [
        (f"check {check.name}", " ".join(filter(None, (_MARKS[check.ok], check.words)))) for check in quoted.checks
    ]
    rows.append(("limits", quoted.over_limit or "ok"))
    print_pairs(rows)
    typer.echo("nothing was paid" if quoted.may_be_bought else "it would NOT be bought; nothing was paid")


def _peer_rows(quoted: CheckedQuote) -> list[tuple[str, str]]:
    found = quoted.quote
    total_msat = Msat(found.price_msat + quoted.max_fee_msat)
    return [
        ("peer", found.peer_id),
        ("price", f"{found.price_msat} msat ({format_sat(found.price_msat)})"),
        ("estimated fee", f"{quoted.max_fee_msat} msat, {format_sat(total_msat)} in all"),
    ]


def _node_rows(quoted: CheckedQuote) -> list[tuple[str, str]]:
    found = quoted.quote
    price = f"{found.price_msat} msat at most ({format_sat(found.price_msat)})"
    return [
        ("node", found.peer_id),
        ("price", "free" if found.is_free else price),
        ("list price", f"{quoted.list_price_msat or 0} msat for an ordinary request"),
    ]


def _as_json(quoted: CheckedQuote) -> object:
    found = quoted.quote
    return {
        "object": "lcp.quote",
        "model": quoted.task.model,
        "task_kind": quoted.task.kind.value,
        "peer_id": found.peer_id,
        "source": found.source.value,
        "job_id": found.job_id.hex(),
        "price_msat": found.price_msat,
        "max_fee_msat": quoted.max_fee_msat,
        "list_price_msat": quoted.list_price_msat,
        "expires_at": int(found.expires_at.timestamp()),
        "terms_hash": found.terms_hash.hex(),
        "checks": [asdict(check) for check in quoted.checks],
        "over_limit": quoted.over_limit or None,
        "may_be_bought": quoted.may_be_bought,
    }


def check_all(task: Task, quote: Quote, now: datetime, *, network: str | None) -> list[QuoteCheck]:
    """Check a quote against the task's own bytes, and its invoice against the quote.

    ``now`` is aware UTC; ``network`` is the prefix that invoices must have, None where that is not known.
    """
    return list(_checks(task, quote, now, network))


def _checks(task: Task, quote: Quote, now: datetime, network: str | None) -> Iterator[QuoteCheck]:
    yield _checked(Mismatch.PROTOCOL_VERSION, quote.protocol_version in PROTOCOL_VERSIONS)
    recomputed = recompute_terms_hash(quote, task.kind, task.model, sha256(task.body).digest(), len(task.body))
    yield _checked(Mismatch.TERMS_HASH, recomputed == quote.terms_hash)
    try:
        invoice = decode(quote.payment_request)
    except InvoiceError as error:
        yield _checked(mismatch_of(error), ok=False)
        yield from (QuoteCheck(mismatch.value, None, _NOT_CHECKED) for mismatch in _INVOICE_CHECKS)
        return
    yield _checked(Mismatch.SIGNATURE, ok=True)
    found = set(
        mismatches(
            invoice,
            payee=quote.peer_id,
            price_msat=quote.price_msat,
            terms_hash=recomputed,
            quote_expiry=int(quote.expires_at.timestamp()),
            network=network,
        )
    )
    if now.timestamp() >= invoice.expires_at:
        found.add(Mismatch.EXPIRED)
    for mismatch in _INVOICE_CHECKS:
        if mismatch is Mismatch.NETWORK and network is None:
            words = f"{invoice.network}, and none is set: see network"
            yield QuoteCheck(mismatch.value, None, words)
        else:
            yield _checked(mismatch, mismatch not in found)


def _checked(mismatch: Mismatch, ok: bool) -> QuoteCheck:
    return QuoteCheck(mismatch.value, ok, "" if ok else MISMATCH_TEXTS[mismatch])
