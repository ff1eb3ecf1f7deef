"""The local models that a node sells: one process for all of them, as beside ``serve``, and settings that use it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from lcp_gateway.config.paths import models_folder
from lcp_gateway.node.settings.model import BackendSettings, NodeSettings, SellSettings


@contextlib.contextmanager
def local_models_for(settings: NodeSettings, *, tell: Callable[[str], None]) -> Iterator[NodeSettings]:
    """Run for the block the local models that are sold, and yield settings whose backends reach them.

    ``tell`` is called, from a thread, when their process ended.

    Raises:
        CommandFailed: ``llama-server`` is not installed, or a model's file is missing.
    """
    sell = settings.sell
    sold = sell.models if sell.active else ()
    local = {model.name: backend for model in sold if (backend := sell.backend_of(model)).kind == "local"}
    if not local:
        yield settings
        return
    # Few nodes have models of their own.
    from lcp_gateway.cli.serve.local_models import LocalModels, check_local_models  # noqa: PLC0415 - as above
    from lcp_gateway.local_models.options import LocalModel, LocalModelOptions  # noqa: PLC0415 - as above

    options = LocalModelOptions(
        models=tuple(
            LocalModel(
                name,
                str(backend.path or ""),
                backend.hf_repo,
                context_length=backend.context_length,
                arguments=backend.llama_server_args,
            )
            for name, backend in local.items()
        ),
        executable=sell.local.llama_server,
        arguments=sell.local.llama_server_args,
        folder=str(models_folder()),
        loaded_max=sell.local.loaded_max,
        memory_mib=sell.local.memory_mib,
        idle_s=sell.local.idle_s,
        preload=sell.local.preload,
    )
    check_local_models(options)
    with LocalModels(options, tell=tell) as server:
        yield dataclasses.replace(settings, sell=_using(sell, server.base_url, server.api_key))


def _using(sell: SellSettings, url: str, api_key: str) -> SellSettings:
    def using(backend: BackendSettings) -> BackendSettings:
        if backend.kind != "local":
            return backend
        return dataclasses.replace(
            backend, kind="openai", path=None, hf_repo="", url=url, api_key=api_key, api_key_file=None
        )

    return dataclasses.replace(sell, backends=tuple(map(using, sell.backends)))
