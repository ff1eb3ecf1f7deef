"""The supervisor's reload and its look at the workers, which are no processes here."""

import asyncio

import structlog

from lcp_gateway.config import load
from lcp_gateway.supervisor.channel import QuestionFailed
from lcp_gateway.supervisor.messages import Ready, ReloadResult
from lcp_gateway.supervisor.supervisor import Supervisor
from lcp_gateway.supervisor.systemd import Notifier


class Worker:
    """A worker; ``meanwhile`` is called while it takes settings."""

    runs = True

    def __init__(self, place, loaded, *, is_ready=True):
        self.place, self.loaded, self.is_ready = place, loaded, is_ready
        self.taken, self.told, self.killed = [], [], False
        self.meanwhile = lambda: None
        self.answers = lambda: None
        self.number = place
        self.process = self
        self.pid = place

    async def reload(self, loaded, timeout_s):
        self.meanwhile()
        self.taken.append(loaded)
        return ReloadResult(changed=["verbose"])

    async def metrics(self, timeout_s):
        return self.answers()

    def tell(self, kind, content=None):
        self.told.append(kind)

    def kill(self):
        self.killed = True


def supervised(tmp_path):
    """A supervisor with a worker that serves and one that starts, and the settings that a reload reads."""
    before = load(flags={}, environ={}, config_path=None)
    after = load(flags={"verbose": True}, environ={}, config_path=None)
    supervisor = Supervisor(
        before, 2, read_settings=lambda: after, banner=(), folder=tmp_path, log=structlog.get_logger(), environ={}
    )
    supervisor._serves = True
    first, second = Worker(0, before), Worker(1, before, is_ready=False)
    supervisor._children = [first, second]
    return supervisor, first, second


def serves(supervisor, worker):
    worker.is_ready = True
    supervisor._serving(worker, Ready("", ()))


async def test_a_worker_that_begins_to_serve_during_a_reload_takes_the_settings_too(tmp_path):
    supervisor, first, second = supervised(tmp_path)
    first.meanwhile = lambda: serves(supervisor, second)
    await supervisor._reload()
    assert first.taken and second.taken == first.taken
    assert not second.killed


async def test_a_worker_that_begins_to_serve_with_settings_of_before_a_reload_is_started_again(tmp_path):
    supervisor, first, second = supervised(tmp_path)
    await supervisor._reload()
    serves(supervisor, second)
    assert second.killed
    assert not first.told, "nothing is left to a worker that is about to end"
    third = Worker(1, supervisor._loaded, is_ready=False)
    supervisor._children[1] = third
    serves(supervisor, third)
    assert not third.killed and first.told


async def test_a_worker_that_answers_that_it_has_no_metrics_is_not_killed_and_one_that_is_silent_is(tmp_path):
    supervisor, broken, silent = supervised(tmp_path)
    silent.is_ready = True

    def fails():
        raise QuestionFailed("RuntimeError")

    broken.answers = fails
    assert await supervisor._scrape(None) == {}
    watching = asyncio.create_task(supervisor._watch_workers(Notifier()))
    async with asyncio.timeout(60):
        while not silent.killed:
            await asyncio.sleep(0.01)
    assert not broken.killed and not watching.done()
    watching.cancel()
    await asyncio.wait([watching])
