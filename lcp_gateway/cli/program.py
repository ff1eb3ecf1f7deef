"""The program: which commands there are, and how what goes wrong is said and turned into an exit code."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import typer
import typer.core
import typer.main

PROGRAM = "lcp-gateway"
USAGE_ERROR = 2
RUNTIME_ERROR = 1

_COMMAND_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "serve": "lcp_gateway.cli.serve",
        "node": "lcp_gateway.cli.node",
        "models": "lcp_gateway.cli.models",
        "route": "lcp_gateway.cli.route",
        "quote": "lcp_gateway.cli.quote",
        "receipt": "lcp_gateway.cli.receipt",
        "purchases": "lcp_gateway.cli.purchases",
        "spend": "lcp_gateway.cli.spend",
        "accounts": "lcp_gateway.cli.accounts",
        "keys": "lcp_gateway.cli.keys",
        "wallet": "lcp_gateway.cli.wallet",
        "doctor": "lcp_gateway.cli.doctor",
        "config": "lcp_gateway.cli.config_show",
    }
)


class CommandFailed(Exception):
    """A command cannot do what it was asked to; each line says why, in words for the person who typed it."""

    def __init__(self, *lines: str, exit_code: int = RUNTIME_ERROR) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.exit_code = exit_code


class _LazyGroup(typer.core.TyperGroup):
    """Imports a command's module when that command is asked for: most of start-up time is imports."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        return list(_COMMAND_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        module = _COMMAND_MODULES.get(cmd_name)
        if module is None:
            return None
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    name=PROGRAM,
    cls=_LazyGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Point any OpenAI client at it: it buys the answer over the Lightning Network.",
)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from lcp_gateway.__about__ import __version__  # noqa: PLC0415 - only this flag needs it

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE_ERROR)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and give the exit code. What can be expected to fail ends in a line, not in a traceback."""
    command = typer.main.get_command(app)
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = command.main(args=args, prog_name=PROGRAM, standalone_mode=False)
    except CommandFailed as error:
        complain(*error.lines)
        return error.exit_code
    except typer.TyperException as error:
        complain(" ".join(error.format_message().split()) + f" (see {PROGRAM} --help)")
        return error.exit_code
    except typer.Abort:
        return RUNTIME_ERROR
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        return RUNTIME_ERROR
    return result if isinstance(result, int) else 0


def complain(*lines: str) -> None:
    """Write lines to standard error under the program's name."""
    for line in lines:
        sys.stderr.write(f"{PROGRAM}: {line}\n")
