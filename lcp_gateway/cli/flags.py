"""Flags for settings, made from the settings' own specs, and the loading that the commands share."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from lcp_gateway.cli.options import a_text
from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.some_settings import some_settings
from lcp_gateway.config import ConfigError, Group, Loaded, Spec, load, parse_host_port, specs

CONFIG_OPTION = typer.Option(
    "--config",
    metavar="FILE",
    help="TOML file to read instead of the usual one.",
    show_default=False,
)


def setting_flags(
    groups: Collection[Group] = tuple(Group), *, also: Collection[str] = ()
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command ``--config`` and a flag for every setting of ``groups``, and of those named ``also``, that is no secret.

    The command is called with ``config`` (a path or ``None``), ``flags`` (by setting, ``None`` where not given) and
    its own parameters, all by keyword.
    """
    chosen = [
        spec
        for spec in specs().values()
        if spec.flag and (spec.group in groups or spec.name in also)
    ]

    def give(command: Callable[..., int]) -> Callable[..., int]:
        own = [
            parameter
            for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
            if name not in {"config", "flags"}
        ]
        takes_address = any(spec.name == "http_addr" for spec in chosen)

        def with_flags(**values: Any) -> int:
            flags = {spec.name: values.pop(spec.name) for spec in chosen}
            if takes_address:
                host, port = values.pop("host"), values.pop("port")
                if host is not None or port is not None:
                    flags["http_addr"] = _address(
                        host, port, flags["http_addr"], values.get("config")
                    )
            return command(flags=flags, **values)

        with_flags.__doc__ = command.__doc__
        with_flags.__name__ = command.__name__
        parameters = [*own, _config_parameter(), *map(_parameter, chosen)]
        if takes_address:
            parameters += _ADDRESS_PARAMETERS
        # typer reads the signature to learn the options.
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return with_flags

    return give


def load_or_complain(
    flags: Mapping[str, object],
    config: Path | None,
    *,
    flag_names: Mapping[str, str] = MappingProxyType({}),
) -> Loaded:
    """Load the configuration of this process.

    Raises:
        CommandFailed: the configuration cannot be used; one line for each problem.
    """
    try:
        return load(flags=flags, environ=os.environ, config_path=config, flag_names=flag_names)
    except ConfigError as error:
        raise CommandFailed(*error.problems, exit_code=USAGE_ERROR) from None


def _address(host: str | None, port: int | None, typed: str | None, config: Path | None) -> str:
    """Put the address together: what neither flag says stays as it is configured.

    Raises:
        CommandFailed: the whole address was given too, or the flags make no address.
    """
    if typed is not None:
        raise CommandFailed(
            "--http-addr says host and port already: leave --host and --port out",
            exit_code=USAGE_ERROR,
        )
    known = some_settings({"http_addr"}, flags={}, environ=os.environ, config=config)
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


def _config_parameter() -> inspect.Parameter:
    return _keyword("config", Annotated[Path | None, CONFIG_OPTION])


def _parameter(spec: Spec) -> inspect.Parameter:
    described = spec.description
    if spec.is_switch:
        flag = f"{spec.flag}/--no-{spec.flag.removeprefix('--')}"
        option = typer.Option(flag, help=described, show_default=False)
        return _keyword(spec.name, Annotated[bool | None, option])
    option = typer.Option(
        spec.flag,
        help=described,
        metavar=spec.form.metavar,
        show_default=False,
    )
    return _keyword(spec.name, Annotated[str | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


_ADDRESS_PARAMETERS = [
    _keyword(
        "host",
        Annotated[
            str | None,
            typer.Option(
                metavar="HOST",
                help="The host of `http_addr` alone: an address of this machine, or 0.0.0.0 for all.",
                show_default=False,
                callback=a_text,
            ),
        ],
    ),
    _keyword(
        "port",
        Annotated[
            int | None,
            typer.Option(
                metavar="PORT",
                min=0,
                max=65_535,
                help="The port of `http_addr` alone.",
                show_default=False,
            ),
        ],
    ),
]
