"""The requirements of a request, read from its body, and the offers that meet them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.purchase.order import TaskKind, output_limit
from lcp_gateway.routing.measurements import Mode
from lcp_gateway.routing.model_registry import EMBEDDING
from lcp_gateway.routing.offers import Entry, Offers
from lcp_gateway.routing.preferences import Preferences

# About the tokens that models count for an image, whatever the size of its encoding.
_TOKENS_PER_IMAGE = 1_000
_LONG_TEXT = 256
_IMAGES = frozenset({"image_url", "input_image", "image"})
_AUDIO = frozenset({"input_audio", "audio"})


@dataclass(frozen=True, slots=True)
class Requirements:
    """Capabilities that the request uses, and the context that it fills: its own tokens and those it allows."""

    capabilities: frozenset[str] = frozenset()
    tokens: int = 0


def requirements_of(kind: TaskKind, document: Mapping[str, Any], body_bytes: int) -> Requirements:
    """Read them. A field of an unexpected shape requires nothing: the provider refuses it itself."""
    found: set[str] = set()
    tools = document.get("tools") or document.get("functions")
    if isinstance(tools, list) and tools and document.get("tool_choice") != "none":
        found.add("tools")
    if _asks_for_schema(kind, document):
        found.add("json_schema")
    tokens = body_bytes // BYTES_PER_TOKEN
    for part in _parts(document):
        type_ = part.get("type")
        if type_ in _IMAGES or type_ in _AUDIO:
            found.add("vision" if type_ in _IMAGES else "audio")
            tokens += _TOKENS_PER_IMAGE - _encoded_bytes(part) // BYTES_PER_TOKEN
    return Requirements(frozenset(found), max(0, tokens + output_limit(document)))


def _asks_for_schema(kind: TaskKind, document: Mapping[str, Any]) -> bool:
    if kind is TaskKind.RESPONSES:
        text = document.get("text")
        form = text.get("format") if isinstance(text, dict) else None
    else:
        form = document.get("response_format")
    return isinstance(form, dict) and form.get("type") == "json_schema"


def _parts(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    messages = document.get("messages")
    if not isinstance(messages, list):
        messages = document.get("input")
    if not isinstance(messages, list):
        return
    for message in messages:
        if not isinstance(message, dict):
            continue
        yield message
        content = message.get("content")
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _encoded_bytes(part: Mapping[str, Any]) -> int:
    """Return the length of the encoded data in a part, which is no text for the model to read."""
    total = 0
    for value in part.values():
        inner = value.values() if isinstance(value, dict) else (value,)
        total += sum(len(text) for text in inner if isinstance(text, str) and len(text) > _LONG_TEXT)
    return total


Availability = Callable[[str], float]
"""Returns for a provider's id whether it may be asked now: 0 no, 1 yes, between them when it is on trial."""

_UNFIT = 1_000
# Sizes are distinguished in steps of three per cent at most, or every request would have a list of its own.
_STEPS = 5


class OfferFilter(NamedTuple):
    """The requirements of a request that decide which offers match. Equal filters match the same ones.

    ``tokens`` is rounded up. ``native`` is set where only a provider of the very endpoint will do,
    ``only`` names the models that are allowed, all where it is empty.
    """

    kind: TaskKind
    mode: Mode
    preferences: Preferences
    wanted: frozenset[str]
    tokens: int
    native: bool = False
    only: frozenset[str] = frozenset()


def offer_filter(
    kind: TaskKind,
    mode: Mode,
    preferences: Preferences,
    requirements: Requirements,
    *,
    native: bool = False,
    only: frozenset[str] = frozenset(),
) -> OfferFilter:
    """Return the filter of a request."""
    step = 1 << max(0, requirements.tokens.bit_length() - _STEPS)
    tokens = -(-requirements.tokens // step) * step
    return OfferFilter(
        kind, mode, preferences, requirements.capabilities | preferences.capabilities, tokens, native, only
    )


def matching_offers(offers: Offers, conditions: OfferFilter, availability: Availability) -> tuple[list[Entry], bool]:
    """Return the entries that match best and may be asked now, and whether any would if all might be asked.

    Entries that meet every requirement are returned alone; where there are none, those with the fewest unknown
    capabilities.
    """
    unsures: dict[str, int] = {}
    there: dict[str, float] = {}
    least, found, is_offered = _UNFIT, [], False
    for entry in offers.by_kind[conditions.kind]:
        if not _is_allowed(entry, conditions):
            continue
        is_offered = True
        provider_id = entry.provider.peer_id
        if provider_id not in there:
            there[provider_id] = availability(provider_id)
        if not there[provider_id]:
            continue
        unsure = unsures.get(entry.model)
        if unsure is None:
            unsure = unsures[entry.model] = _unsure(entry, conditions)
        if unsure < least:
            least, found = unsure, [entry]
        elif unsure == least:
            found.append(entry)
    return found, is_offered


def _is_allowed(entry: Entry, conditions: OfferFilter) -> bool:
    kind = conditions.kind
    if conditions.only and entry.model not in conditions.only:
        return False
    if conditions.preferences.only_free and entry.provider.listed_msat(entry.model) != 0:
        return False
    if conditions.native and not entry.provider.offers(kind, entry.model):
        return False
    return kind is TaskKind.EMBEDDINGS or entry.traits.type != EMBEDDING


def _unsure(entry: Entry, conditions: OfferFilter) -> int:
    """Count the wanted capabilities that are not known of a model; a thousand where it is known to lack one."""
    traits = entry.traits
    if conditions.tokens and traits.context_length and conditions.tokens > traits.context_length:
        return _UNFIT
    unknown = 0
    for capability in conditions.wanted:
        can = traits.has(capability)
        if can is None:
            unknown += 1
        elif not can:
            return _UNFIT
    return unknown
