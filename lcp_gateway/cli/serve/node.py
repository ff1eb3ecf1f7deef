"""``lcp-gateway node``: the node alone, for tests and for a gateway elsewhere on the machine."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

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


@app.command()
@named_flags(_FLAGS)
def node(
    flags: Mapping[str, object],
    *,
    protocol_version: Annotated[
        int,
        typer.Option(min=0, metavar="N", hidden=True, help="Version of the protocol: 2, 3, or another one to claim."),
    ] = 0,
    exit_with_stdin: Annotated[
        bool, typer.Option("--exit-with-stdin", hidden=True, help="Stop when standard input ends.")
    ] = False,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
) -> int:
    """Run a node with simulated Lightning until it is stopped. No real money moves."""
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
