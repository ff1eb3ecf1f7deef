"""POST /api/models/route: which models meet a query, and how well. Nothing is spent on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.auto import AutoChoice
from lcp_gateway.routing.measurements import Mode
from lcp_gateway.routing.model_registry import EMBEDDING
from lcp_gateway.routing.offers import Entry, Offers
from lcp_gateway.routing.preferences import SIZES, Preferences
from lcp_gateway.routing.scoring import Scored

MAX_RESULTS = 1_000
_USUAL = 5
_MAX_WORDS = 50
_FIELDS = ("providers", "min_params_b", "max_params_b", "capabilities", "prefer_size", "limit")
_KINDS = tuple(TaskKind)


class BadQuery(ValueError):
    """A field that is not known, or has the wrong type or value; ``param`` names it."""

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """The conditions of a query; None and nothing do not restrict. Sizes are in billions of parameters.

    ``providers`` are makers of models, owners, node names or ids of providers, in lower case. Models that embed are
    found by the capability ``embedding`` alone, and no others are then.
    """

    providers: frozenset[str] = frozenset()
    min_params_b: float | None = None
    max_params_b: float | None = None
    capabilities: frozenset[str] = frozenset()
    prefer_size: str | None = None
    limit: int = _USUAL


def read_query(document: Mapping[str, Any]) -> RouteQuery:
    """Read a query.

    Raises:
        BadQuery: a field is unknown or wrong.
    """
    for name in document:
        if name not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise BadQuery(f"{name:.64} is not known; the fields are {known}", name[:64], "unknown_parameter")
    least, most = _size(document, "min_params_b"), _size(document, "max_params_b")
    if least is not None and most is not None and least > most:
        raise BadQuery("min_params_b must not be more than max_params_b", "min_params_b", "invalid_value")
    size = document.get("prefer_size")
    if size is not None and size not in SIZES:
        raise BadQuery(f"prefer_size is one of {', '.join(SIZES)}", "prefer_size", "invalid_value")
    limit = document.get("limit", _USUAL)
    if limit is None:
        limit = _USUAL
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise BadQuery("limit must be a whole number", "limit", "invalid_type")
    if not 1 <= limit <= MAX_RESULTS:
        raise BadQuery(f"limit must be from 1 to {MAX_RESULTS}", "limit", "invalid_value")
    return RouteQuery(
        frozenset(word.lower() for word in _words(document, "providers")),
        least,
        most,
        frozenset(word.lower() for word in _words(document, "capabilities")),
        size,
        limit,
    )


def rank_models(query: RouteQuery, offers: Offers, auto: AutoChoice) -> Sequence[Mapping[str, object]]:
    """Return the models that match, each at its best provider, the best first."""
    entries = [entry for entry in _entries(offers) if _suits(query, entry)]
    preferences = Preferences((query.prefer_size,), size=query.prefer_size) if query.prefer_size else Preferences()
    found: dict[str, list[Scored]] = {}
    for scored in auto.rank(entries, Mode.WHOLE, preferences, len(entries)):
        found.setdefault(scored.entry.model, []).append(scored)
    return [_document(at, offers, query) for at in islice(found.values(), query.limit)]


def explain_no_match(query: RouteQuery, offers: Offers) -> Sequence[str]:
    """Return why no model matches a query: for each condition the number of models excluded, and unknown."""
    entries = [*_entries(offers)]
    if not entries:
        return ["no provider offers any model now"]
    embeds = EMBEDDING in query.capabilities
    kind = "models that embed" if embeds else "models that do not embed"
    alike = [entry for entry in entries if (entry.traits.type == EMBEDDING) is embeds]
    if not alike:
        return [f"capabilities: none of the {_models(entries)} on offer is among the {kind}"]
    reasons = []
    for name, condition in _conditions(query).items():
        failed = [entry for entry in alike if not _suits(condition, entry)]
        if not failed:
            continue
        unknown = _models([entry for entry in failed if _is_unknown(name, condition, entry)])
        words = f"{name}: {_models(failed)} of {_models(alike)} models left out"
        reasons.append(words + (f", {unknown} of them because it is not known" if unknown else ""))
    return reasons


def _conditions(query: RouteQuery) -> dict[str, RouteQuery]:
    """Take a query apart into one for each condition."""
    kind = query.capabilities & {EMBEDDING}
    plain = RouteQuery(capabilities=kind)
    found = {}
    if query.providers:
        found["providers"] = replace(plain, providers=query.providers)
    if query.min_params_b is not None:
        found["min_params_b"] = replace(plain, min_params_b=query.min_params_b)
    if query.max_params_b is not None:
        found["max_params_b"] = replace(plain, max_params_b=query.max_params_b)
    for capability in sorted(query.capabilities - {EMBEDDING}):
        found[f"capabilities ({capability})"] = replace(plain, capabilities=kind | {capability})
    return found


def _is_unknown(name: str, condition: RouteQuery, entry: Entry) -> bool:
    if name == "providers":
        return False
    if name.endswith("params_b"):
        return entry.traits.params_b is None
    return all(entry.traits.has(word) is None for word in condition.capabilities - {EMBEDDING})


def _models(entries: Sequence[Entry]) -> int:
    return len({entry.model for entry in entries})


def _entries(offers: Offers) -> Iterator[Entry]:
    seen: set[tuple[str, str]] = set()
    for kind in _KINDS:
        for entry in offers.by_kind[kind]:
            key = (entry.provider.peer_id, entry.model)
            if key not in seen:
                seen.add(key)
                yield entry


def _suits(query: RouteQuery, entry: Entry) -> bool:
    traits, provider = entry.traits, entry.provider
    if (traits.type == EMBEDDING) is not (EMBEDDING in query.capabilities):
        return False
    if query.providers:
        names = {traits.vendor, traits.owned_by, provider.owned_by, provider.node_name}
        names |= {provider.peer_id, provider.source.value}
        if not query.providers & {name.lower() for name in names if name}:
            return False
    if query.min_params_b is not None or query.max_params_b is not None:
        size = traits.params_b
        if size is None:
            return False
        if query.min_params_b is not None and size < query.min_params_b:
            return False
        if query.max_params_b is not None and size > query.max_params_b:
            return False
    return all(traits.has(capability) for capability in query.capabilities - {EMBEDDING})


def _document(at: Sequence[Scored], offers: Offers, query: RouteQuery) -> Mapping[str, object]:
    """Describe a model; ``at`` is the model at each of its providers, the best first."""
    scored = at[0]
    entry, measured = scored.entry, scored.view.measured()
    traits, provider = entry.traits, entry.provider
    # For a peer its last price, which was for a request of another size.
    asked_msat = scored.price.asked_msat
    known_msat = scored.known_msat if asked_msat is None else asked_msat
    return {
        "model": entry.model,
        "score": round(scored.score, 4),
        "why": _why(scored, query),
        "features": {name: round(value, 4) for name, value in scored.features._asdict().items()},
        "source": provider.source.value,
        "provider": provider.peer_id,
        "providers": [one.entry.provider.peer_id for one in at],
        "scores": {one.entry.provider.peer_id: round(one.score, 4) for one in at},
        "endpoints": endpoints_of(offers, entry.model),
        "params_b": traits.params_b,
        "context_length": traits.context_length or None,
        "capabilities": sorted(traits.capabilities),
        "vendor": traits.vendor or None,
        "price_msat": None if known_msat is None else round(known_msat),
        "first_byte_s": measured.first_byte_s,
        "tokens_per_s": measured.tokens_per_s,
    }


def _why(scored: Scored, query: RouteQuery) -> str:
    words = [f"{name} {value:.2f}" for name, value in scored.features._asdict().items()]
    size = scored.entry.traits.params_b
    if query.prefer_size and size:
        words.append(f"{size:g}B against {query.prefer_size}")
    if query.capabilities:
        words.append("has " + ", ".join(sorted(query.capabilities)))
    return "; ".join(words)


ENDPOINT_NAMES: Mapping[TaskKind, str] = {
    TaskKind.CHAT_COMPLETIONS: "chat",
    TaskKind.RESPONSES: "responses",
    TaskKind.COMPLETIONS: "completions",
    TaskKind.EMBEDDINGS: "embeddings",
}
"""The names of the endpoints in lists and in the configuration."""


def endpoints_of(offers: Offers, model: str) -> list[str]:
    """Return the endpoints that take a model."""
    return [ENDPOINT_NAMES[kind] for kind in offers.kinds.get(model, ())]


def _size(document: Mapping[str, Any], name: str) -> float | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadQuery(f"{name} must be a number", name, "invalid_type")
    if not 0 <= value < float("inf"):
        raise BadQuery(f"{name} must not be negative", name, "invalid_value")
    return float(value)


def _words(document: Mapping[str, Any], name: str) -> list[str]:
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadQuery(f"{name} must be an array of strings", name, "invalid_type")
    if len(value) > _MAX_WORDS:
        raise BadQuery(f"{name} must have at most {_MAX_WORDS} entries", name, "invalid_value")
    return value
