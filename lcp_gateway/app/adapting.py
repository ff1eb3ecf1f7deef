"""How a task is changed for the provider that gets it: only where the client or the operator asked for that."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from lcp_gateway.adapters.completions import to_chat
from lcp_gateway.adapters.json_bytes import parse_json
from lcp_gateway.adapters.splice import add_fields, replace_model
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import unchanged
from lcp_gateway.routing.model_registry import ModelCard

COMPLETIONS_AS_CHAT = "completions-as-chat"
"""The name of the adapter that has a completion done by a model that chats."""

_LIMITS_OF = {
    TaskKind.CHAT_COMPLETIONS: ("max_tokens", "max_completion_tokens"),
    TaskKind.COMPLETIONS: ("max_tokens",),
    TaskKind.RESPONSES: ("max_output_tokens",),
}
"""The fields that limit the output; the first is the one that a default is written to."""


def adaptation(
    task: Task, model: str, card: ModelCard | None, *, as_chat: bool
) -> Callable[[Task], Task]:
    """Give what makes the provider's task of the one that was asked for.

    ``model`` is the provider's name for it, ``card`` what the operator says of it, ``as_chat`` that it only chats. What
    it gives is pure, holds no part of a body, and leaves a task that needs no change as it is.
    """
    steps: list[Callable[[Task], Task]] = []
    if card is not None and (
        card.default_temperature is not None or card.default_max_tokens is not None
    ):
        steps.append(partial(_with_defaults, card))
    if card is not None and card.dimensions and task.kind is TaskKind.EMBEDDINGS:
        steps.append(partial(_with_dimensions, card.dimensions))
    if model != task.model:
        steps.append(partial(_renamed, model))
    if as_chat:
        steps.append(_as_chat)
    if not steps:
        return unchanged
    return partial(_apply, tuple(steps))


def _apply(steps: tuple[Callable[[Task], Task], ...], task: Task) -> Task:
    for step in steps:
        task = step(task)
    return task


def _renamed(model: str, task: Task) -> Task:
    return replace(task, model=model, body=replace_model(task.body, model))


def _as_chat(task: Task) -> Task:
    return replace(task, kind=TaskKind.CHAT_COMPLETIONS, body=to_chat(task.body).body)


def _with_dimensions(dimensions: int, task: Task) -> Task:
    document: Any = parse_json(task.body)
    if "dimensions" in document:
        return task
    return replace(task, body=add_fields(task.body, {"dimensions": dimensions}))


def _with_defaults(card: ModelCard, task: Task) -> Task:
    limits = _LIMITS_OF.get(task.kind)
    if limits is None:
        return task
    document: Any = parse_json(task.body)
    fields: dict[str, object] = {}
    if card.default_temperature is not None and "temperature" not in document:
        fields["temperature"] = card.default_temperature
    if card.default_max_tokens is not None and not any(name in document for name in limits):
        fields[limits[0]] = card.default_max_tokens
    if not fields:
        return task
    limit = task.output_tokens or (card.default_max_tokens or 0)
    return replace(task, body=add_fields(task.body, fields), output_tokens=limit)
