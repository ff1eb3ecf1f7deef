"""Options of commands: a flag for every setting, the options that commands share, help in groups, and how settings are read."""

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from typer.core import TyperCommand

from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.config import ConfigError, Group, Loaded, Settings, SourceKind, Spec, load, parse_host_port, specs
from lcp_gateway.config.sources import (
    Given,
    Layer,
    file_to_read,
    from_environment,
    from_file,
    from_flags,
    from_openai_serve,
)

T = TypeVar("T")

CONFIG_OPTION = typer.Option(
    "--config", metavar="FILE", help="TOML file to read instead of the default one.", show_default=False
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


def command_app(**more: Any) -> typer.Typer:
    """Return the typer application of one command, or of a group of them."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **more)


def command_group(purpose: str) -> typer.Typer:
    """Return the application of a command that has commands of its own; without one it prints its help."""
    app = command_app(help=purpose)

    @app.callback(invoke_without_command=True)
    def _group(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(USAGE_ERROR)

    return app


def utf8_text(param: typer.CallbackParam, given: str | list[str] | None) -> Any:
    """Return a text of the command line, or all those of an option that is repeated, as they are."""
    try:
        for text in [given] if isinstance(given, str) else given or ():
            text.encode()
    except UnicodeEncodeError:
        name = param.opts[0]
        shown = name if name.startswith("-") else name.upper()
        raise CommandFailed(f"{shown}: is not UTF-8 text", exit_code=USAGE_ERROR) from None
    return given


def read_input(file: str) -> bytes:
    """Return the bytes of a file, or of standard input for "-"."""
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise CommandFailed(f"{file}: cannot be read: {error.strerror}") from None


def text_option(*flags: str, metavar: str, help: str) -> Any:  # noqa: A002 - typer's own word
    """Return an option whose text is looked up or stored."""
    return typer.Option(*flags, metavar=metavar, help=help, callback=utf8_text)


def with_parameters(
    run: Callable[..., T], command: Callable[..., Any], parameters: Iterable[inspect.Parameter]
) -> Callable[..., T]:
    """Return ``run`` under the name and help of ``command``; typer reads its options from these parameters."""
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__signature__ = inspect.Signature([*parameters])  # type: ignore[attr-defined]
    return run


def parameters_of(command: Callable[..., Any], *, without: Collection[str] = ()) -> list[inspect.Parameter]:
    """Return the parameters of a command, but those that are not options."""
    found = inspect.signature(command, eval_str=True).parameters
    return [parameter for name, parameter in found.items() if name not in without]


def setting_flags(
    groups: Collection[Group] = tuple(Group), *, also: Collection[str] = ()
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add to a command ``--config`` and a flag for every setting of ``groups``, and of those named ``also``, that is no secret.

    The command is called with ``config`` (a path or ``None``), ``flags`` (by setting, ``None`` where not given) and
    its own parameters, all by keyword.
    """
    chosen = [spec for spec in specs().values() if spec.flag and (spec.group in groups or spec.name in also)]
    takes_address = any(spec.name == "http_addr" for spec in chosen)

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        def run(**values: Any) -> int:
            flags = {spec.name: values.pop(spec.name) for spec in chosen}
            if takes_address:
                host, port = values.pop("host"), values.pop("port")
                if host is not None or port is not None:
                    flags["http_addr"] = _address(host, port, flags["http_addr"], values.get("config"))
            return command(flags=flags, **values)

        return with_parameters(
            run,
            command,
            [
                *parameters_of(command, without=("config", "flags")),
                _keyword("config", Annotated[Path | None, CONFIG_OPTION]),
                *map(_setting_parameter, chosen),
                *(_ADDRESS_PARAMETERS if takes_address else ()),
            ],
        )

    return decorate


def named_flags(table: Iterable[tuple[str, str, str, str]]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add to a command the flags of some settings under names of its own.

    ``table`` holds each setting's name, its flag here, the form of its value (empty for a switch), and its help. The command
    is called with ``flags``, by setting, and its own parameters.
    """
    rows = tuple(table)

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        def run(**values: Any) -> int:
            flags = {setting: values.pop(setting) for setting, *_ in rows}
            return command(flags=flags, **values)

        parameters = []
        for setting, flag, metavar, words in rows:
            long = setting.replace("_", "-")
            if metavar:
                option = typer.Option(*dict.fromkeys((f"--{flag}", f"--{long}")), metavar=metavar, help=words)
                annotation: Any = Annotated[str | None, option]
            else:
                names = (f"--{flag}/--no-{flag}", f"--{long}/--no-{long}")
                option = typer.Option(*names, help=words, show_default=False)
                annotation = Annotated[bool | None, option]
            parameters.append(_keyword(setting, annotation))
        own = parameters_of(command, without=("flags",))
        return with_parameters(run, command, [*own, *parameters])

    return decorate


def load_settings(
    flags: Mapping[str, object], config: Path | None, *, flag_names: Mapping[str, str] = MappingProxyType({})
) -> Loaded:
    """Load the configuration of this process."""
    try:
        return load(flags=flags, environ=os.environ, config_path=config, flag_names=flag_names)
    except ConfigError as error:
        raise CommandFailed(*error.problems, exit_code=USAGE_ERROR) from None


@dataclass(frozen=True, slots=True)
class PartialSettings:
    """Settings of which only those asked for are as they were given; the others have their defaults.

    ``given`` are the names of those that were given at all. ``problems`` are those of them that could not be used, or
    the file that could not be read, in words.
    """

    settings: Settings
    given: frozenset[str]
    problems: tuple[str, ...]


def partial_settings(
    names: Collection[str], *, flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None
) -> PartialSettings:
    """Read the settings of these names from where ``serve`` reads them, and no others.

    For commands that look for a gateway and do not run one: a running gateway can be found and stopped even if
    the file that it was started with has changed, and from a shell that does not have its keys.

    Raises:
        ValueError: a flag cannot be used; the message says why.
    """
    known = specs()
    path, named_by = file_to_read(environ, config)
    file = from_file(path, known, named_by=named_by) if path is not None else Layer()
    found: dict[str, Given] = {}
    for layer in (file, from_openai_serve(environ, known), from_environment(environ, known), from_flags(flags, known)):
        found |= {name: given for name, given in layer.given.items() if name in names}
    # A file of which nothing could be read might have said where to look.
    problems = list(file.problems) if not file.given else []
    values: dict[str, object] = {}
    for name, given in found.items():
        try:
            values[name] = getattr(Settings.model_validate({name: given.value}), name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            problem = f"{given.source}: {reason}"
            if given.source.kind is SourceKind.FLAG:
                raise ValueError(problem) from None
            problems.append(problem)
    return PartialSettings(Settings.model_validate(values), frozenset(values), tuple(problems))


_COMMON_FLAGS = (
    *("config", "host", "port", "http_addr", "embedded", "lcpd_grpc_addr", "auth"),
    *("max_total_msat", "budget_hour_msat", "budget_day_msat", "journal_url"),
    *("log_level", "verbose", "json"),
)
_COLUMNS = 100
_FIRST, _OTHERS = "Common flags", "Options"
_HINT = (
    "Every flag is also a setting of the environment and the configuration file: see lcp-gateway config show and "
    "docs/configuration.md. Secrets have no flag."
)


class GroupedHelp(TyperCommand):
    """A command with a flag for every setting: its help has the common flags first, the rest by their subject."""

    def __init__(self, name: str | None, **more: Any) -> None:
        settings = {"max_content_width": _COLUMNS, **(more.pop("context_settings", None) or {})}
        super().__init__(name, **{**more, "context_settings": settings, "epilog": _HINT})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the flags, each under the heading of its group."""
        sections: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in (_FIRST, *Group, _OTHERS)}
        known = specs()
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name = parameter.name or ""
            if name in _COMMON_FLAGS:
                heading: str = _FIRST
            else:
                heading = known[name].group if name in known else _OTHERS
            sections[heading][name] = record
        first = sections[_FIRST]
        sections[_FIRST] = {name: first[name] for name in _COMMON_FLAGS if name in first}
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl([*records.values()])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _setting_parameter(spec: Spec) -> inspect.Parameter:
    if spec.is_switch:
        flag = f"{spec.flag}/--no-{spec.flag.removeprefix('--')}"
        switch = typer.Option(flag, help=spec.description, show_default=False)
        return _keyword(spec.name, Annotated[bool | None, switch])
    option = typer.Option(spec.flag, help=spec.description, metavar=spec.form.metavar, show_default=False)
    return _keyword(spec.name, Annotated[str | None, option])


_ADDRESS_PARAMETERS = (
    _keyword(
        "host",
        Annotated[
            str | None,
            text_option(
                metavar="HOST", help="The host of `http_addr` alone: an address of this machine, or 0.0.0.0 for all."
            ),
        ],
    ),
    _keyword(
        "port",
        Annotated[int | None, typer.Option(metavar="PORT", min=0, max=65_535, help="The port of `http_addr` alone.")],
    ),
)


def _address(host: str | None, port: int | None, typed: str | None, config: Path | None) -> str:
    """Put the address together: the part that neither flag names stays as it is configured."""
    if typed is not None:
        raise CommandFailed(
            "--http-addr says host and port already: leave --host and --port out", exit_code=USAGE_ERROR
        )
    known = partial_settings({"http_addr"}, flags={}, environ=os.environ, config=config)
    configured = parse_host_port(known.settings.http_addr)
    name = configured.host if host is None else host.strip().removeprefix("[").removesuffix("]")
    written = f"[{name}]" if ":" in name else name
    address = f"{written}:{configured.port if port is None else port}"
    try:
        parse_host_port(address)
    except ValueError as error:
        flag = "--port" if host is None else "--host"
        raise CommandFailed(f"{flag}: {error}", exit_code=USAGE_ERROR) from None
    return address
