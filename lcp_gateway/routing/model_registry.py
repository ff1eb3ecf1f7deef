"""The model registry: the operator's description of a model, before providers' lists, before hints in its name."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.routing.catalog import ModelFacts

EMBEDDING: Final = "embedding"

# More than peers may offer together (upstreams/lcpd/adapter.py): reading a name costs as much as a hundred look-ups.
REMEMBERED_NAMES: Final = 16_384
# A client may invent a name as long as a body: only short names are cached.
_READ_CHARACTERS = 256

# A size begins a word ("-8b", ":8b", "_8b"): in "gemma-2-2b" the first 2 is a version, in "A22B" and "b200" a letter
# stands before. It ends one as well, which leaves out "4bit" and "4bpw". The "e" is Gemma's "effective" size.
_WORD_BEGINS = r"(?<![a-z0-9.])"
_WORD_ENDS = r"(?![a-z0-9])"
_NUMBER = r"\d{1,4}(?:\.\d{1,3})?"
_EXPERTS = re.compile(rf"{_WORD_BEGINS}(\d{{1,3}})x({_NUMBER})b{_WORD_ENDS}")
_BILLIONS = re.compile(rf"{_WORD_BEGINS}e?({_NUMBER})b{_WORD_ENDS}")
# "1_6b" and "7b1" are 1.6b and 7.1b, where a name may hold no point.
_POINTLESS = re.compile(rf"(?<=-)(\d{{1,3}})(?:_(\d)b|b(\d)){_WORD_ENDS}")
_MILLIONS = re.compile(rf"{_WORD_BEGINS}({_NUMBER})m{_WORD_ENDS}")
_TRILLIONS = re.compile(rf"{_WORD_BEGINS}({_NUMBER})t{_WORD_ENDS}")
# "1m" and "4m" are lengths of context: no language model is that small.
_FEWEST_MILLIONS = 10

_CAPABILITIES: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "code": re.compile(
            r"(?<!en)(?<!de)coder|(?<![a-z])(?:open)?code(?![a-z])|devstral"
            r"|code(?:x|llama|qwen|gemma|gen|geex|stral|reason)"
        ),
        "reasoning": re.compile(
            r"(?<![a-z0-9])(?:r1|qwq|qvq|o1|o3|o4-mini)(?![a-z0-9])"
            r"|(?<!non-)(?<!non)reason(?:ing|er)|think(?:ing|er)(?![a-z])|gpt-oss|magistral|exaone-deep"
        ),
        "vision": re.compile(
            r"(?<![a-z])vlm?\d*(?![a-z])|internvl|smolvlm|cogvlm|vision|multimodal|(?<![a-z])omni(?![a-z])"
            r"|llava|pixtral|moondream|paligemma|molmo|idefics|qvq|minicpm-[vo](?![a-z])|glm-\d(?:\.\d)?v(?![a-z])"
            r"|(?<![a-z])gpt-?4(?:o(?!-(?:audio|transcribe|mini-(?:audio|transcribe|tts)))|-turbo|\.1)(?![a-z0-9])"
            r"|claude-(?:3|opus|sonnet|haiku)|gemini-[1-9]|llama-?4(?![0-9])"
        ),
    }
)

_EMBEDDING = re.compile(
    r"embed|(?<![a-z])(?:bge|gte|voyage|mxbai)-|(?<![a-z0-9])e5-|all-(?:minilm|mpnet)|paraphrase-|uae-large|labse"
)
_NOT_EMBEDDING = re.compile(r"rerank")

# The first match counts: makers that build on others' models stand before them.
_VENDORS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (vendor, re.compile(rf"(?<![a-z])(?:{families})"))
    for vendor, families in (
        ("nvidia", r"nemotron|nv-embed|nvlm"),
        ("deepseek", r"deepseek"),
        ("nousresearch", r"(?:nous-)?hermes"),
        ("intfloat", r"(?:multilingual-)?e5-"),
        ("baai", r"bge-"),
        ("nomic", r"nomic"),
        ("mixedbread", r"mxbai"),
        ("snowflake", r"snowflake|arctic"),
        ("jina", r"jina"),
        ("voyage", r"voyage-"),
        ("sentence-transformers", r"all-(?:minilm|mpnet)|paraphrase-"),
        ("alibaba", r"gte-"),
        ("eleutherai", r"gpt-?(?:j|neo)|pythia"),
        ("mistral", r"mistral|mixtral|codestral|devstral|ministral|magistral|pixtral|voxtral"),
        ("qwen", r"(?:code)?qwen|qwq|qvq|text-embedding-v\d"),
        ("google", r"(?:code|embedding|pali)?gemma|gemini|text-embedding-00\d"),
        ("bigcode", r"starcoder"),
        ("meta", r"(?:code)?llama"),
        ("microsoft", r"phi(?![a-z])|orca"),
        ("openai", r"(?:chat)?gpt|(?<!.)o[134](?![a-z0-9])|text-embedding|whisper|davinci|babbage|codex|dall-e"),
        ("anthropic", r"claude"),
        ("cohere", r"command(?![a-z])|aya(?![a-z])|c4ai|embed-(?:english|multilingual)"),
        ("ibm", r"granite"),
        ("xai", r"grok"),
        ("zai", r"(?:chat|code)?(?:glm|geex)"),
        ("01-ai", r"yi(?![a-z])"),
        ("moonshotai", r"kimi|moonlight"),
        ("minimax", r"minimax"),
        ("tii", r"falcon"),
        ("ai21", r"jamba"),
        ("allenai", r"olmo|tulu|molmo"),
        ("databricks", r"dbrx"),
        ("huggingface", r"smol(?:lm|vlm)|zephyr|idefics"),
        ("stabilityai", r"stable(?:lm|-code)"),
        ("internlm", r"intern(?:lm|vl)"),
        ("openbmb", r"minicpm"),
        ("perplexity", r"sonar"),
        ("amazon", r"amazon|titan"),
        ("liquid", r"lfm"),
        ("baidu", r"ernie"),
        ("tencent", r"hunyuan"),
        ("upstage", r"solar"),
        ("lg", r"exaone"),
        ("moondream", r"moondream"),
    )
)


@dataclass(frozen=True, slots=True)
class NameFacts:
    """The hints in a name; ``None``, empty or not in the set where there is none.

    ``params_b`` is in billions and counts all experts of a mixture. ``type`` is ``embedding`` or empty.
    """

    params_b: float | None
    capabilities: frozenset[str]
    vendor: str
    type: str


def read_name(model: str) -> NameFacts:
    """Read a model's name, as providers write them: ``Qwen/Qwen2.5-Coder-14B``, ``llama3.1:8b``, ``gpt-4o``."""
    return _read(model[:_READ_CHARACTERS])


@functools.lru_cache(maxsize=REMEMBERED_NAMES)
def _read(model: str) -> NameFacts:
    owner, _, name = model.lower().rpartition("/")
    is_embedding = bool(_EMBEDDING.search(name)) and not _NOT_EMBEDDING.search(name)
    return NameFacts(
        params_b=_params_b(name),
        capabilities=frozenset(capability for capability, pattern in _CAPABILITIES.items() if pattern.search(name)),
        vendor=next((vendor for vendor, pattern in _VENDORS if pattern.search(name)), owner.rpartition("/")[2]),
        type=EMBEDDING if is_embedding else "",
    )


def _params_b(name: str) -> float | None:
    if experts := _EXPERTS.search(name):
        return int(experts[1]) * float(experts[2]) or None
    pointed = _POINTLESS.sub(r"\1.\2\3b", name)
    billions = [float(found[1]) for found in _BILLIONS.finditer(pointed)]
    if billions:
        # Of two sizes the smaller is what a mixture uses at a time, or a draft model's.
        return max(billions) or None
    millions = [float(found[1]) for found in _MILLIONS.finditer(name)]
    if millions and max(millions) >= _FEWEST_MILLIONS:
        return max(millions) / 1_000
    trillions = [float(found[1]) for found in _TRILLIONS.finditer(name)]
    return max(trillions) * 1_000 or None if trillions else None


AUTO: Final = "auto"
"""The name under which a client leaves the choice of the model to the gateway."""

COMPLETION: Final = "completion"

# Capabilities that no model that turns text into numbers has.
_NOT_OF_EMBEDDINGS = frozenset({"vision", "tools", "json_schema", "audio"})


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The operator's description of a model; 0, empty and ``None`` for missing values.

    ``type`` is ``chat``, ``completion`` or ``embedding``. ``params_b`` is in billions. ``capabilities`` that are given
    are all that the model has. ``aliases`` are other names under which clients may ask for it.
    """

    type: str = ""
    context_length: int = 0
    dimensions: int = 0
    params_b: float = 0.0
    capabilities: tuple[str, ...] | None = None
    owned_by: str = ""
    aliases: tuple[str, ...] = ()
    max_price_msat: int = 0
    max_total_msat: int = 0
    default_temperature: float | None = None
    default_max_tokens: int | None = None


_NO_CARD: Final = ModelCard()


@dataclass(frozen=True, slots=True)
class Traits:
    """The properties of a model from all sources; 0, empty and ``None`` where no source states one.

    ``complete`` means that the model has no other ``capabilities`` than these. ``vendor`` is its maker, as far as
    the name tells; ``owned_by`` what the operator wants shown.
    """

    type: str
    context_length: int
    dimensions: int
    params_b: float | None
    capabilities: frozenset[str]
    complete: bool
    vendor: str
    owned_by: str

    def has(self, capability: str) -> bool | None:
        """Return whether the model has a capability; ``None`` where it is not known."""
        if capability in self.capabilities:
            return True
        if self.complete or (self.type == EMBEDDING and capability in _NOT_OF_EMBEDDINGS):
            return False
        return None


class ModelRegistry:
    """The models that the operator described, by their real names; ``auto`` may be among them, for its aliases."""

    def __init__(self, cards: Mapping[str, ModelCard]) -> None:
        self._cards = dict(cards)
        self._real_names = {
            alias: name for name, card in self._cards.items() for alias in card.aliases if alias not in self._cards
        }

    def resolve(self, name: str) -> str:
        """Return the real name behind an alias, ``auto`` for an alias of that; any other name stays as it is."""
        return self._real_names.get(name, name)

    def card(self, name: str) -> ModelCard | None:
        """Return the operator's description of the model with this real name."""
        return self._cards.get(name)

    def names(self) -> tuple[str, ...]:
        """Return the real names of the models that are described, in the operator's order; ``auto`` is no model."""
        return tuple(name for name in self._cards if name != AUTO)

    def traits(self, model: str, facts: Iterable[ModelFacts] = ()) -> Traits:
        """Combine the properties of a model; ``facts`` are those in the lists of its providers.

        A capability counts when a list or the name states it, unless the operator lists the capabilities. A context is
        taken to be as long as the shortest that a list names.
        """
        listed = tuple(facts)
        card, by_name = self._cards.get(model), read_name(model)
        if card is None and not listed:
            return _traits_by_name(by_name)
        return _combined(card or _NO_CARD, by_name, listed)


@functools.lru_cache(maxsize=REMEMBERED_NAMES)
def _traits_by_name(by_name: NameFacts) -> Traits:
    """Return the properties of a model of which only the name is known."""
    return _combined(_NO_CARD, by_name, ())


def _combined(card: ModelCard, by_name: NameFacts, listed: Sequence[ModelFacts]) -> Traits:
    if card.capabilities is None:
        capabilities = by_name.capabilities.union(*(found.capabilities for found in listed))
    else:
        capabilities = frozenset(card.capabilities)
    contexts = (found.context_length for found in listed if found.context_length)
    return Traits(
        type=card.type or by_name.type,
        context_length=card.context_length or min(contexts, default=0),
        dimensions=card.dimensions,
        params_b=card.params_b or by_name.params_b,
        capabilities=capabilities,
        complete=card.capabilities is not None,
        vendor=by_name.vendor,
        owned_by=card.owned_by,
    )


def kinds_for(traits: Traits, endpoints: frozenset[TaskKind]) -> frozenset[TaskKind]:
    """Return the kinds of task that a model takes on a node that serves ``endpoints``.

    A model of unknown type is taken to speak chat, except on a node that serves nothing but embeddings.
    """
    embeddings = frozenset({TaskKind.EMBEDDINGS})
    if traits.type == EMBEDDING:
        return endpoints & embeddings
    if traits.type == COMPLETION:
        return endpoints & {TaskKind.COMPLETIONS}
    if not traits.type and endpoints == embeddings:
        return endpoints
    return endpoints - embeddings


def is_auto(model: str) -> bool:
    """Return whether a model's name leaves the choice to the gateway."""
    return model == AUTO or model.startswith(AUTO + ":")
