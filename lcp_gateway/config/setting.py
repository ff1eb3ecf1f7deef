"""The declaration of a setting: one entry with its type, default, description, group and other names."""

import enum
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from lcp_gateway.config.addresses import without_password
from lcp_gateway.config.parsers import Form
from lcp_gateway.config.tables import REDACTED, has_secret, shown_tables

ENVIRONMENT_PREFIX = "LCP_GATEWAY_"
OPENAI_SERVE_PREFIX = "OPENAI_SERVE_"
OPENCLAW_PREFIX = "OPENCLAW_"


class Group(enum.StrEnum):
    """The sections of the configuration reference, in its order."""

    HTTP = "Serving HTTP"
    DAEMON = "The daemon"
    ROUTING = "Models and providers"
    TRUST = "Quotes and trust in peers"
    MONEY = "Money"
    ACCOUNTS = "Access and accounts"
    CONSOLE = "The web console"
    RATES = "Rates"
    ANSWERS = "Answers and retries"
    STORED = "Stored responses and completions"
    LND = "lnd"
    LIMITS = "Limits and time-outs"
    TELEMETRY = "Logs, metrics and traces"
    BACKGROUND = "Running in the background"
    NODE = "The embedded node"
    DIALIN = "Nodes that dial in"
    JOIN = "Joining a gateway as a node"


def setting(
    default: object,
    description: str,
    group: Group,
    *,
    openai_serve: str = "",
    openclaw: str = "",
    secret: bool = False,
    may_hold_password: bool = False,
    gt: float | None = None,
    ge: float | None = None,
    le: float | None = None,
    restart: str = "",
) -> Any:
    """Declare a setting.

    ``openai_serve`` is the name after ``OPENAI_SERVE_`` that also sets it, ``openclaw`` that after ``OPENCLAW_``. A
    secret has no flag, since other users of the machine can read a command line, and is never shown.
    ``may_hold_password`` is for a URL, which is shown without its password. ``restart`` says why a running gateway cannot
    take a change of the setting at a reload; empty where it can.
    """
    return Field(
        default,
        description=description,
        repr=not (secret or may_hold_password),
        gt=gt,
        ge=ge,
        le=le,
        json_schema_extra={
            "group": group.value,
            "openai_serve": openai_serve,
            "openclaw": openclaw,
            "secret": secret,
            "may_hold_password": may_hold_password,
            "restart": restart,
        },
    )


@dataclass(frozen=True, slots=True)
class Spec:
    """A setting apart from its value."""

    name: str
    default: object
    description: str
    group: Group
    form: Form
    openai_serve: str
    """The whole name of the variable, empty where there is none."""
    openclaw: str
    """The same for a variable of the OpenClaw integration."""
    secret: bool
    may_hold_password: bool
    restart: str
    """Why a change of it needs a restart; empty where a reload applies it."""

    @property
    def environment(self) -> str:
        """The name of its own environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The long flag, empty for a secret and for tables, which a command line cannot hold."""
        return "" if self.secret or self.form.row else "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return isinstance(self.default, bool)

    def shown(self, value: object) -> object:
        """Return a value as it may be shown: of a secret only whether there is one."""
        if self.secret:
            return REDACTED if value else value
        if self.form.row:
            return shown_tables(value, self.form.row)
        return without_password(value) if self.may_hold_password and isinstance(value, str) else value

    def is_secret_when(self, value: object) -> bool:
        """Whether this value of the setting must be kept from other users; ``value`` may be unparsed."""
        if self.form.row:
            return has_secret(value, self.form.row)
        return self.secret or self.shown(value) != value
