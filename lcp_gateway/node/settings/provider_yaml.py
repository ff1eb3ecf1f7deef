"""The provider YAML of lcpd-grpcd, read into the form of the node's own TOML.

As there, unknown keys are ignored. Scalars are read as text first and then as the kind that a key wants, as Go does: a model named
``4.5`` or ``on`` is text.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from lcp_gateway.node.toml import ConfigError

T = TypeVar("T")

_INTEGER: Final = re.compile(r"[+]?[0-9][0-9_]*")
_TRUE: Final = {"true", "True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON"}
_FALSE: Final = {"false", "False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF"}
_NULL: Final = {"", "~", "null", "Null", "NULL"}
_TTL_S: Final = 300
_MAX_OUTPUT_TOKENS: Final = 4_096


def read_provider_yaml(path: Path) -> dict[str, Any]:
    """Return the table ``sell`` that a provider YAML stands for, without backends: those are in the environment.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or lacks what a provider needs; the text names the file and the key.
    """
    try:
        from lcp_gateway.node.settings.yaml_text import read_yaml  # noqa: PLC0415 - PyYAML is part of an extra
    except ImportError:
        raise ConfigError(
            f"{path}: YAML needs PyYAML: pip install 'lcp-gateway[lnd]', or write the settings as TOML"
        ) from None
    try:
        return _Provider(_Node(read_yaml(path.read_bytes()), "")).table()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Node:
    """A mapping of the document: reads its keys as kinds, and names them in errors."""

    def __init__(self, value: object, at: str) -> None:
        if value is None or (isinstance(value, str) and value in _NULL):
            value = {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{at or 'the document'}: must be a mapping")
        self._values = value
        self._at = at

    @property
    def has_any(self) -> bool:
        """Whether there are keys."""
        return bool(self._values)

    def name(self, key: str) -> str:
        """Return the place of a key."""
        return f"{self._at}.{key}" if self._at else key

    def node(self, key: str) -> "_Node":
        """Return a mapping; an empty one where it is missing."""
        return _Node(self._values.get(key, ""), self.name(key))

    def items(self) -> Iterator[tuple[str, "_Node"]]:
        """Return the mappings in this mapping, by their keys."""
        return ((key, self.node(key)) for key in self._values)

    def text(self, key: str) -> str:
        """Return a text without the blanks around it."""
        return self._scalar(key, str.strip, "", "text")

    def count(self, key: str) -> int | None:
        """Return a whole number; None where it is missing."""
        return self._scalar(key, _count, None, "a whole number, 0 or more")

    def flag(self, key: str) -> bool:
        """Return a boolean; false where it is missing."""
        return self._scalar(key, _flag, False, "true or false")

    def texts(self, key: str) -> list[str]:
        """Return a list of texts without the blanks around them; the empty ones are left out."""
        value = [] if self._is_null(key) else self._values[key]
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{self.name(key)}: must be a list of names")
        return [one.strip() for one in value if one.strip()]

    def _is_null(self, key: str) -> bool:
        value = self._values.get(key, "")
        return isinstance(value, str) and value in _NULL

    def _scalar(self, key: str, read: Callable[[str], T], missing: T, kind: str) -> T:
        if self._is_null(key):
            return missing
        value = self._values[key]
        try:
            if isinstance(value, str):
                return read(value)
        except ValueError:
            pass
        raise ConfigError(f"{self.name(key)}: must be {kind}")


class _Provider:
    """The document as a provider."""

    def __init__(self, document: _Node) -> None:
        self._document = document
        self._llm = document.node("llm")
        self._price_table = self._llm.node("price_table")

    def table(self) -> dict[str, Any]:
        """Return the table ``sell``; models are judged only where the provider is enabled."""
        if not self._document.flag("enabled"):
            return {"enabled": False}
        surge = self._document.node("pricing").node("in_flight_surge")
        surcharge = {
            key: count
            for key in ("threshold", "per_job_bps", "max_multiplier_bps")
            if (count := surge.count(key)) is not None
        }
        return {
            "enabled": True,
            "ttl_s": self._document.count("quote_ttl_seconds") or _TTL_S,
            "max_output_tokens": self._llm.count("max_output_tokens") or _MAX_OUTPUT_TOKENS,
            "surge": surcharge,
            "models": self._models(),
        }

    def _models(self) -> list[dict[str, Any]]:
        listed = next((key for key in ("models", "chat_profiles") if self._llm.node(key).has_any), None)
        if listed is not None:
            return [self._model(key, model) for key, model in self._llm.node(listed).items()]
        names = self._document.texts("supported_models") or self._document.texts("supported_llm_chat_profiles")
        if not names:
            problem = (
                "llm.price_table: there are prices and no models"
                if self._price_table.has_any
                else "llm.models: missing"
            )
            raise ConfigError(f"{problem}: name the models that are sold in llm.models")
        return [{"name": name, **self._price(name, _Node({}, ""))} for name in names]

    def _model(self, key: str, model: _Node) -> dict[str, Any]:
        name = model.text("model") or model.text("profile") or key.strip()
        read: dict[str, Any] = {"name": name}
        limit = model.count("max_output_tokens")
        if limit == 0:
            raise ConfigError(f"{model.name('max_output_tokens')}: must be above 0")
        if limit is not None:
            read["max_output_tokens"] = limit
        return {**read, **self._price(name, model.node("price"))}

    def _price(self, model: str, own: _Node) -> dict[str, int]:
        """Return a model's price: its own, else that of the price table. lcpd-grpcd's built-in prices are not known here."""
        price = own if own.has_any else self._price_table.node(model)
        if not price.has_any:
            raise ConfigError(f'model "{model}" has no price: set llm.models.<key>.price or llm.price_table."{model}"')
        read = {key: price.count(key) or 0 for key in ("input_msat_per_mtok", "output_msat_per_mtok")}
        for key, number in read.items():
            if not number:
                raise ConfigError(f"{price.name(key)}: must be above 0")
        return read


def _count(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _flag(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE
