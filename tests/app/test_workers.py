"""The loop that deletes what is over in the console."""

import asyncio
from contextlib import suppress
from datetime import timedelta

from lcp_gateway.app.workers import tidy_console
from lcp_gateway.store.database.engines import DatabaseUnavailable


class Recording:
    """Stands for both repositories; the first call fails as an unreachable database does."""

    def __init__(self):
        self.calls = []
        self.done = asyncio.Event()

    async def forget_ended(self, now):
        self.calls.append(("sessions", now))
        if len(self.calls) == 1:
            raise DatabaseUnavailable("away")
        return 0

    async def forget_unfunded(self, before, now):
        self.calls.append(("accounts", now - before))
        self.done.set()
        return 0


async def test_ended_sessions_and_accounts_that_were_never_topped_up_for_a_week_go(monkeypatch):
    monkeypatch.setattr("lcp_gateway.app.workers._TIDY_EVERY_S", 0.0)
    recording = Recording()
    task = asyncio.create_task(tidy_console(recording, recording))
    await recording.done.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert [name for name, _ in recording.calls[:3]] == ["sessions", "sessions", "accounts"]
    assert recording.calls[2][1] == timedelta(days=7)
