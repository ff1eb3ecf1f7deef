"""The local models beside ``serve``: one process for all of them, and what the gateway has to know to use it."""

import dataclasses
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.child import ChildProcess
from lcp_gateway.config import LOCAL_NODE, LOCAL_URL, NodeConfig, Settings, all_nodes, local_models, models_folder
from lcp_gateway.local_models.options import KEY_VARIABLE, LocalModel, LocalModelOptions, problem
from lcp_gateway.local_models.small_model import SMALL_MODEL, SmallModelMissing, fetch_small_model


def local_model_options(settings: Settings) -> LocalModelOptions:
    """Return what the process is told; without models where none is local.

    Raises:
        CommandFailed: the small model cannot be fetched.
    """
    folder = models_folder()
    models = [
        LocalModel(
            name, str(model.path or ""), model.hf_repo, model.type, model.context_length, model.llama_server_args
        )
        for name, model in local_models(settings).items()
    ]
    if settings.local_model:
        models.append(LocalModel(SMALL_MODEL, str(_small_model(folder))))
    return LocalModelOptions(
        models=tuple(models),
        executable=settings.llama_server,
        arguments=settings.llama_server_args,
        folder=str(folder),
        loaded_max=settings.local_models_loaded_max,
        memory_mib=settings.local_models_memory_mib,
        idle_s=settings.local_models_idle_s,
        preload=settings.local_models_preload or settings.local_model,
    )


def check_local_models(options: LocalModelOptions) -> None:
    """Check here, where an error is one line and not a model that does not answer.

    Raises:
        CommandFailed: ``llama-server`` is not installed, or a file is missing.
    """
    if options.models and (text := problem(options)):
        raise CommandFailed(text, exit_code=USAGE_ERROR)


class LocalModels:
    """Runs the process of local models while the ``with`` block lasts.

    It listens on a port of loopback that is opened here, so that requests wait while it starts or starts again.
    """

    def __init__(self, options: LocalModelOptions, *, tell: Callable[[str], None]) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.api_key = secrets.token_urlsafe(32)
        self._child = ChildProcess(
            "process of local models",
            [
                *(sys.executable, "-m", "lcp_gateway.local_models.process"),
                *(options.to_json(), str(self._listening.fileno())),
            ],
            tell=tell,
            secrets={KEY_VARIABLE: self.api_key},
            descriptors=(self._listening.fileno(),),
            # It ends each llama-server, for which that has ten seconds.
            stop_timeout_s=15.0,
        )

    @property
    def base_url(self) -> str:
        """Where it is reached, with ``/v1``."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"

    @property
    def pid(self) -> int | None:
        """The process id, while there is one."""
        return self._child.pid

    def used_by(self, settings: Settings) -> Settings:
        """Return settings that use it: as the node ``local``, and with ``local_model`` behind the embedded node."""
        changes: dict[str, Any] = {}
        if local_models(settings):
            nodes = [node for node in all_nodes(settings) if node.name == LOCAL_NODE]
            others = tuple(node for node in settings.nodes if node.name != LOCAL_NODE)
            changes["nodes"] = (*others, *(self._node(node, settings) for node in nodes))
        if settings.local_model:
            changes |= {"node_backend": self.base_url, "node_backend_api_key": self.api_key}
        return settings.model_copy(update=changes)

    def __enter__(self) -> Self:
        """Start it; it becomes ready while the caller continues."""
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and with it every model."""
        self._child.__exit__(kind, error, trace)
        self._listening.close()

    def _node(self, node: NodeConfig, settings: Settings) -> NodeConfig:
        return dataclasses.replace(
            node,
            base_url=self.base_url if node.base_url == LOCAL_URL else node.base_url,
            api_key=self.api_key,
            models=node.models or tuple(local_models(settings)),
        )


def _small_model(folder: Path) -> Path:
    try:
        return fetch_small_model(folder, tell=_tell)
    except SmallModelMissing as error:
        raise CommandFailed(str(error)) from None


def _tell(text: str) -> None:
    sys.stderr.write(f"lcp-gateway: {text}\n")
    sys.stderr.flush()
