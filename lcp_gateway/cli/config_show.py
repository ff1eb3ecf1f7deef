"""``lcp-gateway config show``: every setting in force and where it came from, without the secrets."""

from collections.abc import Mapping
from pathlib import Path

from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.options import JsonOption
from lcp_gateway.cli.outcome import complain
from lcp_gateway.cli.output import print_json, print_table
from lcp_gateway.config import Loaded, Spec, specs, written


@setting_flags()
def show(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Print every setting in force and where it came from. Takes the flags of `serve`."""
    loaded = load_or_complain(flags, config)
    complain(*(f"warning: {warning}" for warning in loaded.warnings))
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
