"""The peers that a node is connected to, and the manifest of each."""

from collections.abc import Iterable, Iterator

import grpc
from coincurve import PrivateKey

from lcp_gateway._gen.lcpd import lcpd_pb2
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.config import ModelConfig, PeerConfig, derive_key, public_id
from lcp_gateway.node.status import CallError, failed_precondition, lcp_error, not_found
from lcp_gateway.node.tasks import Task, TaskKind


class Peer:
    """A peer at work: its key, its models by name, and how many jobs it is running."""

    def __init__(self, config: PeerConfig, key: PrivateKey, protocol_version: int) -> None:
        self.config = config
        self.key = key
        self.id = public_id(key)
        self.models = {model.name: model for model in config.models}
        self.ready = config.ready
        self.inflight = 0
        self.description = self._describe(protocol_version)

    def model_for(self, task: Task) -> ModelConfig:
        """Return the model that a task asks for.

        Raises:
            CallError: the peer does not offer it for this kind of task.
        """
        model = self.models.get(task.model)
        if model is None:
            supported = ", ".join(sorted(self.models))
            raise lcp_error(ErrorCode.UNSUPPORTED_TASK, f'unsupported model: "{task.model}" (supported: {supported})')
        if not (model.chat if task.kind is TaskKind.CHAT else model.responses):
            raise lcp_error(ErrorCode.UNSUPPORTED_TASK, "task kind is not offered for this model")
        return model

    def check_room(self, task: Task) -> None:
        """Check a task against the manifest's limits.

        Raises:
            CallError: RESOURCE_EXHAUSTED, by the daemon for a size and by the peer for its number of jobs.
        """
        limit = min(self.config.max_stream_bytes, self.config.max_job_bytes)
        if len(task.body) > limit:
            raise CallError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"request of {len(task.body)} bytes exceeds the peer's limit of {limit}",
            )
        if self.inflight >= self.config.max_inflight_jobs:
            raise lcp_error(ErrorCode.RATE_LIMITED, "too many jobs in flight")

    def _describe(self, protocol_version: int) -> lcpd_pb2.LCPPeer:
        config = self.config
        tasks = []
        for model in config.models:
            if model.chat:
                tasks.append(
                    lcpd_pb2.LCPTaskTemplate(
                        kind=lcpd_pb2.LCP_TASK_KIND_OPENAI_CHAT_COMPLETIONS_V1,
                        openai_chat_completions_v1=lcpd_pb2.OpenAIChatCompletionsV1Params(model=model.name),
                    )
                )
            if model.responses:
                tasks.append(
                    lcpd_pb2.LCPTaskTemplate(
                        kind=lcpd_pb2.LCP_TASK_KIND_OPENAI_RESPONSES_V1,
                        openai_responses_v1=lcpd_pb2.OpenAIResponsesV1Params(model=model.name),
                    )
                )
        return lcpd_pb2.LCPPeer(
            peer_id=self.id,
            address=config.address or f"{config.alias.lower()}.invalid:9735",
            remote_manifest=lcpd_pb2.LCPManifest(
                protocol_version=protocol_version,
                max_payload_bytes=config.max_payload_bytes,
                supported_tasks=tasks,
                max_stream_bytes=config.max_stream_bytes,
                max_job_bytes=config.max_job_bytes,
                max_inflight_jobs=config.max_inflight_jobs,
            ),
        )


class Peers:
    """The node's peers by id."""

    def __init__(self, configs: Iterable[PeerConfig], seed: str, protocol_version: int) -> None:
        peers = [Peer(config, derive_key(seed, config.alias), protocol_version) for config in configs]
        self._by_id = {peer.id: peer for peer in peers}
        self._by_alias = {peer.config.alias: peer for peer in peers}

    def __iter__(self) -> Iterator[Peer]:
        """Yield every peer, ready or not, in the order of the configuration."""
        return iter(self._by_id.values())

    def named(self, alias: str) -> Peer:
        """Return a peer by its alias.

        Raises:
            KeyError: no peer has it.
        """
        return self._by_alias[alias]

    def connected(self, peer_id: str) -> Peer:
        """Return a peer that is ready, by its exact id.

        Raises:
            CallError: NOT_FOUND for an unknown one, FAILED_PRECONDITION for one that is not ready.
        """
        peer = self._by_id.get(peer_id)
        if peer is None:
            raise not_found("peer not found")
        if not peer.ready:
            raise failed_precondition("peer is not ready for lcp")
        return peer
