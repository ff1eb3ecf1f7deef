"""The preferences that a client states after `auto:`, and how much each property of a provider weighs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

_EMPHASIS = 4.0
_DIGITS = 12
_WORD = re.compile(r"[a-z0-9_-]{1,32}")

EMPHASES: Mapping[str, str] = MappingProxyType(
    {
        "fast": "speed",
        "cheap": "price",
        "reliable": "delivery",
        "free": "price",
        "small": "fit",
        "balanced": "fit",
        "large": "fit",
    }
)
"""The words that make one weight four times as heavy."""

SIZES = ("small", "balanced", "large")
"""The sizes that can be preferred."""

CAPABILITIES = frozenset({"code", "reasoning", "vision", "tools", "json_schema", "audio"})
"""The capabilities that can be asked for by name, besides those that the operator gave to a model."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each property counts; only their proportions matter."""

    availability: float = 0.15
    speed: float = 0.30
    delivery: float = 0.25
    price: float = 0.20
    fit: float = 0.10

    def normalised(self) -> "Weights":
        """Return the same proportions with a sum of 1.

        Raises:
            ZeroDivisionError: nothing weighs anything.
        """
        values = [getattr(self, item.name) for item in fields(self)]
        total = sum(values)
        # Rounded, so that the log line says 0.15 and not 0.15000000000000002.
        return Weights(*(round(value / total, _DIGITS) for value in values))


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences that a client states with ``auto``.

    ``words`` are as the client wrote them; ``capabilities`` are those that it names; ``size`` is one of ``SIZES``;
    ``only_free``: only free providers.
    """

    words: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    size: str = "balanced"
    only_free: bool = False

    def weights(self, base: Weights) -> Weights:
        """Return the weights with the emphasis that the words ask for, normalised."""
        found = base
        for name in {EMPHASES[word] for word in self.words if word in EMPHASES}:
            # A property that the operator weighs with nothing still counts for a client that asks for it.
            value = getattr(found, name) or 1.0 / len(fields(found))
            found = replace(found, **{name: value * _EMPHASIS})
        return found.normalised()


class UnknownPreference(ValueError):
    """A word after ``auto:`` without a meaning; ``known`` are those with one."""

    def __init__(self, word: str, known: tuple[str, ...]) -> None:
        super().__init__(word)
        self.known = known


def parse_preferences(model: str, offered: frozenset[str] = frozenset()) -> Preferences:
    """Read ``auto``, ``auto:fast`` or ``auto:code+cheap``; ``offered`` are capabilities besides the usual ones.

    Raises:
        UnknownPreference: a word is neither an emphasis, nor a size, nor a capability.
    """
    _, _, tail = model.partition(":")
    words = tuple(dict.fromkeys(word for word in re.split(r"[+,:]", tail) if word))
    capabilities = CAPABILITIES | offered
    for word in words:
        if word not in EMPHASES and word not in capabilities:
            raise UnknownPreference(word if _WORD.fullmatch(word) else "", (*EMPHASES, *sorted(capabilities)))
    sizes = [word for word in words if word in SIZES]
    return Preferences(
        words, capabilities.intersection(words), sizes[-1] if sizes else "balanced", only_free="free" in words
    )
