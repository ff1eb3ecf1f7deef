"""``lcp-gateway completion``: a script by which a shell completes commands and flags, and the answers to that shell."""

import enum
import os
import sys
from pathlib import PurePath
from typing import Annotated, Any

import typer
from typer.completion import completion_init, get_completion_script  # type: ignore[attr-defined]  # where typer documents them, though it marks no export

from lcp_gateway.cli.output import COMPLETION_VARIABLE, PROGRAM, RUNTIME_ERROR, USAGE_ERROR, CommandFailed

# Not `command_app`: its module loads the settings, which the Tab key should not wait for.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Shell(enum.StrEnum):
    """The shells that are supported."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(
    shell: Annotated[
        Shell | None,
        typer.Argument(metavar="SHELL", help="The shell; the present one if left out.", show_default=False),
    ] = None,
) -> int:
    """Print a script that makes a shell complete commands and flags with the Tab key.

    For bash and zsh: eval "$(lcp-gateway completion bash)" in ~/.bashrc or ~/.zshrc, there after compinit.
    For fish: lcp-gateway completion fish > ~/.config/fish/completions/lcp-gateway.fish
    """
    script = get_completion_script(prog_name=PROGRAM, complete_var=COMPLETION_VARIABLE, shell=shell or _own_shell())
    sys.stdout.write(script + "\n")
    return 0


def _own_shell() -> Shell:
    name = PurePath(os.environ.get("SHELL", "")).name
    try:
        return Shell(name)
    except ValueError:
        raise CommandFailed(f"name the shell: {', '.join(Shell)}", exit_code=USAGE_ERROR) from None


def answer(command: Any) -> int:
    """Answer the shell that asks how its line may go on; ``command`` is the program's own. Errors are not shown."""
    completion_init()
    try:
        command.main(args=[], prog_name=PROGRAM, complete_var=COMPLETION_VARIABLE, standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else RUNTIME_ERROR
    except Exception:  # noqa: BLE001 - a traceback between prompt and cursor is of no use
        return RUNTIME_ERROR
    return 0
