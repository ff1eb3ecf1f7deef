"""A backend with the same bytes for every job: ``LCPD_BACKEND=deterministic`` of lcpd-grpcd, to try a connection."""

from collections.abc import AsyncGenerator
from typing import Final

DEFAULT_OUTPUT: Final = b"deterministic-output"


class DeterministicBackend:
    """A backend without state or connections, whose result is always ``output``."""

    def __init__(self, output: bytes = DEFAULT_OUTPUT) -> None:
        self._output = output

    async def models(self) -> tuple[str, ...]:
        """Return no models: it runs any."""
        return ()

    async def run(
        self, *, job_id: bytes, task_kind: str, model: str, body: bytes, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the output; see ``ports.Compute``."""
        del job_id, task_kind, model, body, stream
        yield self._output

    async def close(self) -> None:
        """Do nothing: there are no connections."""
