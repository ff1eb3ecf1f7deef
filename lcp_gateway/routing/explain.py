"""A choice in words and numbers, for those who want to know why before they spend."""

from collections.abc import Mapping, Sequence

from lcp_gateway.purchase.order import Task
from lcp_gateway.routing.auto import Decision
from lcp_gateway.routing.scoring import Scored


def explanation(task: Task, name: str, decision: Decision) -> Mapping[str, object]:
    """Describe what ``auto`` would do; each call draws anew."""
    return {
        "object": "lcp.route",
        "endpoint": task.kind.value,
        "model": task.model,
        "resolved_model": name,
        "chosen": _document(decision.chosen, decision.reason(decision.chosen)),
        "candidates": [_document(one, decision.reason(one)) for one in decision.considered],
        "decision": decision.as_log(),
    }


def named_explanation(
    task: Task, name: str, scored: Sequence[Scored], *, by_score: bool
) -> Mapping[str, object]:
    """Describe what would be done with a model that the client named."""
    reason = "the model was named; its providers are asked " + (
        "by their score" if by_score else "in the daemon's order"
    )
    found = [_document(one, reason) for one in scored]
    return {
        "object": "lcp.route",
        "endpoint": task.kind.value,
        "model": task.model,
        "resolved_model": name,
        "chosen": found[0] if found else None,
        "candidates": found,
        "decision": None,
    }


def _document(scored: Scored, reason: str) -> Mapping[str, object]:
    provider, told = scored.entry.provider, scored.view.told()
    known_msat = scored.known_msat
    return {
        "source": provider.source.value,
        "provider": provider.peer_id,
        "model": scored.entry.model,
        "score": round(scored.score, 4),
        "reason": reason,
        "features": {name: round(value, 4) for name, value in scored.features._asdict().items()},
        "price_msat": None if known_msat is None else round(known_msat),
        "first_byte_s": told.first_byte_s,
        "tokens_per_s": told.tokens_per_s,
    }
