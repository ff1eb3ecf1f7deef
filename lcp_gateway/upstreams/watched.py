"""One virtual node, and what is known of it from asking."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from lcp_gateway.routing.catalog import ModelFacts, Provider
from lcp_gateway.upstreams.node_link import HttpNode
from lcp_gateway.upstreams.node_models import ListedModel

NOT_ASKED: Final = "the node has not been asked yet"


@dataclass(frozen=True, slots=True)
class NodeState:
    """How a node stands: ``problem`` is empty while it is up, ``models`` counts those it offers."""

    up: bool
    problem: str
    models: int
    since: datetime


class Watched:
    """One node, and what is known of it."""

    def __init__(self, node: HttpNode, started: datetime) -> None:
        self.node = node
        self.state = NodeState(up=False, problem=NOT_ASKED, models=0, since=started)
        self.listed: tuple[ListedModel, ...] | None = None
        self.provider: Provider | None = None
        self.probing: asyncio.Task[None] | None = None
        self.reported = asyncio.Event()
        self.reports = 0
        self.failures = 0
        self.asked_at = -math.inf
        self.told = False

    def described_as(self, node: HttpNode) -> "Watched":
        """Give what is known of it to another description of it."""
        other = Watched(node, self.state.since)
        other.state, other.told = self.state, self.told
        other.listed, other.provider = self.listed, self.provider
        return other

    def facts_of(self, listed: Iterable[ListedModel]) -> Iterable[tuple[str, ModelFacts]]:
        """Give the facts of each model once, as it was first listed.

        Some servers give the time of the asking as the time of creation; what was told before stays, or each list would
        look like a new one.
        """
        known = {} if self.provider is None else self.provider.facts
        seen = set()
        for model in listed:
            if model.id in seen:
                continue
            seen.add(model.id)
            before = known.get(model.id)
            created = model.created if before is None else before.created
            yield model.id, ModelFacts(model.context_length, created, model.capabilities)
