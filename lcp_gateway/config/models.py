"""The model registry in the configuration: the properties of models, and the names that clients may use."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, ConfigDict, Field

from lcp_gateway.config import parsers
from lcp_gateway.config.parsers import Form, parse_count, parse_list, parse_number, parse_text, read_by
from lcp_gateway.config.tables import ROW_CONFIG, tables_by_name

AUTO: Final = "auto"
"""The name that leaves the choice of the model to the gateway; ``auto:...`` names a way to choose."""

MODEL_TYPES: Final = ("chat", "completion", "embedding")

_CAPABILITY = re.compile(r"[a-z0-9_-]{1,32}")
_REPOSITORY = re.compile(r"[\w.-]{1,100}/[\w.-]{1,100}(:[\w.-]{1,40})?", re.ASCII)
_HOTTEST = 2.0


def _parse_type(value: object) -> str:
    text = parse_text(value)
    if text and text not in MODEL_TYPES:
        raise ValueError(f"must be one of {', '.join(MODEL_TYPES)}")
    return text


def _parse_capabilities(value: object) -> tuple[str, ...]:
    found = parse_list(value)
    for number, capability in enumerate(found, start=1):
        if not _CAPABILITY.fullmatch(capability):
            raise ValueError(f'capability number {number} is not a word of up to 32 of a-z, 0-9, "_" and "-"')
    return found


def _parse_temperature(value: object) -> float:
    if (temperature := parse_number(value)) > _HOTTEST:
        raise ValueError(f"must be a number from 0 to {_HOTTEST:g}")
    return temperature


def _parse_limit(value: object) -> int:
    if not (limit := parse_count(value)):
        raise ValueError("must be a whole number, 1 or more")
    return limit


def _parse_repository(value: object) -> str:
    text = parse_text(value)
    if text and not _REPOSITORY.fullmatch(text):
        raise ValueError('must be a repository such as "owner/repo:Q4_K_M"')
    return text


def _parse_model_name(value: object) -> str:
    text = parse_text(value)
    if not text:
        raise ValueError("a model has no name")
    return text


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The operator's description of a model; 0, empty and ``None`` for missing values."""

    __pydantic_config__: ClassVar[ConfigDict] = ROW_CONFIG

    path: Annotated[
        parsers.OptionalFile, Field(description="A GGUF file: the gateway runs this model itself, with `llama-server`.")
    ] = None
    hf_repo: Annotated[
        str,
        Form("repository", "OWNER/REPO:QUANT"),
        read_by(_parse_repository),
        Field(description="The same, fetched from Hugging Face by `llama-server`: `owner/repo:Q4_K_M`."),
    ] = ""
    llama_server_args: Annotated[
        parsers.Names, Field(description="Further arguments of its `llama-server`, after those of the setting.")
    ] = ()
    type: Annotated[
        str,
        Form(", ".join(MODEL_TYPES[:-1]) + " or " + MODEL_TYPES[-1], "TYPE"),
        read_by(_parse_type),
        Field(description="Its kind."),
    ] = ""
    context_length: Annotated[
        parsers.Count,
        Field(
            description="How many tokens request and answer may have together. A request that is clearly longer is refused."
        ),
    ] = 0
    dimensions: Annotated[
        parsers.Count,
        Field(
            description="How many numbers an embedding of it has; written into requests that state none, which changes their "
            "bytes."
        ),
    ] = 0
    params_b: Annotated[parsers.Number, Field(description="Its parameters, in billions.")] = 0.0
    capabilities: Annotated[
        tuple[str, ...] | None,
        Form("list", "A,B"),
        read_by(_parse_capabilities),
        Field(
            description="All its capabilities: `code`, `reasoning`, `vision`, `tools`, `json_schema`, `audio`, or words "
            "of your own. It has none that is not in the list."
        ),
    ] = None
    owned_by: Annotated[parsers.Text, Field(description="Its owner, as clients see it.")] = ""
    aliases: Annotated[parsers.Names, Field(description="Other names by which clients may ask for it.")] = ()
    max_price_msat: Annotated[
        parsers.Count, Field(description="The most that a request to it may be priced at; 0 sets no limit.")
    ] = 0
    max_total_msat: Annotated[
        parsers.Count, Field(description="The most that one may cost, routing fee included; 0 sets no limit.")
    ] = 0
    default_temperature: Annotated[
        float | None,
        Form("number from 0 to 2", "N"),
        read_by(_parse_temperature),
        Field(description="Written into requests that set none, which changes their bytes."),
    ] = None
    default_max_tokens: Annotated[
        int | None,
        Form("whole number", "N"),
        read_by(_parse_limit),
        Field(description="The same for the length of an answer."),
    ] = None
    markup_percent: Annotated[
        float | None,
        Form("number", "N"),
        read_by(parse_number),
        Field(description="Mark-up that customers are charged, instead of the setting `markup_percent`."),
    ] = None
    markup_msat: Annotated[
        int | None, Form("whole number", "N"), read_by(parse_count), Field(description="The same for `markup_msat`.")
    ] = None


def _names_fit(models: Mapping[str, ModelConfig]) -> Mapping[str, ModelConfig]:
    owner_of: dict[str, str] = {}
    for name, model in models.items():
        if name.startswith(AUTO + ":"):
            raise ValueError(f"{name!r:.80} cannot be described: it is a way to choose a model")
        if model.path and model.hf_repo:
            raise ValueError(f"{name!r:.80} has a path and a hf_repo: a model has one file")
        if name == AUTO and model != ModelConfig(aliases=model.aliases):
            raise ValueError(f"{AUTO} is no model: it may have nothing but aliases")
        for alias in model.aliases:
            if alias == name:
                continue
            if alias == AUTO or alias.startswith(AUTO + ":"):
                raise ValueError(f"{alias!r:.80} cannot be an alias: it means a choice of the gateway")
            if alias in models:
                raise ValueError(f"{alias!r:.80} is an alias of {name!r:.80} and the name of another model")
            if (other := owner_of.setdefault(alias, name)) != name:
                raise ValueError(f"{alias!r:.80} is an alias of both {other!r:.80} and {name!r:.80}")
    return models


Models = Annotated[
    Mapping[Annotated[str, read_by(_parse_model_name)], ModelConfig],
    Form("table of tables", "JSON", ModelConfig),
    read_by(tables_by_name),
    AfterValidator(_names_fit),
]
