"""Requests that commands make up themselves, and who would be asked to do them."""

import contextlib
import json
from collections.abc import Iterable, Sequence

from lcp_gateway.config import Settings
from lcp_gateway.purchase.task import Task, TaskKind
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.choice import RoutingError, candidates

SHORT_PROMPT = "Hello"
SHORT_ANSWER_TOKENS = 16


def made_up(kind: TaskKind, model: str, prompt: str, max_tokens: int) -> Task:
    """Make a task of a prompt."""
    match kind:
        case TaskKind.CHAT_COMPLETIONS:
            content = [{"role": "user", "content": prompt}]
            request: dict[str, object] = {
                "model": model,
                "messages": content,
                "max_tokens": max_tokens,
            }
        case TaskKind.RESPONSES:
            request = {"model": model, "input": prompt, "max_output_tokens": max_tokens}
    body = json.dumps(request, ensure_ascii=False).encode()
    return Task(kind=kind, model=model, body=body, stream=False)


def providers_for(catalog: Catalog, task: Task, settings: Settings) -> Sequence[Provider]:
    """Give who would be asked, the first choice first, by the gateway's own rules.

    Raises:
        RoutingError: nobody would.
    """
    from lcp_gateway.app import routing_rules  # noqa: PLC0415 - imports the whole gateway

    return candidates(catalog, task, routing_rules(settings))


def first_served(
    catalog: Catalog,
    settings: Settings,
    *,
    prompt: str = SHORT_PROMPT,
    max_tokens: int = SHORT_ANSWER_TOKENS,
    kinds: Iterable[TaskKind] = tuple(TaskKind),
) -> tuple[Task, Sequence[Provider]] | None:
    """Find the first model that the gateway would serve, and make a task for it."""
    names = [*catalog.models(), *settings.model_map, *settings.model_allowlist]
    for model in dict.fromkeys(names):
        for kind in kinds:
            if catalog.models().get(model) and not catalog.offering(kind, model):
                continue
            task = made_up(kind, model, prompt, max_tokens)
            with contextlib.suppress(RoutingError):
                return task, providers_for(catalog, task, settings)
    return None
