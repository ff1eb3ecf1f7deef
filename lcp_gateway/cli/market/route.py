"""``lcp-gateway route``: which provider would get a request, and why. Nothing is bought, and nothing of the request is shown."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from lcp_gateway.adapters.json_bytes import parse_json
from lcp_gateway.adapters.splice import add_fields, replace_model
from lcp_gateway.cli.gateway_client import refusal
from lcp_gateway.cli.market.providers import (
    NOTHING_MEASURED,
    DirectOption,
    gateway_to_ask,
    reachable_providers,
    unmeasured_routing,
)
from lcp_gateway.cli.market.requests import (
    SHORT_ANSWER_TOKENS,
    SHORT_PROMPT,
    BodyOrShortArgument,
    EndpointOption,
    kind_of,
    read_kind,
    read_request,
    task_from_prompt,
)
from lcp_gateway.cli.options import JsonOption, command_app, load_settings, setting_flags, text_option
from lcp_gateway.cli.output import CommandFailed, print_json, print_pairs, print_table, report
from lcp_gateway.cli.serve.embedded import daemon_for
from lcp_gateway.config import Group, Settings
from lcp_gateway.purchase.order import Order, TaskKind
from lcp_gateway.routing.explicit import RoutingError
from lcp_gateway.routing.model_registry import AUTO
from lcp_gateway.routing.requirements import requirements_of
from lcp_gateway.routing.route_query import ENDPOINT_NAMES
from lcp_gateway.routing.scoring import Features

_UNKNOWN = "?"
_CHOSEN = "*"

app = command_app()


@app.command()
@setting_flags((Group.DAEMON, Group.ROUTING, Group.NODE), also=("http_addr", "timeout_quote_s"))
def route(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    body: BodyOrShortArgument = None,
    model: Annotated[str | None, text_option(metavar="MODEL", help="The model in place of the request's own.")] = None,
    endpoint: EndpointOption = None,
    direct: DirectOption = False,
    json: JsonOption = False,
) -> int:
    """Explain which provider would get a request. The running gateway is asked; without one, daemon and nodes. Nothing is paid."""
    kind, request = _request(body, model, endpoint)
    loaded = load_settings(flags, config)
    gateway = gateway_to_ask(loaded.settings, flags, direct=direct)
    if gateway is not None:
        document = gateway.explain(kind, request)
        report(f"as measured by the gateway at {gateway.url}")
    else:
        with daemon_for(loaded.settings) as settings:
            document = asyncio.run(_explain(kind, request, settings))
        report(NOTHING_MEASURED)
    if json:
        print_json(document)
    else:
        _print(document, kind, request)
    return 0


def _request(body: str | None, model: str | None, endpoint: str | None) -> tuple[TaskKind, bytes]:
    kind = read_kind("--endpoint", endpoint)
    if body is None:
        task = task_from_prompt(kind or TaskKind.CHAT_COMPLETIONS, model or AUTO, SHORT_PROMPT, SHORT_ANSWER_TOKENS)
        return task.kind, task.body
    raw, fields = read_request(body)
    if model is not None:
        raw = _with_model(raw, fields, model)
    return kind or kind_of(fields), raw


def _with_model(raw: bytes, fields: Mapping[str, Any], model: str) -> bytes:
    try:
        if "model" in fields:
            return replace_model(raw, model)
        return add_fields(raw, {"model": model})
    except ValueError:
        raise CommandFailed("the request does not name its model once and as a text") from None


async def _explain(kind: TaskKind, request: bytes, settings: Settings) -> Mapping[str, Any]:
    from lcp_gateway.http.error_mapping import map_routing_error  # noqa: PLC0415 - as above
    from lcp_gateway.http.errors import ApiError  # noqa: PLC0415 - imports the server
    from lcp_gateway.http.openai.request_body import parse_task  # noqa: PLC0415 - as above

    try:
        task = parse_task(kind, request)
        async with reachable_providers(settings) as reachable:
            order = Order.of(task, request_id="", key_id="", limit_msat=None)
            return unmeasured_routing(settings, reachable.catalog).selector.explain(order)
    except ApiError as error:
        failure = error
    except RoutingError as error:
        failure = map_routing_error(error)
    raise CommandFailed(refusal(failure.status, failure.as_object()))


def _print(document: Mapping[str, Any], kind: TaskKind, request: bytes) -> None:
    print_pairs([*_head(document, kind, request)])
    chosen, candidates = document["chosen"], document["candidates"]
    names = Features._fields
    print_table(
        ("", "provider", "model", "score", *names, "price_msat", "first_byte", "tokens/s"),
        (_cells(one, names, is_chosen=_same(one, chosen)) for one in candidates),
    )
    if chosen is not None:
        print_pairs([("reason", str(chosen["reason"]))])


def _head(document: Mapping[str, Any], kind: TaskKind, request: bytes) -> Iterator[tuple[str, str]]:
    asked, resolved = document["model"], document["resolved_model"]
    yield "endpoint", ENDPOINT_NAMES[kind]
    yield "model", asked if asked == resolved else f"{asked}, which is {resolved} here"
    decision = document["decision"]
    if decision is None:
        fields: Any = parse_json(request)
        needs = requirements_of(kind, fields, len(request))
        yield "needs", _needs(sorted(needs.capabilities), needs.tokens)
        return
    yield "needs", _needs(decision["needs"], decision["tokens"])
    weights = zip(Features._fields, decision["weights"].split(), strict=True)
    yield "weights", ", ".join(f"{name} {float(weight):.2f}" for name, weight in weights)
    considered = len(document["candidates"])
    yield "candidates", f"the best {considered} of {decision['offered']} that suit"


def _needs(capabilities: Sequence[str], tokens: int) -> str:
    return ", ".join([*capabilities, f"room for {tokens} tokens"])


def _same(one: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> bool:
    return chosen is not None and all(one[name] == chosen[name] for name in ("provider", "model"))


def _cells(one: Mapping[str, Any], names: Sequence[str], *, is_chosen: bool) -> Sequence[str]:
    features = one["features"]
    return (
        _CHOSEN if is_chosen else "",
        one["provider"],
        one["model"],
        f"{one['score']:.4f}",
        *(f"{features[name]:.2f}" for name in names),
        _UNKNOWN if one["price_msat"] is None else str(one["price_msat"]),
        _UNKNOWN if one["first_byte_s"] is None else f"{one['first_byte_s']:.2f} s",
        _UNKNOWN if one["tokens_per_s"] is None else f"{math.ceil(one['tokens_per_s'])}",
    )
