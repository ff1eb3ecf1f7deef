"""The configuration reference and the sample file, both written from the model so that they are never outdated."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from lcp_gateway.config.setting import Group, Spec
from lcp_gateway.config.settings import specs
from lcp_gateway.config.tables import Column, columns

_HEAD = """\
# Configuration

<!-- Written by scripts/gen-docs from lcp_gateway/config/settings.py. Edits here are lost. -->

Every setting has a default, and each can be given in several ways. The first of these that names it wins:

1. a flag of `lcp-gateway serve`
2. an environment variable `LCP_GATEWAY_…`
3. an environment variable `OPENAI_SERVE_…`, as for openai-serve, which this program replaces, or one of the six
   `OPENCLAW_…` that are named below
4. a TOML file: the one after `--config`, the one that `LCP_GATEWAY_CONFIG` names, or
   `$XDG_CONFIG_HOME/lcp-gateway/config.toml` (`~/.config` where the variable is not set)
5. the default

An empty environment variable counts as unset. Unknown keys, unknown variables that begin with one of the first two prefixes,
and values that cannot be read are errors; all of them are reported at once. `lcp-gateway config show` prints the settings
in force and the source of each value.

The variables that Kubernetes and `docker --link` make for a service called `lcp-gateway` or `openai-serve` (`LCP_GATEWAY_PORT=tcp://…`,
`LCP_GATEWAY_SERVICE_HOST`, `LCP_GATEWAY_PORT_8080_TCP_ADDR` and their like) set nothing and are no errors.

`lcp-gateway config generate` writes a file with every setting, its default and its meaning, commented out. `lcp-gateway config
check [FILE]` prints all problems of a file, together with the environment as `serve` would take it, or alone with
`--no-environment` where the file is for another machine; it names the sources that it checked.

Secrets have no flag, because other users of a machine can read its command lines. Keep them in the environment or in a
file that only the gateway may read. A secret in quotes or brackets is an error (`docker run --env-file` keeps the quotes of
`LCP_GATEWAY_API_KEYS="k1"` as part of the value); blanks and line ends around it are dropped. Lists of tables and tables of tables
have no flag either, since they would not fit into one.

A running gateway takes most changes at a reload (SIGHUP, `lcp-gateway reload`); for a setting that needs a restart, its entry says
so and why. See [Reload](operations.md#reload).

## How values are written

| type | in the environment and as a flag | in TOML |
| --- | --- | --- |
| duration | seconds (`5`, `0.5`) or Go's form (`5s`, `500ms`, `1m30s`) | the same: a number or a text |
| size | bytes (`65536`) or with a unit (`64KiB`, `1MiB`, `10MB`) | the same: a number or a text |
| list | `a,b,c` | `["a", "b", "c"]` |
| map | `key=value;key=value` | a table |
| true or false | `true`, `false`, `1`, `0`, `yes`, `no`; as flags `--name` and `--no-name` | `true`, `false` |
| address | `host:port`, `:port` for all interfaces, `[::1]:port` | the same |
| gRPC address | `host:port` or `unix:/path` | the same |
| provider | a peer's id, which is 66 hexadecimal digits, or `node:NAME` for a node of the configuration | the same |
| list of tables | a JSON array of objects: `[{"name": "a", "base_url": "http://a"}]` | `[[setting]]`, once for each |
| table of tables | a JSON object of objects: `{"some-model": {"type": "chat"}}` | `[setting."some-model"]`, once for each |
| parts per million | a whole number from 0 to 1000000 | the same |
"""


def docs_markdown() -> str:
    """Return the text of docs/configuration.md."""
    by_group: dict[Group, list[Spec]] = {group: [] for group in Group}
    for spec in specs().values():
        by_group[spec.group].append(spec)
    sections = [f"## {group}\n\n" + "\n".join(map(_entry, found)) for group, found in by_group.items()]
    return _HEAD + "\n" + "\n".join(sections)


def _entry(spec: Spec) -> str:
    switch = f", `--no-{spec.flag[2:]}`" if spec.is_switch else ""
    rows = [
        ("type", spec.form.name + (" (secret)" if spec.secret else "")),
        ("default", _default(spec.default)),
        ("environment", f"`{spec.environment}`"),
        ("openai-serve", f"`{spec.openai_serve}`" if spec.openai_serve else ""),
        ("OpenClaw", f"`{spec.openclaw}`" if spec.openclaw else ""),
        ("flag", f"`{spec.flag}`{switch}" if spec.flag else ""),
        ("a change needs a restart", spec.restart),
    ]
    lines = "\n".join(f"- {label}: {text}" for label, text in rows if text)
    table = _columns(spec.form.row) if spec.form.row else ""
    return f"### `{spec.name}`\n\n{spec.description}\n\n{lines}\n{table}"


def _columns(row: type) -> str:
    lines = ["", "| key | type | default | |", "| --- | --- | --- | --- |"]
    for column in columns(row):
        default = "required" if column.required else _default(column.default)
        form = column.form.name + (" (secret)" if column.secret else "")
        lines.append(f"| `{column.name}` | {form} | {default} | {column.description} |")
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    return f"`{written(value)}`" if value not in ("", None) else "none"


def written(value: object) -> str:
    """Return a value as TOML."""
    match value:
        case None:
            return '""'
        case bool():
            return str(value).lower()
        case float():
            return str(int(value)) if value.is_integer() else f"{value:g}"
        case int():
            return str(value)
        case Mapping():
            pairs = (f"{json.dumps(key)} = {written(item)}" for key, item in value.items())
            return "{ " + ", ".join(pairs) + " }" if value else "{}"
        case tuple() | list():
            return "[" + ", ".join(map(written, value)) + "]"
        case Path() | str():
            return json.dumps(str(value), ensure_ascii=False)
        case _:
            raise TypeError(f"no written form for {type(value).__name__}")


SAMPLE_COLUMNS: Final = 100
"""The width of the prose."""

_SAMPLE_HEAD = (
    "Configuration of lcp-gateway.",
    (
        'Every setting stands here with its default. A line that begins with "#" and no blank is a setting: take the "#" away to '
        "change it. Flags and environment variables take precedence over the file. `lcp-gateway config show` prints the settings in "
        "force and their sources, `lcp-gateway config check` all problems."
    ),
    (
        'A duration is a number of seconds, or a text with units: 5, 0.5, "500ms", "1m30s". A size is a number of bytes, or '
        'a text with a unit: 65536, "64KiB", "10MB". Amounts whose name ends in _msat are in millisatoshi: 1000 are one sat.'
    ),
    "Secrets may stand here as long as no other user can read the file (chmod 600), or come from the environment.",
)
_TABLES_TITLE = "Tables"
_TABLES_WORDS = "They stand last: in TOML, all keys after a table's head belong to the table."

# The values of a table's fields that have no default, or none that makes a good example.
_EXAMPLES: Mapping[str, object] = MappingProxyType(
    {
        "nodes.name": "ollama",
        "nodes.base_url": "http://127.0.0.1:11434/v1",
        "dialin_nodes.name": "gpu-1",
        "join_backends.base_url": "http://127.0.0.1:11434/v1",
        "join_backends.price_per_request_msat": 0,
        "join_backends.price_per_1k_input_msat": 10,
        "join_backends.price_per_1k_output_msat": 50,
        "join_backends.price_per_minute_sat": 0,
        "join_backends.max_output_tokens": 4_096,
        "models.type": "chat",
        "models.context_length": 32_768,
        "models.capabilities": ("tools", "json_schema"),
        "models.default_temperature": 0.7,
        "models.default_max_tokens": 1_024,
        "models.markup_percent": 10,
        "models.markup_msat": 0,
    }
)
_EXAMPLE_NAME = "some-model"


def sample_file() -> str:
    """Return a sample file: every setting with its default, its meaning and its other names, commented out.

    It is valid TOML as it is, and with any of its settings uncommented.
    """
    plain: dict[Group, list[Spec]] = {group: [] for group in Group}
    tables: list[Spec] = []
    for spec in specs().values():
        if spec.form.row:
            tables.append(spec)
        else:
            plain[spec.group].append(spec)
    lines: list[str] = []
    for paragraph in _SAMPLE_HEAD:
        lines += [*_prose(paragraph), "#"]
    # Where a comment would go on, a blank line ends it.
    lines[-1] = ""
    for group, found in plain.items():
        elsewhere = [spec.name for spec in tables if spec.group is group]
        lines += _title(group)
        if elsewhere:
            lines += _prose(f"{' and '.join(elsewhere)} are tables: see the end of this file.")
            lines.append("")
        for spec in found:
            lines += _sample_entry(spec)
    lines += [*_title(_TABLES_TITLE), *_prose(_TABLES_WORDS), ""]
    for spec in tables:
        lines += _table(spec)
    return "\n".join(lines).rstrip() + "\n"


def _title(text: str) -> Iterator[str]:
    yield f"# {'=' * 3} {text} {'=' * (SAMPLE_COLUMNS - len(text) - 7)}"
    yield ""


def _prose(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        SAMPLE_COLUMNS,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _sample_entry(spec: Spec) -> Iterator[str]:
    yield from _about(spec)
    yield f"#{spec.name} = {written(spec.default)}"
    yield ""


def _about(spec: Spec) -> Iterator[str]:
    yield from _prose(spec.description)
    names = [spec.environment, *filter(None, (spec.openai_serve, spec.openclaw))]
    yield from _prose(f"Type: {spec.form.name}. Environment: {', '.join(names)}.")
    if spec.secret:
        yield from _prose("A secret: better in the environment, or no other user may read this file.")
    elif spec.may_hold_password:
        yield from _prose("With a password in it, it is a secret: no other user may read this file.")


def _table(spec: Spec) -> Iterator[str]:
    row = spec.form.row
    if row is None:
        return
    yield from _about(spec)
    yield from _prose("For example:")
    # A setting that starts out empty as a mapping is a table of tables, each under a name.
    named = isinstance(spec.default, Mapping)
    yield f"#[{spec.name}.{json.dumps(_EXAMPLE_NAME)}]" if named else f"#[[{spec.name}]]"
    yield from _sample_fields(spec.name, columns(row))
    yield ""


def _sample_fields(setting: str, found: Iterable[Column]) -> Iterator[str]:
    for column in found:
        example = _EXAMPLES.get(f"{setting}.{column.name}", column.default)
        words = column.description
        if column.required:
            words += " Required."
        if column.secret:
            words += " A secret."
        yield from _prose(f"{words} ({column.form.name})")
        yield f"#{column.name} = {written(example)}"
