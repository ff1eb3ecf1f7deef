"""The selection of an order's candidates: aliases, the choice that ``auto`` stands for, adapters; and its explanation."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final, Protocol

from lcp_gateway.purchase.order import SUBJECTS, Order, Task, TaskKind
from lcp_gateway.purchase.quote import Candidate, ProviderSource
from lcp_gateway.routing.adaptation import COMPLETIONS_AS_CHAT, BodyAdapters, adaptation
from lcp_gateway.routing.auto import AutoChoice, Decision, NoMatch
from lcp_gateway.routing.averages import request_size
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.explicit import (
    ContextTooLong,
    ModelNotFound,
    NoProvider,
    RoutingError,
    RoutingRules,
    describe_embedding_models,
    explicit_providers,
)
from lcp_gateway.routing.measurements import answer_mode
from lcp_gateway.routing.model_registry import ModelRegistry, Traits, is_auto
from lcp_gateway.routing.offers import Entry, Offers
from lcp_gateway.routing.preferences import Preferences, UnknownPreference, parse_preferences
from lcp_gateway.routing.requirements import requirements_of
from lcp_gateway.routing.scoring import QuoteComparison, Scored

# Named here: see purchase/execution.py.
_COMPLETIONS: Final = TaskKind.COMPLETIONS
_KNOWN_WORDS = 20
# More than these are hardly ever asked for one request.
_CANDIDATES = 5
_LOOKED_AT = 50


class CatalogSnapshots(Protocol):
    """The catalog as it is kept up to date."""

    @property
    def catalog(self) -> Catalog:
        """The last snapshot."""
        ...

    async def refresh_if_stale(self) -> Catalog:
        """Return a fresh snapshot, or the last one if none can be had."""
        ...


class Selector:
    """Returns the candidates for an order, and looks in a fresh catalog before it fails."""

    def __init__(
        self,
        catalogs: CatalogSnapshots,
        *,
        adapters: BodyAdapters,
        rules: RoutingRules,
        registry: ModelRegistry,
        auto: AutoChoice,
        available: Callable[[str], bool],
        on_decision: Callable[[Order, Decision], None] = lambda *_: None,
        on_choice: Callable[[Order, Scored, Mapping[str, int]], None] = lambda *_: None,
        draw: Callable[[], float] = random.random,  # noqa: S311 - spreads load, and hides nothing
    ) -> None:
        """``available`` returns whether a provider may be asked now.

        ``on_decision`` is called with every choice of ``auto``; ``on_choice``, once quotes are there, which candidate
        is taken and the price that each provider asks, in msat.
        """
        self._catalogs = catalogs
        self._adapters = adapters
        self._rules = rules
        self._registry = registry
        self._auto = auto
        self._available = available
        self._on_decision = on_decision
        self._on_choice = on_choice
        self._draw = draw
        self._offers: tuple[Catalog, Offers] | None = None

    async def __call__(self, order: Order) -> Sequence[Candidate]:
        """Return the candidates, the first choice first.

        Raises:
            RoutingError: there are none.
            NotAdaptable: the model only chats, and the request has an option that no chat has.
        """
        try:
            return self._choose(self._catalogs.catalog, order)
        except ContextTooLong:
            raise
        except RoutingError:
            # Perhaps the provider or the model has just appeared.
            return self._choose(await self._catalogs.refresh_if_stale(), order)

    def offers(self) -> Offers:
        """Return the offers of now."""
        return self._offers_of(self._catalogs.catalog)

    def explain(self, order: Order) -> Mapping[str, object]:
        """Describe how an order would be routed now, without effect.

        Raises:
            RoutingError: no offer meets its requirements.
        """
        catalog, task = self._catalogs.catalog, order.task
        name = self._registry.resolve(task.model)
        if is_auto(name):
            decision = self._decide(catalog, order)
            self._with_room(task, decision.ranked)
            return explanation(task, name, decision)
        wanted = replace(task, model=name)
        offers = self._offers_of(catalog)
        traits = offers.traits.get(name) or self._registry.traits(name)
        if self._is_too_long(task, traits):
            raise _too_long(task, f"the context of this model, {traits.context_length} tokens")
        found = explicit_providers(catalog, wanted, self._rules, asked_as=task.model)
        entries = [Entry(provider, name, traits) for provider in found]
        scored = list(self._auto.rank(entries, answer_mode(task), Preferences(), len(entries), request_size(task)))
        by_score = self._goes_by_score(found)
        if not by_score:
            scored.sort(key=lambda one: found.index(one.entry.provider))
        return named_explanation(task, name, scored, by_score=by_score)

    def _choose(self, catalog: Catalog, order: Order) -> Sequence[Candidate]:
        name = self._registry.resolve(order.task.model)
        if is_auto(name):
            decision = self._decide(catalog, order)
            fitting = self._with_room(order.task, decision.ranked)
            comparison = _AutoComparison(order, decision, self._on_choice)
            found = self._adaptable(
                partial(self._ordered, order.task, decision, comparison, scored, is_told=True)
                for scored in fitting
                if self._available(scored.entry.provider.peer_id)
            )
            self._on_decision(order, decision)
            return found
        return self._named(catalog, order.task, name)

    def _decide(self, catalog: Catalog, order: Order) -> Decision:
        task = order.task
        offers = self._offers_of(catalog)
        document = self._adapters.parse(task.body)
        unfit_for_chat = self._unfit_for_chat(task)
        try:
            preferences = parse_preferences(self._registry.resolve(task.model), offers.capabilities)
            return self._auto.decide(
                offers,
                task.kind,
                answer_mode(task),
                preferences,
                requirements_of(task.kind, document, len(task.body)),
                self._draw(),
                size=request_size(task),
                native=unfit_for_chat is not None,
                only=order.models,
            )
        except UnknownPreference as error:
            raise ModelNotFound(
                "after auto: only these words are known: " + ", ".join(error.known[:_KNOWN_WORDS])
            ) from None
        except NoMatch as error:
            if not catalog.providers:
                raise NoProvider("no peers are connected") from None
            if error.offered:
                raise NoProvider("every suitable provider has failed lately; try again soon") from None
            if unfit_for_chat is not None:
                raise unfit_for_chat from None
            if task.kind is TaskKind.EMBEDDINGS:
                raise ModelNotFound(describe_embedding_models(catalog)) from None
            raise ModelNotFound("no model that is offered here can serve this request") from None

    def _named(self, catalog: Catalog, task: Task, name: str) -> Sequence[Candidate]:
        wanted = task if name == task.model else replace(task, model=name)
        traits = self._offers_of(catalog).traits.get(name) or self._registry.traits(name)
        if self._is_too_long(task, traits):
            raise _too_long(task, f"the context of this model, {traits.context_length} tokens")
        found = explicit_providers(catalog, wanted, self._rules, self._available, asked_as=task.model)
        if len(found) > 1 and self._goes_by_score(found):
            offers = self._offers_of(catalog)
            entries = [Entry(provider, name, offers.traits[name]) for provider in found]
            decision = self._auto.order(entries, answer_mode(task), self._draw(), request_size(task))
            if decision is not None:
                comparison = decision.comparison()
                return self._adaptable(
                    partial(self._ordered, task, decision, comparison, scored, is_told=False)
                    for scored in decision.ranked
                )
        return self._adaptable(partial(self._candidate, task, provider, name) for provider in found)

    def _ordered(
        self, task: Task, decision: Decision, comparison: QuoteComparison, scored: Scored, *, is_told: bool
    ) -> Candidate:
        """Return a candidate of a decision; ``is_told``: with the explanation for the client, which did not choose itself."""
        candidate = self._candidate(task, scored.entry.provider, scored.entry.model)
        told = _told(decision, scored, decision.considered) if is_told else None
        return replace(candidate, routing=told, comparison=comparison, place=decision.place(scored))

    def _goes_by_score(self, found: Sequence[Provider]) -> bool:
        """Return whether scores decide. Among peers alone the daemon's order holds, as with openai-serve, by default."""
        return self._rules.by_score or any(p.source is ProviderSource.NODE for p in found)

    def _candidate(self, task: Task, provider: Provider, model: str) -> Candidate:
        # A provider that offers neither was named by the operator: it gets the kind that peers take.
        as_chat = task.kind is _COMPLETIONS and not provider.offers(TaskKind.COMPLETIONS, model)
        adapt = adaptation(self._adapters, task, model, self._registry.card(model), as_chat=as_chat)
        if as_chat:
            # A request that cannot be adapted is refused before any provider is asked.
            adapt(task)
        return Candidate(provider.peer_id, adapt, COMPLETIONS_AS_CHAT if as_chat else "")

    def _offers_of(self, catalog: Catalog) -> Offers:
        if self._offers is None or self._offers[0].providers is not catalog.providers:
            rules = self._rules
            made = Offers.of(
                catalog,
                self._registry,
                allowlist=frozenset() if rules.allow_unlisted else rules.allowlist,
                model_peers=rules.model_peers,
                default_peer_id=rules.default_peer_id,
            )
            self._offers = (catalog, made)
        return self._offers[1]

    def _is_too_long(self, task: Task, traits: Traits) -> bool:
        """Return whether a request is clearly longer than a model's context, which its provider would be paid to find out."""
        tokens = traits.context_length
        if not tokens or len(task.body) <= tokens:
            return False
        document = self._adapters.parse(task.body)
        if task.kind is TaskKind.EMBEDDINGS and not isinstance(document.get("input"), str):
            # Each of several inputs has the context for itself.
            return False
        return self._adapters.clearly_exceeds(document, task.body, tokens)

    def _with_room(self, task: Task, ranked: Sequence[Scored]) -> Sequence[Scored]:
        """Return the candidates whose context a request may fit into.

        Raises:
            ContextTooLong: there is none.
        """
        found = [one for one in ranked if not self._is_too_long(task, one.entry.traits)]
        if not found:
            longest = max(one.entry.traits.context_length for one in ranked)
            raise _too_long(task, f"the longest context of the suitable models, {longest} tokens")
        return found

    def _unfit_for_chat(self, task: Task) -> Exception | None:
        if task.kind is _COMPLETIONS:
            try:
                self._adapters.to_chat(task.body)
            except self._adapters.not_adaptable as error:
                return error
        return None

    def _adaptable(self, found: Iterable[Callable[[], Candidate]]) -> Sequence[Candidate]:
        """Make the first candidates of those that the task can be adapted to.

        Raises:
            Exception: ``not_adaptable`` of the adapters: it can be adapted to none.
            NoProvider: there is none.
        """
        fit: list[Candidate] = []
        problem: Exception | None = None
        for make in islice(found, _LOOKED_AT):
            try:
                fit.append(make())
            except self._adapters.not_adaptable as error:
                problem = error
            if len(fit) >= _CANDIDATES:
                # Before the next is looked at: to ask whether a provider is available may use up its trial.
                break
        if fit:
            return fit
        raise problem or NoProvider("every suitable provider has failed lately; try again soon")


def _too_long(task: Task, limit: str) -> ContextTooLong:
    return ContextTooLong(f"the request is longer than {limit}", SUBJECTS[task.kind])


class _AutoComparison(QuoteComparison):
    """Compares the quotes of ``auto``'s candidates, and reports the choice."""

    def __init__(
        self, order: Order, decision: Decision, on_choice: Callable[[Order, Scored, Mapping[str, int]], None]
    ) -> None:
        super().__init__(decision.considered, decision.weights)
        self._order = order.without_body()
        self._decision = decision
        self._on_choice = on_choice

    def taken(self, place: int, asked: Mapping[int, int]) -> Mapping[str, object] | None:
        """Return the explanation for the client, by the prices that were asked."""
        considered = self._decision.considered
        weighed = considered if self.is_as_expected(asked) else self.weighed(asked)
        by_provider = {considered[at].entry.provider.peer_id: price_msat for at, price_msat in asked.items()}
        self._on_choice(self._order, weighed[place], by_provider)
        return _told(self._decision, weighed[place], weighed)


def _told(decision: Decision, scored: Scored, among: Sequence[Scored]) -> dict[str, object]:
    """Return the explanation of a choice for the client."""
    provider = scored.entry.provider
    where = (
        {"source": ProviderSource.NODE.value, "node": provider.node_name}
        if provider.source is ProviderSource.NODE
        else {"source": ProviderSource.LCP.value, "peer": provider.peer_id}
    )
    return {
        **where,
        "model": scored.entry.model,
        "score": round(scored.score, 4),
        "reason": decision.reason(scored, among),
        "candidates": decision.offered,
    }


def explanation(task: Task, name: str, decision: Decision) -> Mapping[str, object]:
    """Describe the choice of ``auto``; each call makes a new draw."""
    chosen = _described(decision.chosen, decision.reason(decision.chosen))
    candidates = [_described(one, decision.reason(one)) for one in decision.considered]
    return _route(task, name, chosen, candidates, decision.as_log())


def named_explanation(task: Task, name: str, scored: Sequence[Scored], *, by_score: bool) -> Mapping[str, object]:
    """Describe the order in which the providers of a model that the client named are asked."""
    reason = "the model was named; its providers are asked " + (
        "by their score" if by_score else "in the daemon's order"
    )
    found = [_described(one, reason) for one in scored]
    return _route(task, name, found[0] if found else None, found, None)


def _route(
    task: Task,
    name: str,
    chosen: Mapping[str, object] | None,
    candidates: Sequence[Mapping[str, object]],
    decision: Mapping[str, object] | None,
) -> Mapping[str, object]:
    return {
        "object": "lcp.route",
        "endpoint": task.kind.value,
        "model": task.model,
        "resolved_model": name,
        "chosen": chosen,
        "candidates": candidates,
        "decision": decision,
    }


def _described(scored: Scored, reason: str) -> Mapping[str, object]:
    provider, measured = scored.entry.provider, scored.view.measured()
    known_msat = scored.known_msat
    return {
        "source": provider.source.value,
        "provider": provider.peer_id,
        "model": scored.entry.model,
        "score": round(scored.score, 4),
        "reason": reason,
        "features": {name: round(value, 4) for name, value in scored.features._asdict().items()},
        "price_msat": None if known_msat is None else round(known_msat),
        "first_byte_s": measured.first_byte_s,
        "tokens_per_s": measured.tokens_per_s,
    }
