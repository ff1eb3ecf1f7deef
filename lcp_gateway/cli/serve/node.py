"""``lcp-gateway node``: the node alone, for tests and for a gateway elsewhere on the machine."""

from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from lcp_gateway.cli.options import CONFIG_OPTION, load_settings
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.node_process import STANDALONE_LISTEN
from lcp_gateway.cli.serve.serve import node_options

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_FLAG_NAMES = MappingProxyType(
    {
        "node_listen": "--listen",
        "node_backend": "--backend",
        "node_peers_file": "--peers",
        "node_faults": "--faults",
        "node_events_file": "--events",
        "node_tokens_per_second": "--tokens-per-second",
    }
)


@app.command()
def node(
    *,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            "--node-listen",
            metavar="ADDRESS",
            help=f"host:port or unix:/path; {STANDALONE_LISTEN} if not given.",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            "--node-backend",
            metavar="BACKEND",
            help="`echo`, or a base URL of an OpenAI-compatible server.",
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            "--peers",
            "--node-peers-file",
            metavar="FILE",
            help="TOML file that describes the peers.",
        ),
    ] = None,
    faults: Annotated[
        bool | None,
        typer.Option(
            "--faults/--no-faults",
            "--node-faults/--no-node-faults",
            help="Add a peer whose models misbehave in scripted ways.",
            show_default=False,
        ),
    ] = None,
    events: Annotated[
        str | None,
        typer.Option(
            "--events",
            "--node-events-file",
            metavar="FILE",
            help="File to append each event to, as JSON lines.",
        ),
    ] = None,
    tokens_per_second: Annotated[
        str | None,
        typer.Option(
            "--tokens-per-second",
            "--node-tokens-per-second",
            metavar="N",
            help="Pace of models that set none.",
        ),
    ] = None,
    protocol_version: Annotated[
        int, typer.Option(min=0, metavar="N", hidden=True, help="Version to claim; 0 is the usual.")
    ] = 0,
    exit_with_stdin: Annotated[
        bool, typer.Option("--exit-with-stdin", hidden=True, help="Stop when standard input ends.")
    ] = False,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
) -> int:
    """Run a node with simulated Lightning until it is told to stop. No real money moves."""
    flags = {
        "node_listen": listen,
        "node_backend": backend,
        "node_peers_file": peers,
        "node_faults": faults,
        "node_events_file": events,
        "node_tokens_per_second": tokens_per_second,
    }
    settings = load_settings(flags, config, flag_names=_FLAG_NAMES).settings
    options = node_options(settings, listen=STANDALONE_LISTEN, protocol_version=protocol_version)
    from lcp_gateway.node.compute.backend import BackendUnavailable  # noqa: PLC0415 - `node --help` needs no node
    from lcp_gateway.node.config import ConfigError  # noqa: PLC0415 - as above
    from lcp_gateway.node.server import run_forever  # noqa: PLC0415 - as above

    try:
        run_forever(options.node_config(), exit_with_stdin=exit_with_stdin)
    except ConfigError as error:
        raise CommandFailed(f"node: {error}", exit_code=USAGE_ERROR) from None
    except BackendUnavailable as error:
        raise CommandFailed(f"node: {error}") from None
    return 0
