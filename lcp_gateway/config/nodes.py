"""The nodes: HTTP servers that are providers, as the operator describes them."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from lcp_gateway.config import parsers
from lcp_gateway.config.parsers import Form, parse_list, parse_text, read_by
from lcp_gateway.config.tables import ROW_CONFIG, list_of_tables

ENDPOINTS: Final = ("chat", "responses", "completions", "embeddings")

_DEFAULT_PATH = "/v1"
_KEY_CHARACTERS = 4_096


def parse_base_url(value: object, *, key_setting: str = "api_key") -> str:
    """Read the base URL of an OpenAI-compatible API, and give it without a slash at its end.

    ``/v1`` is put in where there is no path; a path that is there stays. No message repeats the URL, which may hold a
    key where none belongs; ``key_setting`` is where it does.

    Raises:
        ValueError: it is no such URL, or holds a user, a query or a fragment.
    """
    text = parse_text(value)
    problem = ValueError('must be a URL such as "http://127.0.0.1:11434/v1"')
    if not text.isprintable() or " " in text:
        raise problem
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise problem from None
    if parts.scheme not in {"http", "https"} or not has_host:
        raise problem
    if "@" in parts.netloc:
        raise ValueError(f"a key or a password does not belong into the URL: use {key_setting}")
    if "?" in text or "#" in text:
        raise ValueError("must be a URL without a query and without a fragment")
    path = parts.path.rstrip("/") or _DEFAULT_PATH
    return SplitResult(parts.scheme, parts.netloc, path, "", "").geturl()


def _parse_openclaw_url(value: object) -> str:
    return parse_base_url(value, key_setting="openclaw_api_key") if parse_text(value) else ""


def _parse_endpoints(value: object) -> tuple[str, ...]:
    found = parse_list(value)
    if not found or not set(found) <= set(ENDPOINTS):
        raise ValueError(f"must be one or more of {', '.join(ENDPOINTS)}")
    return found


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """An HTTP server that is a provider. All that it asks for counts together: by request, by token and by minute.

    ``base_url`` has no slash at its end. ``api_key`` is also what ``api_key_file`` held when the settings were read.
    ``timeout_s`` is for a whole request. ``models`` are asked for where none are named.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ROW_CONFIG

    name: Annotated[parsers.NodeName, Field(description="What it is called; each only once.")]
    base_url: Annotated[
        str,
        Form("URL", "URL"),
        read_by(parse_base_url),
        Field(description="Where its API is; `/v1` is put in where there is no path."),
    ]
    api_key: Annotated[
        parsers.BearerKey, Field(description="The key that it asks for, sent as a bearer token.")
    ] = field(default="", repr=False)
    api_key_file: Annotated[
        parsers.OptionalFile,
        Field(description="A file whose first line is that key, read once at the start."),
    ] = None
    price_per_request_msat: Annotated[
        parsers.Count, Field(description="What a request costs, in millisatoshi.")
    ] = 0
    price_per_1k_input_msat: Annotated[
        parsers.Count, Field(description="What 1,000 tokens of a request cost, beside that.")
    ] = 0
    price_per_1k_output_msat: Annotated[
        parsers.Count, Field(description="What 1,000 tokens of an answer cost, beside that.")
    ] = 0
    price_per_minute_sat: Annotated[
        parsers.Number, Field(description="What a minute of use costs, in sat, beside that.")
    ] = 0.0
    max_output_tokens: Annotated[
        parsers.Count,
        Field(
            gt=0, description="How long an answer is reckoned to be where a request sets no limit."
        ),
    ] = 4_096
    timeout_s: Annotated[
        parsers.Duration, Field(gt=0, description="How long a request may take.")
    ] = 120.0
    models: Annotated[
        parsers.Names, Field(description="Its models; without any it is asked for its list.")
    ] = ()
    owned_by: Annotated[
        parsers.Text, Field(description="The owner of its models, as clients see it.")
    ] = ""
    endpoints: Annotated[
        tuple[str, ...],
        Form("list", "A,B"),
        read_by(_parse_endpoints),
        Field(description=f"What it serves, of {', '.join(ENDPOINTS)}."),
    ] = ("chat", "embeddings")
    max_connections: Annotated[
        parsers.Count, Field(gt=0, description="How many connections to it may be open at once.")
    ] = 64


def _read_node(value: object, handler: ValidatorFunctionWrapHandler) -> NodeConfig:
    if isinstance(value, NodeConfig):
        return value
    node: NodeConfig = handler(value)
    if node.api_key_file is None:
        return node
    if node.api_key:
        raise ValueError("api_key and api_key_file exclude each other")
    return dataclasses.replace(node, api_key=_first_line(node.api_key_file))


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(_KEY_CHARACTERS)
    except UnicodeDecodeError:
        raise ValueError(f"api_key_file: {path} is not UTF-8 text") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"api_key_file: {path} cannot be read: {reason}") from None
    if not line.strip():
        raise ValueError(f"api_key_file: the first line of {path} is empty")
    try:
        return parsers.parse_bearer_key(line)
    except ValueError as error:
        raise ValueError(f"api_key_file: {path} {error}") from None


def _names_once(nodes: tuple[NodeConfig, ...]) -> tuple[NodeConfig, ...]:
    names = [node.name for node in nodes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two nodes are called {twice[0]!r}")
    return nodes


Nodes = Annotated[
    tuple[Annotated[NodeConfig, WrapValidator(_read_node)], ...],
    Form("list of tables", "JSON", NodeConfig),
    read_by(list_of_tables),
    AfterValidator(_names_once),
]
OpenClawUrl = Annotated[str, Form("URL", "URL"), read_by(_parse_openclaw_url)]
