"""Requests that commands are given or make of a prompt, and the endpoint that they are for."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from lcp_gateway.cli.options import read_input
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.config import Settings
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.explicit import RoutingError, explicit_providers
from lcp_gateway.routing.route_query import ENDPOINT_NAMES

SHORT_PROMPT = "Hello"
SHORT_ANSWER_TOKENS = 16
_KINDS: Mapping[str, TaskKind] = {word: kind for kind, word in ENDPOINT_NAMES.items()}
_REQUEST = 'The request as a client would send it; "-" is standard input.'


def _body_argument(words: str) -> object:
    return typer.Argument(metavar="[BODYFILE]", help=words, show_default=False)


def _kind_option(flag: str) -> object:
    return typer.Option(flag, metavar="|".join(_KINDS), help="The endpoint that it is for.", show_default=False)


BodyArgument = Annotated[str | None, _body_argument(_REQUEST)]
BodyOrShortArgument = Annotated[str | None, _body_argument(f"{_REQUEST} A short one when left out.")]
KindOption = Annotated[str | None, _kind_option("--kind")]
EndpointOption = Annotated[str | None, _kind_option("--endpoint")]


def read_kind(flag: str, word: str | None) -> TaskKind | None:
    """Read the endpoint; None where ``flag`` was not given."""
    if word is None:
        return None
    if word not in _KINDS:
        raise CommandFailed(f"{flag}: must be {' or '.join(_KINDS)}", exit_code=USAGE_ERROR)
    return _KINDS[word]


def read_request(file: str) -> tuple[bytes, Mapping[str, Any]]:
    """Read a request from a file, or from standard input for "-"; returns its bytes and its fields."""
    raw = read_input(file)
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise CommandFailed("the request is not JSON") from None
    if not isinstance(fields, dict):
        raise CommandFailed("the request is not a JSON object")
    return raw, fields


def kind_of(fields: Mapping[str, Any]) -> TaskKind:
    """Return the endpoint that a request is for, by its fields."""
    if "messages" in fields:
        return TaskKind.CHAT_COMPLETIONS
    if "prompt" in fields:
        return TaskKind.COMPLETIONS
    if "input" in fields:
        embeds = "encoding_format" in fields or "dimensions" in fields
        return TaskKind.EMBEDDINGS if embeds else TaskKind.RESPONSES
    return TaskKind.CHAT_COMPLETIONS


def task_from_prompt(kind: TaskKind, model: str, prompt: str, max_tokens: int) -> Task:
    """Make a task of a prompt."""
    fields: dict[str, object]
    match kind:
        case TaskKind.CHAT_COMPLETIONS:
            messages = [{"role": "user", "content": prompt}]
            fields = {"messages": messages, "max_tokens": max_tokens}
        case TaskKind.RESPONSES:
            fields = {"input": prompt, "max_output_tokens": max_tokens}
        case TaskKind.COMPLETIONS:
            fields = {"prompt": prompt, "max_tokens": max_tokens}
        case TaskKind.EMBEDDINGS:
            fields = {"input": prompt}
    body = json.dumps({"model": model, **fields}, ensure_ascii=False).encode()
    return Task(kind=kind, model=model, body=body, stream=False)


def first_servable(
    catalog: Catalog,
    settings: Settings,
    *,
    prompt: str = SHORT_PROMPT,
    max_tokens: int = SHORT_ANSWER_TOKENS,
    kinds: Iterable[TaskKind] = tuple(TaskKind),
) -> tuple[Task, Sequence[Provider]] | None:
    """Return a task for the first model that the gateway would serve, and its providers, the first choice first."""
    from lcp_gateway.app import routing_rules  # noqa: PLC0415 - imports the whole gateway

    names = [*catalog.models(), *settings.model_map, *settings.model_allowlist]
    for model in dict.fromkeys(names):
        for kind in kinds:
            if catalog.models().get(model) and not catalog.offering(kind, model):
                continue
            task = task_from_prompt(kind, model, prompt, max_tokens)
            with contextlib.suppress(RoutingError):
                return task, explicit_providers(catalog, task, routing_rules(settings))
    return None
