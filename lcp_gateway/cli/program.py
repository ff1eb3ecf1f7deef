"""The program: its commands, and how an error becomes a message and an exit code."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from lcp_gateway.cli.output import COMPLETION_VARIABLE, PROGRAM, RUNTIME_ERROR, CommandFailed, report

_COMMAND_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "serve": "lcp_gateway.cli.serve.serve",
        "start": "lcp_gateway.cli.service.start",
        "stop": "lcp_gateway.cli.service.stop",
        "restart": "lcp_gateway.cli.service.restart",
        "reload": "lcp_gateway.cli.service.reload",
        "status": "lcp_gateway.cli.service.status",
        "logs": "lcp_gateway.cli.service.logs",
        "node": "lcp_gateway.cli.serve.node",
        "sell": "lcp_gateway.cli.sell.sell",
        "join": "lcp_gateway.cli.join.join",
        "models": "lcp_gateway.cli.market.models",
        "route": "lcp_gateway.cli.market.route",
        "quote": "lcp_gateway.cli.market.quote",
        "receipt": "lcp_gateway.cli.books.receipts",
        "purchases": "lcp_gateway.cli.books.purchases",
        "spend": "lcp_gateway.cli.books.spend",
        "accounts": "lcp_gateway.cli.accounts.accounts",
        "keys": "lcp_gateway.cli.accounts.keys",
        "invites": "lcp_gateway.cli.accounts.invites",
        "wallet": "lcp_gateway.cli.accounts.wallet",
        "withdrawals": "lcp_gateway.cli.accounts.withdrawals",
        "nodes": "lcp_gateway.cli.accounts.nodes",
        "doctor": "lcp_gateway.cli.doctor.doctor",
        "config": "lcp_gateway.cli.config",
        "completion": "lcp_gateway.cli.completion",
    }
)

_USUAL_COMMAND = "serve"
"""The command of a command line that names none."""
_VALIDATORS_WORD = "Value error, "
"""The words that pydantic puts before some of its reasons."""
_OWN_FLAGS = frozenset({"--help", "--version"})


class _LazyGroup(typer.core.TyperGroup):
    """Imports a command's module when that command is asked for: most of start-up time is imports."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a command line that names no command as one of ``serve``."""
        first = args[0] if args else ""
        # The Tab key was pressed before a command was written.
        unfinished = not args and ctx.resilient_parsing
        if (not args or first.startswith("-")) and first not in _OWN_FLAGS and not unfinished:
            args = [_USUAL_COMMAND, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        return list(_COMMAND_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        module = _COMMAND_MODULES.get(cmd_name)
        if module is None:
            return None
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete the commands by name without importing them: the Tab key must answer at once."""
        if incomplete.startswith("-"):
            usual = self.get_command(ctx, _USUAL_COMMAND).shell_complete(ctx, incomplete)
            known = {item.value for item in usual}
            own = super().shell_complete(ctx, incomplete)
            return [item for item in own if item.value not in known] + usual
        return [_Name(name) for name in _COMMAND_MODULES if name.startswith(incomplete)]


@dataclass(frozen=True, slots=True)
class _Name:
    """A completion as typer takes it; its own class for it is private."""

    value: str
    type: str = "plain"
    help: str = ""


app = typer.Typer(
    name=PROGRAM,
    cls=_LazyGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Point any OpenAI client at it: it buys the answer over the Lightning Network. Without a command it serves.",
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from lcp_gateway.__about__ import __version__  # noqa: PLC0415 - only this flag needs it

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _secret_flag(option: str) -> str:
    """Return the advice for a flag that would hold a secret; empty for any other unknown flag."""
    from lcp_gateway.config import specs  # noqa: PLC0415 - only a mistake needs it

    asked = option.removeprefix("--").partition("=")[0].replace("-", "_")
    names = [name for name, spec in specs().items() if spec.secret and name in {asked, f"{asked}s"}]
    if not names:
        return ""
    spec = specs()[names[0]]
    return (
        f"{option}: a secret has no flag, since every user of this machine can read a command line (ps): set "
        f"{spec.environment} in the environment, or {spec.name} in a configuration file that only you can read"
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code. A failure that can be expected ends in a line, not in a traceback."""
    command = typer.main.get_command(app)
    if os.environ.get(COMPLETION_VARIABLE):
        from lcp_gateway.cli.completion import answer  # noqa: PLC0415 - only a shell asks

        return answer(command)
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = command.main(args=args, prog_name=PROGRAM, standalone_mode=False)
    except CommandFailed as error:
        report(*error.lines)
        return error.exit_code
    except typer.TyperException as error:
        if advice := _secret_flag(getattr(error, "option_name", "") or ""):
            report(advice)
            return error.exit_code
        words = " ".join(error.format_message().split()).replace(_VALIDATORS_WORD, "")
        report(f"{words} (see {PROGRAM} --help)")
        return error.exit_code
    except typer.Abort:
        return RUNTIME_ERROR
    except BrokenPipeError:
        # The reader of the output is gone, as after `| head`.
        return RUNTIME_ERROR
    return result if isinstance(result, int) else 0
