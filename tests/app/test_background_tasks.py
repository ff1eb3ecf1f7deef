"""The supervisor: a task that ends is logged, counted, reported while it is down, and restarted."""

import ast
import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import lcp_gateway
from lcp_gateway.app import background_tasks
from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks, Backoff
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metric_table import TASKS
from tests.support.sources import parsed

BACKOFF = Backoff(first_s=1.0, most_s=8.0, steady_s=2.0, reset_s=60.0)


class Time:
    """A clock that advances by sleeping, or when the test advances it; each pause is recorded."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.pauses: list[float] = []
        self.chance = 1.0

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Work:
    """A task whose runs end as listed in ``ends``, one after the other; after them it runs on."""

    def __init__(self, time: Time, *ends) -> None:
        self._time = time
        self._ends = list(ends)
        self.runs = 0
        self.lasts = asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        if not self._ends:
            self.lasts.set()
            await asyncio.Event().wait()
        end = self._ends.pop(0)
        if isinstance(end, tuple):
            seconds, end = end
            self._time.now += seconds
        await asyncio.sleep(0)
        if end is not None:
            raise end


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def restarts():
    return []


@pytest.fixture
def tasks(time, restarts):
    return BackgroundTasks(
        get_logger("test"),
        on_restart=restarts.append,
        backoff=BACKOFF,
        clock=lambda: time.now,
        sleep=time.sleep,
        chance=lambda: time.chance,
    )


async def runs_on(work: Work) -> None:
    async with asyncio.timeout(60):
        await work.lasts.wait()


async def test_an_error_is_logged_with_its_cause_counted_and_the_task_goes_on(tasks, time, restarts):
    """Regression: an unexpected error ended the refresh of the keys for good."""
    cause = OverflowError("a date that is none")
    work = Work(time, cause)
    with capture_logs() as logs:
        async with tasks.running(BackgroundTask("keys", work)):
            await runs_on(work)
    assert work.runs == 2
    assert restarts == ["keys"]
    (line,) = logs
    assert line["log_level"] == "error" and line["task"] == "keys"
    assert line["exc_info"] is cause


async def test_a_task_that_returns_although_it_is_meant_to_last_has_failed(tasks, time, restarts):
    work = Work(time, None)
    with capture_logs() as logs:
        async with tasks.running(BackgroundTask("books", work)):
            await runs_on(work)
    assert restarts == ["books"] and logs[0]["log_level"] == "error"


async def test_a_task_that_is_cancelled_from_within_has_failed_too(tasks, time, restarts):
    work = Work(time, asyncio.CancelledError())
    async with tasks.running(BackgroundTask("lnd", work)):
        await runs_on(work)
    assert restarts == ["lnd"]


async def test_an_error_in_one_task_ends_no_other(tasks, time, restarts):
    """Regression: the reconciler ended together with the reader of fees, since both were in one task group."""
    ended = []

    async def reconciler():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("reconciler")

    learning = Work(time, ValueError(), ValueError())
    async with (
        tasks.running(BackgroundTask("reconciler", reconciler)),
        tasks.running(BackgroundTask("learning", learning)),
    ):
        await runs_on(learning)
        assert restarts == ["learning"] * 2 and ended == []
    assert ended == ["reconciler"]


async def test_pauses_grow_with_each_failure_up_to_the_longest(tasks, time):
    work = Work(time, *[ValueError()] * 6)
    async with tasks.running(BackgroundTask("peers", work)):
        await runs_on(work)
    assert time.pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


async def test_chance_shortens_a_pause_by_a_half_at_most(tasks, time):
    """So that replicas that lost the same database do not reconnect all at once."""
    time.chance = 0.0
    work = Work(time, ValueError(), ValueError())
    async with tasks.running(BackgroundTask("peers", work)):
        await runs_on(work)
    assert time.pauses == [0.5, 1.0]


async def test_after_a_run_that_was_long_enough_pauses_begin_from_the_first_again(tasks, time):
    work = Work(time, ValueError(), ValueError(), (59.0, ValueError()), (60.0, ValueError()))
    async with tasks.running(BackgroundTask("peers", work)):
        await runs_on(work)
    assert time.pauses == [1.0, 2.0, 4.0, 1.0]


async def test_a_task_is_named_while_it_is_down_and_until_it_has_run_for_a_while(tasks, time):
    seen = []

    async def sleep(seconds: float) -> None:
        seen.append((tasks.report()["keys"], list(tasks.reasons())))
        await time.sleep(seconds)

    tasks.sleep = sleep
    work = Work(time, ValueError("with a secret in it"))
    async with tasks.running(BackgroundTask("keys", work)):
        assert tasks.report() == {"keys": {"up": True, "restarts": 0}}
        await runs_on(work)
        down = {"up": False, "restarts": 1, "problem": "ValueError"}
        because = ["the background task keys is down: ValueError"]
        assert seen == [(down, because)]
        time.now += BACKOFF.steady_s - 0.1
        assert (tasks.report()["keys"], list(tasks.reasons())) == (down, because)
        time.now += 0.1
        assert tasks.report() == {"keys": {"up": True, "restarts": 1}}
        assert list(tasks.reasons()) == []


async def test_a_task_that_sales_do_not_need_is_reported_without_making_the_gateway_unready(tasks, time):
    work = Work(time, ValueError())
    async with tasks.running(BackgroundTask("loop", work)):
        await runs_on(work)
        assert tasks.report()["loop"]["up"] is False
        assert list(tasks.reasons()) == []


async def test_of_several_tasks_of_a_name_each_is_restarted_by_itself(tasks, time, restarts):
    broken, sound = Work(time, ValueError()), Work(time)
    started = [tasks.starter("nodes")(work) for work in (broken, sound)]
    await runs_on(broken)
    assert (broken.runs, sound.runs) == (2, 1)
    assert tasks.report()["nodes"] == {"up": False, "restarts": 1, "problem": "ValueError"}
    started[0].cancel()
    await asyncio.wait([started[0]])
    assert tasks.report()["nodes"]["up"] is True, "one that is no longer wanted is not down"
    started[1].cancel()
    await asyncio.wait([started[1]])


async def test_a_task_that_is_told_to_end_may_return(tasks, time, restarts):
    work = Work(time, None)
    await asyncio.wait_for(tasks.start("journal", work, may_return=lambda: True), 60)
    assert restarts == [] and work.runs == 1


async def test_a_task_whose_library_swallows_a_cancellation_is_cancelled_again(tasks, monkeypatch):
    """Regression: Redis went away as its listener was cancelled, and a worker without a supervisor never ended."""
    monkeypatch.setattr(background_tasks, "_CANCEL_AGAIN_S", 0.01)
    swallowed = 0

    async def listen():
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    async with asyncio.timeout(60), tasks.running(BackgroundTask("shared", listen)):
        await asyncio.sleep(0)
    assert swallowed == 2


async def test_a_task_that_fails_as_it_is_cancelled_is_logged_and_not_restarted(tasks, restarts):
    """Libraries turn a cancellation into an error of their own."""
    begun = asyncio.Event()

    async def fail():
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("lost") from None

    with capture_logs() as logs:
        async with asyncio.timeout(60), tasks.running(BackgroundTask("shared", fail)):
            await begun.wait()
    assert restarts == []
    (line,) = logs
    assert (line["log_level"], line["task"]) == ("warning", "shared")
    assert isinstance(line["exc_info"], ConnectionError)


async def test_a_name_that_the_metrics_do_not_know_is_refused(tasks):
    with pytest.raises(ValueError, match="table of tasks"):
        tasks.start("made-up", Work(Time()))


SHORT = {
    "accounts/shared/calls.py": "sends the calls of Redis that wait, and ends with them",
    "accounts/shared/outage.py": "asks Redis once; the caller waits for it",
    "accounts/settlements.py": "what a supervised task does while this gateway leads; it waits for both",
    "app/background_tasks.py": "the supervisor itself, and bounded work after a request, its errors logged",
    "app/startup.py": "the start waits for them",
    "http/gateway/overview.py": "one look at the books; the requests that came meanwhile wait for it",
    "http/gateway/usage.py": "one sum over the books; the requests that came meanwhile wait for it",
    "http/openai/background.py": "as long as a job, or one row to be deleted",
    "http/openai/admission.py": "the end waits for them",
    "http/openai/models.py": "one list of models; the clients that asked wait for it",
    "http/openai/sse_relay.py": "as long as its stream, which waits for it",
    "leash.py": "the start of a process; the caller waits for it",
    "cli/serve/in_process.py": "as long as its call to the node; its caller waits for it",
    "purchase/quoting.py": "quotes; the caller waits for them",
    "lightning/lnd/permissions.py": "the first answer of a stream; its caller waits for it, and cancels it",
    "purchase/ports.py": "the way to start a task without a supervisor, for commands and tests",
    "purchase/service.py": "a purchase; its end is recorded",
    "supervisor/channel.py": "a message; its error is sent back or reported",
    "supervisor/child.py": "as long as its worker, whose end is waited for",
    "supervisor/supervisor.py": "the supervisor of the workers: it restarts its own tasks",
    "upstreams/openai/node_watch.py": "a question to a node; the caller waits for it",
    "upstreams/openai/adapter.py": "a connection that is left; bounded by its time-out",
    "upstreams/lcpd/grpcio_transport.py": "as long as its channel; the next call starts it again where it has ended",
    "upstreams/lcpd/http2_transport.py": "a connection, or a call that waits for one; both bounded by time-outs",
    "upstreams/lcpd/peer_watch.py": "a question to the daemon; the caller waits for it",
}
"""The modules that start a task of their own, and why it need not be supervised."""


def _starts_tasks(tree: ast.AST) -> bool:
    names = {"create_task", "ensure_future", "TaskGroup"}
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Attribute) and call.attr in names for call in calls)


def test_no_module_starts_a_permanent_task_without_the_supervisor():
    """Regression: eight tasks ended silently. A module that starts a task without the supervisor must be listed here with its reason."""
    root = Path(lcp_gateway.__file__).parent
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if _starts_tasks(parsed(path))}
    # Programs of their own: the simulator, a node over lnd, a node that dials in, the process of local models.
    programs = ("node/", "node_client/", "cli/join/", "cli/node/", "local_models/")
    assert {name for name in found if not name.startswith(programs)} == set(SHORT)


def test_each_task_of_the_table_is_started_somewhere():
    root = Path(lcp_gateway.__file__).parent / "app"
    started = {
        node.args[0].value
        for path in root.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", "") or getattr(node.func, "attr", "")) in {"BackgroundTask", "starter", "start"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert started == set(TASKS)
