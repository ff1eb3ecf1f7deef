"""The adaptation of a task to its provider: only where the client or the operator asked for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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


@dataclass(frozen=True, slots=True)
class BodyAdapters:
    """The functions over bodies that routing needs. They are injected: routing itself knows no format of bytes.

    ``to_chat`` turns the body of a completion into one of a chat, or raises ``not_adaptable``. ``clearly_exceeds`` returns
    whether a body (parsed, and as bytes) certainly has more tokens than a limit.
    """

    parse: Callable[[bytes], Any]
    replace_model: Callable[[bytes, str], bytes]
    add_fields: Callable[[bytes, Mapping[str, object]], bytes]
    to_chat: Callable[[bytes], bytes]
    not_adaptable: type[Exception]
    clearly_exceeds: Callable[[Mapping[str, Any], bytes, int], bool]


def adaptation(
    adapters: BodyAdapters, task: Task, model: str, card: ModelCard | None, *, as_chat: bool
) -> Callable[[Task], Task]:
    """Return the function that makes the provider's task of the one that was asked for.

    ``model`` is the provider's name for it, ``card`` the operator's description, ``as_chat``: the model only chats. The
    function is pure, holds no part of a body, and returns a task that needs no change as it is.
    """
    steps: list[Callable[[Task], Task]] = []
    if card is not None and (card.default_temperature is not None or card.default_max_tokens is not None):
        steps.append(partial(_with_defaults, adapters, card))
    if card is not None and card.dimensions and task.kind is TaskKind.EMBEDDINGS:
        steps.append(partial(_with_dimensions, adapters, card.dimensions))
    if model != task.model:
        steps.append(partial(_renamed, adapters, model))
    if as_chat:
        steps.append(partial(_as_chat, adapters))
    if not steps:
        return unchanged
    return partial(_apply, tuple(steps))


def _apply(steps: tuple[Callable[[Task], Task], ...], task: Task) -> Task:
    for step in steps:
        task = step(task)
    return task


def _renamed(adapters: BodyAdapters, model: str, task: Task) -> Task:
    return replace(task, model=model, body=adapters.replace_model(task.body, model))


def _as_chat(adapters: BodyAdapters, task: Task) -> Task:
    return replace(task, kind=TaskKind.CHAT_COMPLETIONS, body=adapters.to_chat(task.body))


def _with_dimensions(adapters: BodyAdapters, dimensions: int, task: Task) -> Task:
    if "dimensions" in adapters.parse(task.body):
        return task
    return replace(task, body=adapters.add_fields(task.body, {"dimensions": dimensions}))


def _with_defaults(adapters: BodyAdapters, card: ModelCard, task: Task) -> Task:
    limits = _LIMITS_OF.get(task.kind)
    if limits is None:
        return task
    document = adapters.parse(task.body)
    fields: dict[str, object] = {}
    if card.default_temperature is not None and "temperature" not in document:
        fields["temperature"] = card.default_temperature
    if card.default_max_tokens is not None and not any(name in document for name in limits):
        fields[limits[0]] = card.default_max_tokens
    if not fields:
        return task
    limit = task.output_tokens or (card.default_max_tokens or 0)
    return replace(task, body=adapters.add_fields(task.body, fields), output_tokens=limit)
