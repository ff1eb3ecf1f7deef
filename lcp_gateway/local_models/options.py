"""What the process of local models is told: its models, and how many of them may be loaded."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY_VARIABLE = "LCP_GATEWAY_LOCAL_MODELS_KEY"
"""The variable of its environment that holds the key that requests to it need."""
NOT_INSTALLED = (
    "{executable!r} was not found. Local models need llama.cpp's llama-server: `brew install llama.cpp`, "
    "`winget install llama.cpp`, `nix profile install nixpkgs#llama-cpp`, Debian's package llama.cpp, or set "
    "`llama_server` to where it is"
)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that ``llama-server`` loads, from a GGUF file or from a repository, ``owner/repo:quantisation``."""

    name: str
    path: str = ""
    hf_repo: str = ""
    type: str = ""
    """``chat``, ``completion`` or ``embedding``; empty for chat."""
    context_length: int = 0
    """In tokens; 0 leaves it to the model."""
    arguments: tuple[str, ...] = ()
    """Further arguments of its ``llama-server``, after those for all."""


@dataclass(frozen=True, slots=True)
class LocalModelOptions:
    """The models, and the bounds within which they are loaded. ``folder`` holds logs and keys."""

    models: tuple[LocalModel, ...]
    executable: str
    folder: str
    arguments: tuple[str, ...] = ()
    """Further arguments of every ``llama-server``, for example ``-ngl 99``."""
    loaded_max: int = 1
    memory_mib: int = 0
    """What all loaded models may take; 0 sets no bound."""
    idle_s: float = 600.0
    """A model that was not used for so long is unloaded; 0 keeps it."""
    preload: bool = False
    """Whether models are loaded at the start, as many as may be."""

    def to_json(self) -> str:
        """Write all fields."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LocalModelOptions":
        """Read what ``to_json`` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["models"] = tuple(
            LocalModel(**{**model, "arguments": tuple(model["arguments"])}) for model in fields["models"]
        )
        fields["arguments"] = tuple(fields["arguments"])
        return cls(**fields)


def problem(options: LocalModelOptions) -> str:
    """Return why these models cannot be served, in one line; empty if they can."""
    if shutil.which(options.executable) is None:
        return NOT_INSTALLED.format(executable=options.executable)
    for model in options.models:
        if model.path and not Path(model.path).is_file():
            return f"models[{model.name!r}].path: {model.path} is not a file"
    return ""
