"""``lcp-gateway config``: show the settings in force, check a configuration, and generate a file."""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.options import CONFIG_OPTION, GroupedHelp, JsonOption, command_group, load_settings, setting_flags
from lcp_gateway.cli.output import RUNTIME_ERROR, USAGE_ERROR, CommandFailed, print_json, print_table, printable, report
from lcp_gateway.cli.service.instances import make_folder
from lcp_gateway.config import ConfigError, load, specs, written
from lcp_gateway.config.docs import sample_file
from lcp_gateway.config.paths import default_file
from lcp_gateway.config.sources import (
    CONFIG_VARIABLE,
    file_to_read,
    from_environment,
    from_file,
    from_openai_serve,
    from_openclaw,
)

app = command_group("Show the configuration, check it, and generate a file.")


@app.command(cls=GroupedHelp)
@setting_flags()
def show(config: Path | None, flags: Mapping[str, object], *, json: JsonOption = False) -> int:
    """Print every setting in force and where it came from. Takes the flags of `serve`."""
    loaded = load_settings(flags, config)
    report(*(f"warning: {warning}" for warning in loaded.warnings))
    shown = {name: spec.shown(getattr(loaded.settings, name)) for name, spec in specs().items()}
    if not json:
        rows = ((name, written(value), str(loaded.source_of(name))) for name, value in shown.items())
        print_table(("setting", "value", "source"), rows)
        return 0
    settings = {}
    for name, value in shown.items():
        source = loaded.source_of(name)
        settings[name] = {
            "value": str(value) if isinstance(value, Path) else value,
            "source": source.kind.value,
            "where": source.where,
        }
    print_json(
        {
            "config_file": str(loaded.config_file) if loaded.config_file else None,
            "settings": settings,
            "warnings": list(loaded.warnings),
        }
    )
    return 0


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The default one if left out.", show_default=False)
    ] = None,
    *,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
    no_environment: Annotated[
        bool, typer.Option("--no-environment", help="Read the file alone, as for another machine.")
    ] = False,
) -> int:
    """List every problem of a configuration file and the environment, a line each.

    Ends with 1 when there is one, and with 2 when there is a file and it cannot be read.
    """
    if file is not None and config is not None and file != config:
        raise CommandFailed(f"{file} and --config {config}: name one file to check", exit_code=USAGE_ERROR)
    path, _ = file_to_read(os.environ, file or config)
    environ: Mapping[str, str] = {} if no_environment else os.environ
    if path is not None:
        _check_readable(path)
    elif no_environment:
        raise CommandFailed(f"there is no file at {default_file(os.environ)}: nothing to check", exit_code=USAGE_ERROR)
    for line in _sources(path, environ):
        typer.echo(printable(line))
    try:
        loaded = load(flags={}, environ=environ, config_path=path)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(printable(f"wrong: {problem}"))
        return RUNTIME_ERROR
    for warning in loaded.warnings:
        typer.echo(printable(f"warning: {warning}"))
    typer.echo("it can be used")
    return 0


def _check_readable(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CommandFailed(f"{path}: the file is not UTF-8 text", exit_code=USAGE_ERROR) from None
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be read: {_reason(error)}", exit_code=USAGE_ERROR) from None


def _sources(path: Path | None, environ: Mapping[str, str]) -> Iterable[str]:
    """List the sources that count, and the settings of the file that another one overrides."""
    known = specs()
    if path is None:
        yield f"file: none, there is none at {default_file(os.environ)}"
    else:
        yield f"file: {path}"
    # The weakest first, so that the strongest remains.
    overriding = (
        from_openclaw(environ, known).given
        | from_openai_serve(environ, known).given
        | from_environment(environ, known).given
    )
    if overriding:
        names = sorted(str(found.source) for found in overriding.values())
        yield f"environment: {', '.join(names)}"
    if path is not None:
        for name in sorted(from_file(path, known).given.keys() & overriding.keys()):
            yield f"not used: {name} of the file, since {overriding[name].source} takes precedence"


@app.command()
def generate(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The file to write, instead of the default one.")
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Print it, and write no file.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> int:
    """Write a configuration file with every setting and its default, commented out. Only you can read it."""
    if stdout:
        if config is not None or force:
            raise CommandFailed("--stdout writes no file", exit_code=USAGE_ERROR)
        sys.stdout.write(sample_file())
        return 0
    if config is None:
        # The file that ``serve`` would read.
        named = os.environ.get(CONFIG_VARIABLE, "")
        config = Path(named) if named.strip() else default_file(os.environ)
    # Where the name is a link, the file that it leads to is meant, not the link.
    path = Path(os.path.realpath(config.expanduser()))
    shown = printable(str(path))
    try:
        _write(path, sample_file(), force=force)
    except FileExistsError:
        raise CommandFailed(f"{shown} exists already; --force overwrites it") from None
    except OSError as error:
        raise CommandFailed(f"{shown}: cannot be written: {_reason(error)}") from None
    typer.echo(f"written: {shown}")
    return 0


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file as a whole or not at all, which only its owner can read.

    Raises:
        FileExistsError: there is one, and ``force`` was not given.
        OSError: it cannot be written.
    """
    if path.exists():
        if not force:
            raise FileExistsError
        if not path.is_file():
            # A rename would replace a device or a pipe as well.
            raise OSError(errno.EINVAL, "it is not a regular file")
    make_folder(path.parent)
    # A file that mkstemp makes is its owner's alone.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        if force:
            temporary.replace(path)
        else:
            # Unlike a rename, a link never replaces a file that was made in the meantime.
            path.hardlink_to(temporary)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
