"""``lcp-gateway models``: what the peers offer right now."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.daemon import advice, describe, once_up, opened
from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.output import print_json, print_table
from lcp_gateway.cli.program import CommandFailed
from lcp_gateway.cli.serve import daemon_for
from lcp_gateway.config import Group, Settings
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.task import TaskKind
from lcp_gateway.routing.catalog import Provider

KIND_WORDS: Mapping[TaskKind, str] = {
    TaskKind.CHAT_COMPLETIONS: "chat",
    TaskKind.RESPONSES: "responses",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model at one peer. Peers that are not ready are known by ``model_map`` only, and then offer no kinds."""

    model: str
    kinds: tuple[TaskKind, ...]
    peer_id: str
    ready: bool


@app.command()
@setting_flags((Group.DAEMON, Group.ROUTING, Group.NODE))
def models(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Print the models that peers offer, and whether the peers that models are mapped to are ready."""
    with daemon_for(load_or_complain(flags, config).settings) as settings:
        try:
            providers = asyncio.run(_providers(settings))
        except UpstreamError as error:
            raise CommandFailed(f"{describe(error, settings)}: {advice(error, settings)}") from None
    found = offers(providers, settings.model_map)
    if json:
        print_json([_as_json(offer) for offer in found])
    else:
        rows = [
            (
                offer.model,
                ", ".join(KIND_WORDS[kind] for kind in offer.kinds) or "?",
                offer.peer_id,
                "yes" if offer.ready else "no",
            )
            for offer in found
        ]
        print_table(("model", "kinds", "peer", "ready"), rows)
    return 0


def offers(providers: Sequence[Provider], model_map: Mapping[str, str]) -> tuple[Offer, ...]:
    """List every model at every peer, sorted by model, with mapped peers that are missing as not ready."""
    found: dict[tuple[str, str], list[TaskKind]] = {}
    for provider in providers:
        for kind, names in provider.models.items():
            for name in names:
                found.setdefault((name, provider.peer_id), []).append(kind)
    ready = {provider.peer_id for provider in providers}
    for name, peer_id in model_map.items():
        found.setdefault((name, peer_id), [])
    return tuple(
        Offer(name, tuple(kinds), peer_id, peer_id in ready)
        for (name, peer_id), kinds in sorted(found.items(), key=lambda item: item[0][0])
    )


async def _providers(settings: Settings) -> tuple[Provider, ...]:
    async with opened(settings) as upstream:
        return await once_up(settings, upstream.list_peers)


def _as_json(offer: Offer) -> object:
    return {
        "model": offer.model,
        "kinds": [KIND_WORDS[kind] for kind in offer.kinds],
        "peer_id": offer.peer_id,
        "ready": offer.ready,
    }
