"""Several backends as one: each model has the backend that runs it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.ports import Compute, ComputeError


class ComputeRoutes:
    """Backends by model; ``otherwise``, if there is one, runs all other models."""

    def __init__(self, by_model: Mapping[str, Compute], otherwise: Compute | None = None) -> None:
        self._by_model = dict(by_model)
        self._otherwise = otherwise

    async def models(self) -> tuple[str, ...]:
        """Return the models that have a backend of their own, and those that the other backend lists.

        Raises:
            ComputeError: it does not answer.
        """
        listed = () if self._otherwise is None else await self._otherwise.models()
        return tuple(dict.fromkeys((*self._by_model, *listed)))

    async def run(
        self, *, job_id: bytes, task_kind: str, model: str, body: bytes, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        """Run a job at its model's backend; see ``ports.Compute``."""
        backend = self._by_model.get(model, self._otherwise)
        if backend is None:
            raise ComputeError(ErrorCode.UNSUPPORTED_TASK, "the model has no backend")
        chunks = backend.run(job_id=job_id, task_kind=task_kind, model=model, body=body, stream=stream)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """Close all backends."""
        backends = {id(one): one for one in (*self._by_model.values(), self._otherwise) if one is not None}
        for backend in backends.values():
            await backend.close()
