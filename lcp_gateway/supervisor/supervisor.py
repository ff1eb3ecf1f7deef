"""The supervisor: starts the workers of one gateway, starts those again that die, and passes on what it is asked to do."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from lcp_gateway.config import ConfigError, Loaded, parse_host_port
from lcp_gateway.supervisor.channel import Handler, QuestionFailed
from lcp_gateway.supervisor.child import Child
from lcp_gateway.supervisor.job_counts import JobCounts
from lcp_gateway.supervisor.listening import ListeningSockets, open_sockets
from lcp_gateway.supervisor.messages import Boot, Message, Overview, Ready, ReloadResult
from lcp_gateway.supervisor.private_redis import PrivateRedis
from lcp_gateway.supervisor.reloading import log_refusal, log_reload
from lcp_gateway.supervisor.systemd import Notifier
from lcp_gateway.telemetry.merged_metrics import Snapshot, WorkerCounts

_PULSE_EVERY_S: Final = 5.0
_SCRAPE_S: Final = 3.0
_RELOAD_S: Final = 30.0
_HUNG_S: Final = 30.0
_PAUSE_S: Final = 1.0
_KEY_BYTES: Final = 32
_STANDARD_STREAMS: Final = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The pauses before a dead worker is started again: they double from the first to the longest.

    A run of ``settled_s`` ends a row of failures.
    """

    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    settled_s: float = 5.0


class WorkersNotStarted(Exception):
    """A worker ended while the gateway started; it has said why. ``exit_code`` is its own."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class Supervisor:
    """Runs the workers of one gateway until it is stopped."""

    def __init__(
        self,
        loaded: Loaded,
        workers: int,
        *,
        read_settings: Callable[[], Loaded],
        banner: Sequence[str],
        folder: Path,
        log: FilteringBoundLogger,
        environ: Mapping[str, str],
        log_file: Path | None = None,
        restarts: RestartPolicy = RestartPolicy(),
        redis_server: str = "",
    ) -> None:
        """``read_settings`` is called at each SIGHUP; it raises ``ConfigError`` where the settings cannot be used.

        ``folder`` is for the socket of the private Redis, which runs ``redis_server``; empty where one is configured.
        ``log_file`` is the file behind standard output, where the gateway runs in the background.
        """
        self._loaded = loaded
        self._read_settings = read_settings
        self._banner = banner
        self._folder = folder
        self._log = log
        self._environ = environ
        self._log_file = log_file
        self._restarts = restarts
        self._redis_server = redis_server
        self._run_id = secrets.token_hex(8)
        self._run_secret = secrets.token_hex(_KEY_BYTES)
        self._children: list[Child | None] = [None] * workers
        self._counts = WorkerCounts()
        self._jobs = JobCounts.create(workers)
        self._stopping = asyncio.Event()
        self._hang_up = asyncio.Event()
        self._ready = [asyncio.Event() for _ in range(workers)]
        self._first_ready: Ready | None = None
        self._serves = False
        self._heard_at = 0.0
        self._keepers: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, notifier: Notifier) -> int:
        """Run the gateway; return the exit code.

        Raises:
            CannotListen: an address cannot be listened on.
            RedisMissing: the private Redis does not start.
        """
        settings, workers = self._loaded.settings, len(self._children)
        self._loop = asyncio.get_running_loop()
        self._handle_signals()
        async with contextlib.AsyncExitStack() as stack:
            addresses = []
            for address in filter(None, (settings.http_addr, settings.metrics_addr)):
                where = parse_host_port(address)
                opened = open_sockets(where.host, where.port, workers)
                stack.callback(opened.close)
                addresses.append(opened)
            main, metrics = addresses[0], addresses[1] if settings.metrics_addr else None
            tasks: list[Callable[[], Coroutine[Any, Any, None]]] = []
            if self._redis_server:
                redis = PrivateRedis(self._redis_server, self._folder, self._environ, self._redis_ended)
                stack.push_async_callback(redis.stop)
                await redis.start()
                self._loaded = self._with_redis(self._loaded, redis.url)
                tasks.append(redis.keep_running)
            tasks += [partial(self._watch_workers, notifier), partial(self._reload_on_demand, notifier)]
            if notifier.has_watchdog:
                tasks.append(partial(notifier.watch, self._is_well))
            try:
                await self._start_workers(main, metrics)
            except WorkersNotStarted as error:
                await self._stop_workers()
                return error.exit_code
            if not self._stopping.is_set():
                self._greet()
                notifier.ready(self._status())
                self._serves = True
                running = [asyncio.create_task(self._lasting(task)) for task in tasks]
                await self._stopping.wait()
                notifier.stopping()
                # The Redis is needed until the last worker has drained, and ends below.
                await self._stop_workers()
                for task in running:
                    task.cancel()
                await asyncio.wait(running)
            else:
                await self._stop_workers()
        return 0

    async def _lasting(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task as long as the gateway; an error is logged, and the task is started again."""
        while True:
            try:
                await run()
            except Exception as error:  # noqa: BLE001 - the supervisor has to go on after any error
                self._log.error("a task of the supervisor ended and will be restarted", exc_info=error)
            await asyncio.sleep(_PAUSE_S)

    def log_was_moved(self) -> None:
        """Have the workers write to the new log file; from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell_all, Message.LOG_MOVED)

    # -- the life of a worker -----------------------------------------------------------------------

    async def _start_workers(self, main: ListeningSockets, metrics: ListeningSockets | None) -> None:
        """Start all workers, and wait until they serve: the first alone, since it may have to make the database.

        Raises:
            WorkersNotStarted: one of them ended.
        """
        boot = Boot(
            place=0,
            workers=len(self._children),
            loaded=self._loaded,
            run_id=self._run_id,
            run_secret=self._run_secret,
            sockets=_descriptors(main),
            metrics_sockets=_descriptors(metrics) if metrics is not None else (),
            job_counts=self._jobs.descriptor,
            log_file=self._log_file,
        )
        for places in ((0,), range(1, len(self._children))):
            for place in places:
                self._keepers.append(asyncio.create_task(self._keep(replace(boot, place=place))))
            serving = [asyncio.create_task(self._ready[place].wait()) for place in places]
            stopping = asyncio.create_task(self._stopping.wait())
            try:
                waiting: set[asyncio.Task[Any]] = set(serving)
                while waiting and not self._stopping.is_set():
                    done, _ = await asyncio.wait(
                        {*waiting, *self._keepers, stopping}, return_when=asyncio.FIRST_COMPLETED
                    )
                    for keeper in done.intersection(self._keepers):
                        keeper.result()
                    waiting -= done
            finally:
                for task in (*serving, stopping):
                    task.cancel()
            if self._stopping.is_set():
                return

    async def _keep(self, boot: Boot) -> None:
        """Run a worker, and start it again whenever it ends, until the gateway stops.

        Raises:
            WorkersNotStarted: it ended before it served for the first time.
        """
        place, failures = boot.place, 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code, pid = await self._run_worker(replace(boot, loaded=self._loaded))
            if self._stopping.is_set():
                return
            if not self._serves:
                raise WorkersNotStarted(code if code > 0 else 1)
            failures = 1 if time.monotonic() - began >= self._restarts.settled_s else failures + 1
            pause_s = min(self._restarts.first_pause_s * 2.0 ** min(failures - 1, 20), self._restarts.longest_pause_s)
            self._log.error(
                "a worker ended and is started again",
                worker=place + 1,
                pid=pid,
                code=code,
                failures_in_a_row=failures,
                restart_in_s=pause_s,
            )
            self._stand_in_for(place)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()

    async def _run_worker(self, boot: Boot) -> tuple[int, int]:
        """Run a worker to its end; return its exit code and its process id."""
        answers: dict[str, Handler] = {Message.SCRAPE: self._scrape, Message.OVERVIEW: self._overview}
        try:
            child = await Child.start(boot, self._environ, self._serving, answers)
        except OSError as error:
            self._log.error("a worker cannot be started", worker=boot.place + 1, problem=error.strerror)
            return 1, 0
        self._children[boot.place] = child
        if self._stopping.is_set():
            child.tell(Message.STOP)
        code = await child.wait()
        self._children[boot.place] = None
        self._counts.retire(child.number)
        self._jobs.clear(boot.place)
        return code, child.process.pid

    def _serving(self, child: Child, ready: Ready) -> None:
        self._first_ready = self._first_ready or ready
        self._ready[child.place].set()
        if self._stopping.is_set():
            return
        if child.loaded is not self._loaded:
            self._log.error(
                "a worker began with settings of before a reload and is started again", worker=child.place + 1
            )
            child.kill()
            return
        if self._serves:
            self._log.info("a worker serves again", worker=child.place + 1, pid=child.process.pid)
        for other in self._running():
            if other is not child:
                other.tell(Message.ACCEPT_NO_MORE_FOR, child.place)
        # Those of others that are down, where all were.
        for place, held in enumerate(self._children):
            if (held is None or not held.is_ready) and self._serves:
                self._stand_in_for(place)

    def _stand_in_for(self, place: int) -> None:
        """Have another worker accept the connections that the system gives to one that is down."""
        others = [child for child in self._running() if child.place != place]
        if others:
            nearest = min(others, key=lambda child: (child.place - place) % len(self._children))
            nearest.tell(Message.ACCEPT_FOR, place)

    def _running(self) -> list[Child]:
        return [child for child in self._children if child is not None and child.is_ready and child.runs]

    def _tell_all(self, kind: Message) -> None:
        for child in self._children:
            if child is not None:
                child.tell(kind)

    async def _stop_workers(self) -> None:
        """End the workers in order, and wait for their end."""
        self._stopping.set()
        self._tell_all(Message.STOP)
        if self._keepers:
            await asyncio.wait(self._keepers)

    async def _watch_workers(self, notifier: Notifier) -> None:
        """Keep the last counts of each worker, and end one that does not answer: its event loop hangs."""
        hung_s = notifier.watchdog_s or _HUNG_S
        looking: dict[int, asyncio.Task[None]] = {}
        self._heard_at = time.monotonic()
        try:
            while True:
                for child in self._running():
                    # One that hangs must not hold up the look at the others.
                    if child.number not in looking or looking[child.number].done():
                        looking[child.number] = asyncio.create_task(self._look_at(child, hung_s))
                for number in [number for number, task in looking.items() if task.done()]:
                    looking.pop(number).result()
                await asyncio.sleep(_PULSE_EVERY_S)
        finally:
            for task in looking.values():
                task.cancel()

    async def _look_at(self, child: Child, hung_s: float) -> None:
        """Keep the counts of one worker, or end it."""
        try:
            found = await child.metrics(hung_s)
        except QuestionFailed as failed:
            # Its event loop runs, and so do its jobs.
            self._heard_at = time.monotonic()
            self._log.error("a worker cannot read its metrics", worker=child.place + 1, problem=str(failed))
            return
        if found is not None:
            self._heard_at = time.monotonic()
            if child.runs:
                self._counts.update(child.number, found)
        elif child.is_ready and child.runs and not self._stopping.is_set():
            self._log.error("a worker does not answer and is ended", worker=child.place + 1, pid=child.process.pid)
            child.kill()

    def _is_well(self) -> bool:
        """Return whether any worker has answered lately."""
        return time.monotonic() - self._heard_at < _HUNG_S

    # -- questions of the workers -------------------------------------------------------------------

    async def _scrape(self, _content: object) -> Snapshot:
        """Return the metrics of all workers; of one that does not answer the last ones."""

        async def look(child: Child) -> None:
            with contextlib.suppress(QuestionFailed):
                found = await child.metrics(_SCRAPE_S)
                if found is not None and child.runs:
                    self._counts.update(child.number, found)

        async with asyncio.TaskGroup() as group:
            for child in self._running():
                group.create_task(look(child))
        return self._counts.merged()

    async def _overview(self, _content: object) -> Overview:
        return Overview(len(self._running()), len(self._children), self._jobs.total)

    # -- reloads and the end ------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        """Stop at SIGTERM and SIGINT; reload at SIGHUP, or stop where the terminal was closed."""
        loop = asyncio.get_running_loop()
        terminal = next((number for number in _STANDARD_STREAMS if os.isatty(number)), None)

        def stop() -> None:
            if self._stopping.is_set():
                # The second one: running jobs are not waited for.
                self._tell_all(Message.STOP)
            self._stopping.set()

        def hung_up() -> None:
            if terminal is not None and not os.isatty(terminal):
                self._stopping.set()
            else:
                self._hang_up.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(hung_up))

    async def _reload_on_demand(self, notifier: Notifier) -> None:
        while True:
            await self._hang_up.wait()
            self._hang_up.clear()
            notifier.reloading()
            try:
                await self._reload()
            except ConfigError as error:
                log_refusal(self._log, error.problems)
            except Exception as error:  # noqa: BLE001 - a gateway that serves must not end because of its settings
                self._log.error("the settings could not be taken in", exc_info=error)
                log_refusal(self._log, ["an unexpected error; see the log"])
            finally:
                notifier.ready()

    async def _reload(self) -> None:
        """Have all workers take the settings that are read now, once: the first may refuse them, and then none takes them."""
        loaded = await asyncio.to_thread(self._read_settings)
        if self._redis_server:
            loaded = self._with_redis(loaded, self._loaded.settings.redis_url)
        if not (running := self._running()):
            log_refusal(self._log, ["no worker serves now"])
            return
        first = running[0]
        result = await first.reload(loaded, _RELOAD_S)
        if result is None:
            result = ReloadResult(problems=["a worker did not answer; see the log"])
        if result.problems:
            log_refusal(self._log, result.problems)
            return
        # Those that start from now on begin with them.
        self._loaded = replace(loaded, settings=loaded.keeping(self._loaded.settings, result.needs_restart))
        # Also those that have begun to serve meanwhile.
        others = [child for child in self._running() if child is not first]
        for child, later in zip(
            others, await asyncio.gather(*(child.reload(loaded, _RELOAD_S) for child in others)), strict=True
        ):
            if later is None or later.problems:
                # A file was changed in between, or it hangs: it is started again, with the settings of the others.
                self._log.error("a worker could not take the settings and is started again", worker=child.place + 1)
                child.kill()
        log_reload(self._log, result)

    # -- words --------------------------------------------------------------------------------------

    @staticmethod
    def _with_redis(loaded: Loaded, url: str) -> Loaded:
        return replace(loaded, settings=loaded.settings.model_copy(update={"redis_url": url}))

    def _redis_ended(self, problem: str) -> None:
        self._log.error("the private Redis", problem=problem)

    def _greet(self) -> None:
        greeting = () if self._first_ready is None else self._first_ready.greeting
        sys.stdout.write("\n".join([*self._banner, *greeting]) + "\n")
        sys.stdout.flush()

    def _status(self) -> str:
        status = "" if self._first_ready is None else self._first_ready.status
        return f"{len(self._children)} workers, {status}"


def _descriptors(address: ListeningSockets) -> Sequence[Sequence[int]]:
    return [[one.fileno() for one in sockets] for sockets in address.by_worker]
