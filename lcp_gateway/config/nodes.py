"""The nodes: HTTP servers that are providers, as the operator describes them."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from lcp_gateway.config import parsers
from lcp_gateway.config.addresses import parse_base_url
from lcp_gateway.config.parsers import Form, parse_list, read_by
from lcp_gateway.config.tables import ROW_CONFIG, list_of_tables

ENDPOINTS: Final = ("chat", "responses", "completions", "embeddings")

LOCAL_NODE: Final = "local"
"""The node that serves the local models: those of the settings that have a file."""

LOCAL_URL: Final = "local:"
"""Its address until it runs."""

_KEY_CHARACTERS = 4_096

# The columns that nodes have in common, however they are reached.
RequestPrice = Annotated[parsers.Count, Field(description="Price of a request, in millisatoshi.")]
InputPrice = Annotated[parsers.Count, Field(description="Price of 1,000 tokens of a request, added to it.")]
OutputPrice = Annotated[parsers.Count, Field(description="Price of 1,000 tokens of an answer, added to it.")]
MinutePrice = Annotated[parsers.Number, Field(description="Price of a minute of use in sat, added to it.")]
OutputTokens = Annotated[
    parsers.Count, Field(gt=0, description="The estimated length of an answer where a request sets no limit.")
]
RequestTimeout = Annotated[parsers.Duration, Field(gt=0, description="How long a whole request may take.")]
ModelsOwner = Annotated[parsers.Text, Field(description="The owner of its models, as clients see it.")]


def parse_endpoints(value: object) -> tuple[str, ...]:
    """Read a list of endpoints."""
    found = parse_list(value)
    if not found or not set(found) <= set(ENDPOINTS):
        raise ValueError(f"must be one or more of {', '.join(ENDPOINTS)}")
    return found


def _parse_node_url(value: object) -> str:
    return LOCAL_URL if value == LOCAL_URL else parse_base_url(value)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """An HTTP server that is a provider. Its prices by request, by token and by minute are added up.

    ``base_url`` has no slash at its end. ``api_key`` is also what ``api_key_file`` held when the settings were read.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ROW_CONFIG

    name: Annotated[parsers.NodeName, Field(description="Its name, unique among the nodes.")]
    base_url: Annotated[
        str,
        Form("URL", "URL"),
        read_by(_parse_node_url),
        Field(
            description="Where its API is; `/v1` is added where it has no path. `local:` is the server of the local models, "
            "for the node `local`."
        ),
    ]
    api_key: Annotated[parsers.BearerKey, Field(description="Its API key, sent as a bearer token.")] = field(
        default="", repr=False
    )
    api_key_file: Annotated[
        parsers.OptionalFile, Field(description="A file whose first line is that key, read once at the start.")
    ] = None
    price_per_request_msat: RequestPrice = 0
    price_per_1k_input_msat: InputPrice = 0
    price_per_1k_output_msat: OutputPrice = 0
    price_per_minute_sat: MinutePrice = 0.0
    max_output_tokens: OutputTokens = 4_096
    timeout_s: RequestTimeout = 120.0
    models: Annotated[parsers.Names, Field(description="Its models; without any, the node is asked for its list.")] = ()
    owned_by: ModelsOwner = ""
    endpoints: Annotated[
        tuple[str, ...],
        Form("list", "A,B"),
        read_by(parse_endpoints),
        Field(description=f"The endpoints that it serves, of {', '.join(ENDPOINTS)}."),
    ] = ("chat", "embeddings")
    max_connections: Annotated[
        parsers.Count, Field(gt=0, description="How many connections to it may be open at once.")
    ] = 64


def _read_node(value: object, handler: ValidatorFunctionWrapHandler) -> NodeConfig:
    if isinstance(value, NodeConfig):
        return value
    node: NodeConfig = handler(value)
    return dataclasses.replace(node, api_key=with_key_of_file(node.api_key, node.api_key_file, "api_key"))


def with_key_of_file(key: str, path: Path | None, name: str) -> str:
    """Return a key, or the first line of the file that holds it.

    Raises:
        ValueError: both are given, or the file holds no key. The message does not repeat it.
    """
    if path is None:
        return key
    if key:
        raise ValueError(f"{name} and {name}_file exclude each other")
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(_KEY_CHARACTERS)
    except UnicodeDecodeError:
        raise ValueError(f"{name}_file: {path} is not UTF-8 text") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"{name}_file: {path} cannot be read: {reason}") from None
    if not line.strip():
        raise ValueError(f"{name}_file: the first line of {path} is empty")
    try:
        return parsers.parse_bearer_key(line)
    except ValueError as error:
        raise ValueError(f"{name}_file: {path} {error}") from None


def _names_once(nodes: tuple[NodeConfig, ...]) -> tuple[NodeConfig, ...]:
    names = [node.name for node in nodes]
    if strange := [node.name for node in nodes if node.base_url == LOCAL_URL and node.name != LOCAL_NODE]:
        raise ValueError(f"{LOCAL_URL} is the address of the node {LOCAL_NODE!r}, not of {strange[0]!r}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two nodes are called {twice[0]!r}")
    return nodes


Nodes = Annotated[
    tuple[Annotated[NodeConfig, WrapValidator(_read_node)], ...],
    Form("list of tables", "JSON", NodeConfig),
    read_by(list_of_tables),
    AfterValidator(_names_once),
]
