"""``lcp-gateway node``: a node alone, over an lnd, or with simulated Lightning for tests and trials."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import typer

from lcp_gateway.cli.options import CONFIG_OPTION, command_app, load_settings, named_flags
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.embedded import node_options
from lcp_gateway.cli.serve.node_process import STANDALONE_LISTEN

app = command_app()

# By setting: its short flag here, the form of its value (none for a switch), and its help.
_FLAGS = (
    (*("node_listen", "listen", "ADDRESS"), f"host:port or unix:/path; {STANDALONE_LISTEN} if not given."),
    (*("node_backend", "backend", "BACKEND"), "`echo`, or a base URL of an OpenAI-compatible server."),
    ("node_peers_file", "peers", "FILE", "TOML file that describes the peers."),
    ("node_faults", "faults", "", "Add a peer whose models misbehave in scripted ways."),
    ("node_events_file", "events", "FILE", "File to append each event to, as JSON lines."),
    ("node_tokens_per_second", "tokens-per-second", "N", "Pace of models that set none."),
)
_FLAG_NAMES = MappingProxyType({setting: f"--{flag}" for setting, flag, *_ in _FLAGS})


_LND_VARIABLE: Final = "LCPD_LND_RPC_ADDR"


@app.command()
@named_flags(_FLAGS)
def node(
    flags: Mapping[str, object],
    *,
    lnd: Annotated[
        str | None, typer.Option("--lnd", metavar="ADDRESS", help="host:port of the lnd to run over.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="lnd's tls.cert.")] = None,
    macaroon: Annotated[
        Path | None, typer.Option("--macaroon", metavar="FILE", help="Macaroon with which the node calls lnd.")
    ] = None,
    log_format: Annotated[
        Literal["auto", "console", "json"], typer.Option("--log-format", help="Form of the log over lnd.")
    ] = "auto",
    protocol_version: Annotated[
        int,
        typer.Option(min=0, metavar="N", hidden=True, help="Version of the protocol: 2, 3, or another one to claim."),
    ] = 0,
    exit_with_stdin: Annotated[
        bool, typer.Option("--exit-with-stdin", hidden=True, help="Stop when standard input ends.")
    ] = False,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
) -> int:
    """Run a node until it is stopped: over an lnd (--lnd, and --config names the node's own file), else with simulated Lightning.

    With simulated Lightning no real money moves.
    """
    if lnd is not None or tls_cert is not None or macaroon is not None or _names_lnd(config):
        simulated = [_FLAG_NAMES[name] for name, value in flags.items() if value and name != "node_listen"]
        if simulated:
            raise CommandFailed(
                f"{simulated[0]} is a flag of the node with simulated Lightning, and an lnd is named",
                exit_code=USAGE_ERROR,
            )
        listen, version = flags["node_listen"], protocol_version or None
        return _run_over_lnd(
            config,
            {
                "lnd": {"grpc_addr": lnd, "tls_cert": _text(tls_cert), "macaroon_file": _text(macaroon)},
                "grpc": {"listen": listen, "protocol_version": version},
            },
            log_format,
        )
    settings = load_settings(flags, config, flag_names=_FLAG_NAMES).settings
    options = node_options(settings, listen=STANDALONE_LISTEN, protocol_version=protocol_version)
    from lcp_gateway.node.ports import ComputeError  # noqa: PLC0415 - `node --help` needs no node
    from lcp_gateway.node.server import run_forever  # noqa: PLC0415 - as above
    from lcp_gateway.node.toml import ConfigError  # noqa: PLC0415 - as above

    try:
        run_forever(options.node_config(), exit_with_stdin=exit_with_stdin)
    except ConfigError as error:
        raise CommandFailed(f"node: {error}", exit_code=USAGE_ERROR) from None
    except ComputeError as error:
        raise CommandFailed(f"node: {error}") from None
    return 0


def _names_lnd(config: Path | None) -> bool:
    """Return whether the environment of lcpd-grpcd or the file names an lnd."""
    if os.environ.get(_LND_VARIABLE):
        return True
    try:
        return config is not None and "lnd" in tomllib.loads(config.read_text("utf-8-sig"))
    except (OSError, ValueError):
        # It is read again, with an error that says what is wrong.
        return False


def _run_over_lnd(
    config: Path | None, given: Mapping[str, Mapping[str, Any]], log_format: Literal["auto", "console", "json"]
) -> int:
    # Imported where they are used: a node with simulated Lightning needs none of it.
    from lcp_gateway.cli.node.options import load_node_settings, store_path  # noqa: PLC0415 - as above
    from lcp_gateway.cli.node.program import run_node  # noqa: PLC0415 - as above

    flags = {
        table: kept
        for table, values in given.items()
        if (kept := {key: value for key, value in values.items() if value is not None})
    }
    settings = load_node_settings(config, flags)
    if not settings.lnd.grpc_addr:
        raise CommandFailed("node: lnd.grpc_addr: missing: name an lnd, with --lnd for example", exit_code=USAGE_ERROR)
    run_node(settings, store_path(settings), log_format)
    return 0


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
