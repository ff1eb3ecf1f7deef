"""``lcp-gateway config``: show the settings in force, check a configuration, and write a file to begin with."""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.options import (
    CONFIG_OPTION,
    GroupedHelp,
    JsonOption,
    command_group,
    load_settings,
    setting_flags,
)
from lcp_gateway.cli.output import (
    RUNTIME_ERROR,
    USAGE_ERROR,
    CommandFailed,
    print_json,
    print_table,
    printable,
    report,
)
from lcp_gateway.config import ConfigError, Loaded, Spec, load, specs, written
from lcp_gateway.config.docs import sample_file
from lcp_gateway.config.sources import (
    CONFIG_VARIABLE,
    default_file,
    file_to_read,
    from_environment,
    from_file,
    from_openai_serve,
    from_openclaw,
)


@setting_flags()
def show(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Print every setting in force and where it came from. Takes the flags of `serve`."""
    loaded = load_settings(flags, config)
    report(*(f"warning: {warning}" for warning in loaded.warnings))
    if json:
        print_json(_as_json(loaded))
        return 0
    print_table(
        ("setting", "value", "source"),
        (
            (name, written(_shown(loaded, spec)), str(loaded.source_of(name)))
            for name, spec in specs().items()
        ),
    )
    return 0


def _shown(loaded: Loaded, spec: Spec) -> object:
    return spec.shown(getattr(loaded.settings, spec.name))


def _as_json(loaded: Loaded) -> object:
    settings = {}
    for name, spec in specs().items():
        value = _shown(loaded, spec)
        source = loaded.source_of(name)
        settings[name] = {
            "value": str(value) if isinstance(value, Path) else value,
            "source": source.kind.value,
            "where": source.where,
        }
    return {
        "config_file": str(loaded.config_file) if loaded.config_file else None,
        "settings": settings,
        "warnings": list(loaded.warnings),
    }


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


_PRIVATE_FOLDER = 0o700


def generate(
    *,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Where to, instead of the usual place."),
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Print it, and write no file.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also over a file that is there.")] = False,
) -> int:
    """Write a configuration file with every setting and its default, commented out. Only you can read it."""
    if stdout:
        if config is not None or force:
            raise CommandFailed("--stdout writes no file", exit_code=USAGE_ERROR)
        sys.stdout.write(sample_file())
        return 0
    path = _place(config)
    shown = printable(str(path))
    try:
        _write(path, sample_file(), force=force)
    except FileExistsError:
        raise CommandFailed(f"{shown} is there already; --force overwrites it") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CommandFailed(f"{shown}: cannot be written: {reason}") from None
    typer.echo(f"written: {shown}")
    return 0


def _place(chosen: Path | None) -> Path:
    """Give the file that ``serve`` would read."""
    if chosen is None:
        named = os.environ.get(CONFIG_VARIABLE, "")
        chosen = Path(named) if named.strip() else default_file(os.environ)
    # Where the name is a link, the file that it leads to is meant, not the link.
    return Path(os.path.realpath(chosen.expanduser()))


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file that is there as a whole or not at all, and that only its owner can read.

    Raises:
        FileExistsError: there is one, and ``force`` was not given.
        OSError: it cannot be written.
    """
    if path.exists():
        if not force:
            raise FileExistsError
        if not path.is_file():
            # A rename would take the place of a device or a pipe as well.
            raise OSError(errno.EINVAL, "it is no file")
    _make_folder(path.parent)
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
            # Unlike a rename, a link never takes the place of a file that came in the meantime.
            path.hardlink_to(temporary)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _make_folder(folder: Path) -> None:
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(_PRIVATE_FOLDER, exist_ok=True)


app = command_group("Look at the configuration, check it, and write a file to begin with.")
app.command(cls=GroupedHelp)(show)
for command in (check, generate):
    app.command()(command)
