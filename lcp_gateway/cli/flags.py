"""Flags for settings, made from the settings' own specs, and the loading that the commands share."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed
from lcp_gateway.config import ConfigError, Group, Loaded, Spec, load, specs

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

        def with_flags(**values: object) -> int:
            flags = {spec.name: values.pop(spec.name) for spec in chosen}
            return command(flags=flags, **values)

        with_flags.__doc__ = command.__doc__
        with_flags.__name__ = command.__name__
        parameters = [*own, _config_parameter(), *map(_parameter, chosen)]
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
