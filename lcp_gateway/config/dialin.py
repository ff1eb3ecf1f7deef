"""Nodes that dial in, on both sides: the operator's own as the gateway describes them, and the backends that a node joins with."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from lcp_gateway.config import parsers
from lcp_gateway.config.addresses import parse_base_url
from lcp_gateway.config.nodes import (
    InputPrice,
    MinutePrice,
    ModelsOwner,
    OutputPrice,
    OutputTokens,
    RequestPrice,
    RequestTimeout,
    parse_endpoints,
    with_key_of_file,
)
from lcp_gateway.config.parsers import Form, read_by
from lcp_gateway.config.tables import ROW_CONFIG, list_of_tables


@dataclass(frozen=True, slots=True)
class DialinNodeConfig:
    """A node of the operator's own that dials in. ``token`` is also what ``token_file`` held when the settings were read.

    Its prices by request, by token and by minute are added up, and hold in place of what the node asks.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ROW_CONFIG

    name: Annotated[parsers.NodeName, Field(description="Its name, unique among all nodes.")]
    token: Annotated[
        parsers.BearerKey, Field(description="The token that it dials in with; without one it cannot.")
    ] = field(default="", repr=False)
    token_file: Annotated[
        parsers.OptionalFile, Field(description="A file whose first line is that token, read once at the start.")
    ] = None
    models: Annotated[parsers.Names, Field(description="The models that it may offer; without any, all it has.")] = ()
    owned_by: ModelsOwner = ""
    max_concurrent: Annotated[
        parsers.Count, Field(description="How many requests it gets at once; 0 leaves it to the node.")
    ] = 0
    timeout_s: RequestTimeout = 120.0
    price_per_request_msat: RequestPrice = 0
    price_per_1k_input_msat: InputPrice = 0
    price_per_1k_output_msat: OutputPrice = 0
    price_per_minute_sat: MinutePrice = 0.0
    max_output_tokens: OutputTokens = 4_096


@dataclass(frozen=True, slots=True)
class JoinBackendConfig:
    """A server, or some of its models, that a node joins a gateway with. Empty prices and limits are the ``join_`` settings'."""

    __pydantic_config__: ClassVar[ConfigDict] = ROW_CONFIG

    base_url: Annotated[
        str,
        Form("URL", "URL"),
        read_by(parse_base_url),
        Field(description="Where its API is; `/v1` is added where it has no path."),
    ]
    api_key: Annotated[parsers.BearerKey, Field(description="Its API key, which never leaves this machine.")] = field(
        default="", repr=False
    )
    api_key_file: Annotated[
        parsers.OptionalFile, Field(description="A file whose first line is that key, read once at the start.")
    ] = None
    models: Annotated[
        parsers.Names, Field(description="Those of its models that are served; without any, all it lists.")
    ] = ()
    endpoints: Annotated[
        tuple[str, ...],
        Form("list", "A,B"),
        read_by(parse_endpoints),
        Field(description="The endpoints that it serves, of chat, responses, completions, embeddings."),
    ] = ("chat", "completions", "embeddings")
    concurrent: Annotated[parsers.Count, Field(description="How many requests to each model it takes at once.")] = 0
    price_per_request_msat: Annotated[
        parsers.Count | None, Form("whole number", "N"), Field(description="Price of a request, in millisatoshi.")
    ] = None
    price_per_1k_input_msat: Annotated[
        parsers.Count | None, Form("whole number", "N"), Field(description="Price of 1,000 tokens of a request.")
    ] = None
    price_per_1k_output_msat: Annotated[
        parsers.Count | None, Form("whole number", "N"), Field(description="Price of 1,000 tokens of an answer.")
    ] = None
    price_per_minute_sat: Annotated[
        parsers.Number | None, Form("number", "N"), Field(description="Price of a minute of use in sat.")
    ] = None
    max_output_tokens: Annotated[
        parsers.Count | None,
        Form("whole number", "N"),
        Field(description="The estimated length of an answer where a request sets no limit."),
    ] = None


def _read_dialin(value: object, handler: ValidatorFunctionWrapHandler) -> DialinNodeConfig:
    if isinstance(value, DialinNodeConfig):
        return value
    node: DialinNodeConfig = handler(value)
    return dataclasses.replace(node, token=with_key_of_file(node.token, node.token_file, "token"))


def _read_backend(value: object, handler: ValidatorFunctionWrapHandler) -> JoinBackendConfig:
    if isinstance(value, JoinBackendConfig):
        return value
    backend: JoinBackendConfig = handler(value)
    return dataclasses.replace(backend, api_key=with_key_of_file(backend.api_key, backend.api_key_file, "api_key"))


def _once_each(nodes: tuple[DialinNodeConfig, ...]) -> tuple[DialinNodeConfig, ...]:
    names, tokens = [node.name for node in nodes], [node.token for node in nodes if node.token]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two nodes are called {twice[0]!r}")
    if len(set(tokens)) < len(tokens):
        raise ValueError("two nodes have the same token")
    return nodes


DialinNodes = Annotated[
    tuple[Annotated[DialinNodeConfig, WrapValidator(_read_dialin)], ...],
    Form("list of tables", "JSON", DialinNodeConfig),
    read_by(list_of_tables),
    AfterValidator(_once_each),
]

JoinBackends = Annotated[
    tuple[Annotated[JoinBackendConfig, WrapValidator(_read_backend)], ...],
    Form("list of tables", "JSON", JoinBackendConfig),
    read_by(list_of_tables),
]
