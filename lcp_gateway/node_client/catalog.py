"""The models that a node serves: those of its backends, asked for again and again."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from lcp_gateway.adapters.model_list import ListedModel
from lcp_gateway.node_client.backend import Backend
from lcp_gateway.node_client.options import BackendOptions
from lcp_gateway.node_protocol.messages import MAX_MODELS, NodeModel, is_model_name

USUAL_PORTS: Final[Mapping[str, int]] = {"Ollama": 11_434, "vLLM": 8_000, "llama.cpp": 8_080, "LM Studio": 1_234}
"""Servers that are looked for on this machine where none is named."""


class ModelCatalog:
    """The models of all backends; the first backend that has a model serves it."""

    def __init__(self, backends: Sequence[BackendOptions], found: BackendOptions) -> None:
        """``found`` describes the usual servers of this machine, which are asked where ``backends`` is empty."""
        self._is_search = not backends
        searched = [replace(found, base_url=f"http://127.0.0.1:{port}/v1") for port in USUAL_PORTS.values()]
        self._backends = [Backend(options) for options in (backends or searched)]
        self._serving: dict[str, tuple[Backend, NodeModel]] = {}
        self._created: dict[str, int] = {}

    @property
    def models(self) -> tuple[NodeModel, ...]:
        """The models of now."""
        return tuple(model for _, model in self._serving.values())

    def backend_for(self, model: str, kind: str) -> Backend | None:
        """Return the backend that serves a model, None where none does such tasks."""
        found = self._serving.get(model)
        return found[0] if found is not None and kind in found[1].kinds else None

    def where(self) -> str:
        """Return where models were looked for, for a person."""
        return ", ".join(backend.options.base_url for backend in self._backends)

    async def refresh(self) -> bool:
        """Ask all backends for their models; return whether anything has changed. A backend that is away has none."""
        lists = await asyncio.gather(*(one.list_models(skip_gateways=self._is_search) for one in self._backends))
        serving: dict[str, tuple[Backend, NodeModel]] = {}
        for backend, listed in zip(self._backends, lists, strict=True):
            for model in self._served(backend.options, listed):
                if len(serving) < MAX_MODELS:
                    serving.setdefault(model.id, (backend, model))
        changed = {name: model for name, (_, model) in serving.items()} != {
            name: model for name, (_, model) in self._serving.items()
        }
        self._serving = serving
        return changed

    async def close(self) -> None:
        """Close all connections."""
        for backend in self._backends:
            await backend.close()

    def _served(self, options: BackendOptions, listed: tuple[ListedModel, ...] | None) -> Sequence[NodeModel]:
        if listed is None:
            return ()
        by_name = {model.id: model for model in listed}
        names = options.models or tuple(by_name)
        return [
            self._described(options, by_name.get(name) or ListedModel(name)) for name in names if is_model_name(name)
        ]

    def _described(self, options: BackendOptions, model: ListedModel) -> NodeModel:
        return NodeModel(
            id=model.id,
            kinds=options.kinds,
            price=options.price,
            max_output_tokens=options.max_output_tokens,
            concurrent=options.concurrent,
            context_length=model.context_length,
            # Some servers say the time of the request: the first one stays, or each list would be a new one.
            created=self._created.setdefault(model.id, model.created),
            capabilities=tuple(sorted(model.capabilities)),
        )
