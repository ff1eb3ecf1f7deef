"""Label values that stay few: what is not known is folded into one value, and nothing a client makes up becomes a label."""

from collections.abc import Collection

from lcp_gateway.telemetry.names import OTHER

MAX_LABEL_LENGTH = 128


class KnownLabels:
    """The values that one label may take: at most ``limit``, admitted once and for good.

    A value stays admitted when its model or peer goes away, so that a peer that comes and goes keeps
    one unbroken series and what was bought from it a moment ago is still counted as its own.
    """

    __slots__ = ("_limit", "_values")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()

    def admit(self, values: Collection[str]) -> list[str]:
        """Let values in, sorted, while there is room; give those that are new."""
        added: list[str] = []
        for value in sorted(set(values) - self._values):
            if len(self._values) >= self._limit:
                break
            if value != OTHER and _is_fit(value):
                self._values.add(value)
                added.append(value)
        return added

    def fold(self, value: str) -> str:
        """Give the value itself when it was admitted, else ``other``."""
        return value if value in self._values else OTHER


def _is_fit(value: str) -> bool:
    # Not printable covers line breaks, escapes and lone surrogates, which no exposition format can carry.
    return 0 < len(value) <= MAX_LABEL_LENGTH and value.isprintable()
