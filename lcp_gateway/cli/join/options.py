"""The settings of a node that joins, as its parts take them; and the files of one on this machine."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from lcp_gateway.cli.options import load_settings
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.service.instances import InstanceFiles, run_folder
from lcp_gateway.config import JoinBackendConfig, Loaded, Settings, local_models, may_use_proxy
from lcp_gateway.config.addresses import is_loopback, parse_gateway_url
from lcp_gateway.config.nodes import with_key_of_file
from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.node_client.options import BackendOptions, JoinOptions
from lcp_gateway.node_protocol.messages import Price, is_node_name

FLAGS = (
    ("join_name", "name", "NAME", "The node's name at the gateway; the machine's if not given."),
    ("join_token_file", "token-file", "FILE", "A file whose first line is the node's token."),
    ("join_backend", "backend", "URL", "The OpenAI-compatible server to serve; found on this machine if not given."),
    ("join_models", "models", "A,B", "The models to serve; all that the server lists if not given."),
    ("join_concurrent", "concurrent", "N", "How many requests to work on at once."),
    ("join_price_per_request_msat", "price-per-request-msat", "N", "Price of a request."),
    ("join_price_per_1k_input_msat", "price-per-1k-input-msat", "N", "Price of 1,000 tokens of a request."),
    ("join_price_per_1k_output_msat", "price-per-1k-output-msat", "N", "Price of 1,000 tokens of an answer."),
    ("join_price_per_minute_sat", "price-per-minute-sat", "N", "Price of a minute of use."),
    ("join_max_output_tokens", "max-output-tokens", "N", "The estimated length of an answer without a limit."),
    ("join_drain_s", "drain-s", "DURATION", "How long running requests may go on at the end."),
    ("join_allow_plain", "allow-plain", "", "Dial a gateway elsewhere without TLS."),
    ("state_dir", "state-dir", "FOLDER", "Where the PID file, the log and the state are kept."),
    ("log_level", "log-level", "LEVEL", "The least severe lines that are logged."),
)
"""By setting: the flag of ``join``, the form of its value (none for a switch), and its help."""

FLAG_NAMES = MappingProxyType({setting: f"--{flag}" for setting, flag, *_ in FLAGS})

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_CHARS = 40
_EMBEDDING = "embedding"
_EMBEDDING_KINDS, _TEXT_KINDS = ("embeddings",), ("chat", "completions")


@dataclass(frozen=True, slots=True)
class JoinFiles(InstanceFiles):
    """The files of one node on this machine."""

    status_file: Path


def load_join(url: str, flags: Mapping[str, object], config: Path | None) -> Loaded:
    """Load the settings; the address of the command line counts before the others.

    Raises:
        CommandFailed: they cannot be used.
    """
    given = dict(flags)
    if url:
        try:
            given["join_url"] = parse_gateway_url(url)
        except ValueError as error:
            raise CommandFailed(f"URL: {error}", exit_code=USAGE_ERROR) from None
    return load_settings(given, config, flag_names=FLAG_NAMES)


def join_options(settings: Settings, local: Sequence[BackendOptions] = ()) -> JoinOptions:
    """Return what a node joins with; ``local`` are the models that it runs itself.

    Raises:
        CommandFailed: something is missing, or the token would be shown on the way.
    """
    if not settings.join_url:
        raise CommandFailed(
            "which gateway? lcp-gateway join wss://gateway.example.com, or the setting join_url", exit_code=USAGE_ERROR
        )
    where = urlsplit(settings.join_url)
    if where.scheme == "ws" and not is_loopback(where.hostname or "") and not settings.join_allow_plain:
        raise CommandFailed(
            "ws:// shows the token to every machine on the way: use wss://, or --allow-plain in a network of your own",
            exit_code=USAGE_ERROR,
        )
    token = settings.join_token
    if settings.join_token_file is not None:
        try:
            token = with_key_of_file("", settings.join_token_file, "join_token")
        except ValueError as error:
            raise CommandFailed(str(error), exit_code=USAGE_ERROR) from None
    if not token:
        raise CommandFailed(
            "a node's token is needed: --token-file, or LCP_GATEWAY_JOIN_TOKEN in the environment",
            exit_code=USAGE_ERROR,
        )
    found = BackendOptions(
        base_url=settings.join_backend,
        api_key=settings.join_backend_api_key,
        models=settings.join_models,
        price=_usual_price(settings),
        max_output_tokens=settings.join_max_output_tokens,
    )
    backends = tuple(_backend(row, found) for row in settings.join_backends)
    return JoinOptions(
        url=settings.join_url,
        token=token,
        name=node_name(settings),
        backends=(*local, *(backends or ((found,) if settings.join_backend else ()))),
        found=found,
        concurrent=settings.join_concurrent,
        refresh_s=settings.join_refresh_s,
        drain_s=settings.join_drain_s,
        proxy=may_use_proxy(settings, settings.join_url),
    )


def node_name(settings: Settings) -> str:
    """Return the node's name: the setting, else that of the machine.

    Raises:
        CommandFailed: it is no name for a node.
    """
    name = settings.join_name
    if not name:
        name = _NOT_IN_NAMES.sub("-", platform.node()).strip("-.")[:_NAME_CHARS] or "node"
    if not is_node_name(name):
        raise CommandFailed(
            f"{name!r:.60} is no name for a node: up to 40 letters, digits, '.', '_' or '-'", exit_code=USAGE_ERROR
        )
    return name


def join_files(settings: Settings, environ: Mapping[str, str] = os.environ) -> JoinFiles:
    """Return the files of a node with these settings."""
    folder, stem = run_folder(settings, environ), f"node-{node_name(settings)}"
    return JoinFiles(folder / f"{stem}.pid", folder / f"{stem}.log", folder / f"{stem}.status")


def local_backends(settings: Settings, base_url: str, api_key: str) -> tuple[BackendOptions, ...]:
    """Return the models that this machine runs itself (``[models."x"] path`` or ``hf_repo``), as served at this address."""
    found: dict[bool, list[str]] = {}
    for name, model in local_models(settings).items():
        found.setdefault(model.type == _EMBEDDING, []).append(name)
    usual = BackendOptions(
        base_url=base_url,
        api_key=api_key,
        price=_usual_price(settings),
        max_output_tokens=settings.join_max_output_tokens,
    )
    return tuple(
        replace(usual, models=tuple(names), kinds=_EMBEDDING_KINDS if embeds else _TEXT_KINDS)
        for embeds, names in found.items()
    )


def _usual_price(settings: Settings) -> Price:
    return Price(
        settings.join_price_per_request_msat,
        settings.join_price_per_1k_input_msat,
        settings.join_price_per_1k_output_msat,
        round(settings.join_price_per_minute_sat * MSAT_PER_SAT),
    )


def _backend(row: JoinBackendConfig, usual: BackendOptions) -> BackendOptions:
    price = usual.price
    return BackendOptions(
        base_url=row.base_url,
        api_key=row.api_key,
        models=row.models,
        kinds=row.endpoints,
        concurrent=row.concurrent,
        price=Price(
            _or(row.price_per_request_msat, price.request_msat),
            _or(row.price_per_1k_input_msat, price.input_1k_msat),
            _or(row.price_per_1k_output_msat, price.output_1k_msat),
            price.minute_msat if row.price_per_minute_sat is None else round(row.price_per_minute_sat * MSAT_PER_SAT),
        ),
        max_output_tokens=_or(row.max_output_tokens, usual.max_output_tokens),
    )


def _or(own: int | None, usual: int) -> int:
    return usual if own is None else own
