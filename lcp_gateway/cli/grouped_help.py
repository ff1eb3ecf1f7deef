"""Help in groups for commands that have a flag for every setting: the common flags first, the rest by their subject."""

from typing import Any

from typer.core import TyperCommand

from lcp_gateway.config import Group, specs

_COMMON = (
    *("config", "host", "port", "http_addr", "embedded", "lcpd_grpc_addr", "auth"),
    *(
        "max_total_msat",
        "budget_hour_msat",
        "budget_day_msat",
        "journal_url",
        "log_level",
        "verbose",
        "json",
    ),
)
_COLUMNS = 100
_FIRST, _OTHERS = "Common flags", "Options"
_HINT = (
    "Every flag is also a setting of the environment and the configuration file: see lcp-gateway config show and "
    "docs/configuration.md. Secrets have no flag."
)


class GroupedHelp(TyperCommand):
    """A command whose help has a heading for each group of its flags."""

    def __init__(self, name: str | None, **more: Any) -> None:
        settings = {"max_content_width": _COLUMNS, **(more.pop("context_settings", None) or {})}
        super().__init__(name, **{**more, "context_settings": settings, "epilog": _HINT})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the flags, each under the heading of its group."""
        sections: dict[str, dict[str, tuple[str, str]]] = {
            name: {} for name in (_FIRST, *Group, _OTHERS)
        }
        known = specs()
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name = parameter.name or ""
            if name in _COMMON:
                heading: str = _FIRST
            else:
                heading = known[name].group if name in known else _OTHERS
            sections[heading][name] = record
        first = sections[_FIRST]
        sections[_FIRST] = {name: first[name] for name in _COMMON if name in first}
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl([*records.values()])
