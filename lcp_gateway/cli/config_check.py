"""``lcp-gateway config check``: whether a configuration can be used, before a gateway is started with it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.flags import CONFIG_OPTION
from lcp_gateway.cli.outcome import RUNTIME_ERROR, USAGE_ERROR, CommandFailed
from lcp_gateway.cli.output import plain
from lcp_gateway.config import ConfigError, load, specs
from lcp_gateway.config.sources import (
    default_file,
    file_to_read,
    from_environment,
    from_file,
    from_openai_serve,
    from_openclaw,
)


def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The usual one when left out.", show_default=False),
    ] = None,
    *,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
    no_environment: Annotated[
        bool,
        typer.Option("--no-environment", help="Look at the file alone, as for another machine."),
    ] = False,
) -> int:
    """Tell all that is wrong with a configuration file and the environment, a line each.

    Ends with 1 when something is, and with 2 when there is a file and it cannot be read.
    """
    if file is not None and config is not None and file != config:
        raise CommandFailed(
            f"{file} and --config {config}: name one file to look at", exit_code=USAGE_ERROR
        )
    path, _ = file_to_read(os.environ, file or config)
    environ: Mapping[str, str] = {} if no_environment else os.environ
    if path is not None:
        _readable(path)
    elif no_environment:
        raise CommandFailed(
            f"there is no file at {default_file(os.environ)}: nothing to look at",
            exit_code=USAGE_ERROR,
        )
    for line in _looked_at(path, environ):
        typer.echo(plain(line))
    try:
        loaded = load(flags={}, environ=environ, config_path=path)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(plain(f"wrong: {problem}"))
        return RUNTIME_ERROR
    for warning in loaded.warnings:
        typer.echo(plain(f"warning: {warning}"))
    typer.echo("it can be used")
    return 0


def _readable(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CommandFailed(f"{path}: the file is not UTF-8 text", exit_code=USAGE_ERROR) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CommandFailed(f"{path}: cannot be read: {reason}", exit_code=USAGE_ERROR) from None


def _looked_at(path: Path | None, environ: Mapping[str, str]) -> Iterable[str]:
    """Say which sources count, and which settings of the file another one beats."""
    known = specs()
    if path is None:
        yield f"file: none, {default_file(os.environ)} is not there"
    else:
        yield f"file: {path}"
    # The weakest first, so that the one that wins stays.
    beating = (
        from_openclaw(environ, known).given
        | from_openai_serve(environ, known).given
        | from_environment(environ, known).given
    )
    if beating:
        names = sorted(str(found.source) for found in beating.values())
        yield f"environment: {', '.join(names)}"
    if path is not None:
        for name in sorted(from_file(path, known).given.keys() & beating.keys()):
            yield f"not looked at: {name} of the file, for {beating[name].source} goes before it"
