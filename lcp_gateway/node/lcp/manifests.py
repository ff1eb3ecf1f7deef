"""Manifests: what a node says of itself to a peer, and what a peer's manifest offers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.messages import CHAT, RESPONSES, Manifest, Protocol, TaskTemplate
from lcp_gateway.node.lcp.table import MAX_PAYLOAD_BYTES, read_params, write_message, write_params
from lcp_gateway.node.lcp.tlv import WireError

_KINDS: Final = (CHAT, RESPONSES)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node takes: bytes of a message, of a stream, and of a job's streams together. The defaults are lcpd-grpcd's."""

    max_payload_bytes: int = 16_384
    max_stream_bytes: int = 4 * 2**20
    max_job_bytes: int = 8 * 2**20

    def __post_init__(self) -> None:
        if min(self.max_payload_bytes, self.max_stream_bytes, self.max_job_bytes) < 1:
            raise ValueError("limits: a number is below 1")
        if self.max_payload_bytes > MAX_PAYLOAD_BYTES:
            raise ValueError(f"limits: max_payload_bytes is {self.max_payload_bytes}: at most {MAX_PAYLOAD_BYTES}")


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of task that a peer offers; ``model`` is None where it does not say for which (0.3 never does)."""

    task_kind: str
    model: str | None


def own_manifest(
    protocol: Protocol, limits: Limits, models: Mapping[str, SoldModel] | Collection[str] = ()
) -> Manifest:
    """Return the manifest of a node that sells those models, by their names alone for both kinds; one that only buys sells none.

    A seller that is also a buyer shows no models to a peer from which it buys: lcpd-grpcd 0.2 refuses a request whose task
    is not in the requester's own list.

    Raises:
        WireError: there are too many models for the list of a manifest, or one has no valid name.
    """
    manifest = Manifest(
        protocol_version=protocol.value,
        max_payload_bytes=limits.max_payload_bytes,
        max_stream_bytes=limits.max_stream_bytes,
        max_job_bytes=limits.max_job_bytes,
        tasks=_templates(protocol, models),
    )
    try:
        fits = len(write_message(protocol, manifest)[1]) <= MAX_PAYLOAD_BYTES
    except WireError:
        fits = False
    if not fits:
        raise WireError(f"manifest: {len(models)} models do not fit a message: offer fewer")
    return manifest


def _templates(protocol: Protocol, models: Mapping[str, SoldModel] | Collection[str]) -> tuple[TaskTemplate, ...]:
    sold = {name: models[name].kinds if isinstance(models, Mapping) else _KINDS for name in sorted(models)}
    if protocol is Protocol.V03:
        return tuple(TaskTemplate(task_kind=kind) for kind in _KINDS if any(kind in kinds for kinds in sold.values()))
    return tuple(
        TaskTemplate(task_kind=kind, params=write_params(model))
        for model, kinds in sold.items()
        for kind in _KINDS
        if kind in kinds
    )


def offers(protocol: Protocol, manifest: Manifest) -> tuple[Offer, ...]:
    """Return what a manifest offers of OpenAI's kinds; in 0.2 a template without readable params offers nothing."""
    found: list[Offer] = []
    for task in manifest.tasks:
        if task.task_kind not in _KINDS:
            continue
        if protocol is Protocol.V03:
            found.append(Offer(task.task_kind, None))
            continue
        try:
            model, unknown = read_params(task.params or b"")
        except WireError:
            continue
        if not unknown:
            found.append(Offer(task.task_kind, model))
    return tuple(found)
