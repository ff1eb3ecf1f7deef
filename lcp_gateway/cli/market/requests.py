"""Requests that commands are given or make of a prompt, and the endpoint that they are for."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lcp_gateway.cli.market.providers import KINDS
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.config import Settings
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.explicit import RoutingError, explicit_providers

SHORT_PROMPT = "Hello"
SHORT_ANSWER_TOKENS = 16
_STDIN = "-"


def read_request(file: str) -> tuple[bytes, Mapping[str, Any]]:
    """Read a request from a file, or from standard input for "-"; gives its bytes and its fields.

    Raises:
        CommandFailed: it cannot be read, or is no JSON object. Nothing of it is repeated.
    """
    raw = _read(file)
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise CommandFailed("the request is not JSON") from None
    if not isinstance(fields, dict):
        raise CommandFailed("the request is no JSON object")
    return raw, fields


def kind_of(fields: Mapping[str, Any]) -> TaskKind:
    """Tell from a request's fields which endpoint it is for."""
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
        case TaskKind.COMPLETIONS:
            request = {"model": model, "prompt": prompt, "max_tokens": max_tokens}
        case TaskKind.EMBEDDINGS:
            request = {"model": model, "input": prompt}
    body = json.dumps(request, ensure_ascii=False).encode()
    return Task(kind=kind, model=model, body=body, stream=False)


def providers_for(catalog: Catalog, task: Task, settings: Settings) -> Sequence[Provider]:
    """Give who would be asked, the first choice first, by the gateway's own rules.

    Raises:
        RoutingError: nobody would.
    """
    from lcp_gateway.app import routing_rules  # noqa: PLC0415 - imports the whole gateway

    return explicit_providers(catalog, task, routing_rules(settings))


def first_servable(
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
            task = task_from_prompt(kind, model, prompt, max_tokens)
            with contextlib.suppress(RoutingError):
                return task, providers_for(catalog, task, settings)
    return None


def _read(file: str) -> bytes:
    if file == _STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise CommandFailed(f"{file}: cannot be read: {error.strerror}") from None


_REQUEST = 'The request as a client would send it; "-" is standard input.'


def _body_argument(words: str) -> object:
    return typer.Argument(metavar="[BODYFILE]", help=words, show_default=False)


def _kind_option(flag: str) -> object:
    return typer.Option(
        flag, metavar="|".join(KINDS), help="The endpoint that it is for.", show_default=False
    )


BodyArgument = Annotated[str | None, _body_argument(_REQUEST)]
BodyOrShortArgument = Annotated[
    str | None, _body_argument(f"{_REQUEST} A short one when left out.")
]
KindOption = Annotated[str | None, _kind_option("--kind")]
EndpointOption = Annotated[str | None, _kind_option("--endpoint")]


def read_kind(flag: str, word: str | None) -> TaskKind | None:
    """Read the endpoint; none where ``flag`` was not given.

    Raises:
        CommandFailed: there is no such endpoint.
    """
    if word is None:
        return None
    if word not in KINDS:
        raise CommandFailed(f"{flag}: must be {' or '.join(KINDS)}", exit_code=USAGE_ERROR)
    return KINDS[word]
