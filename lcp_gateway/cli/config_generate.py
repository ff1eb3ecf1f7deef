"""``lcp-gateway config generate``: a configuration file with every setting in it, commented out."""

import contextlib
import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.output import plain
from lcp_gateway.config.docs import sample_file
from lcp_gateway.config.sources import CONFIG_VARIABLE, default_file

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
    shown = plain(str(path))
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
