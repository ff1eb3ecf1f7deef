"""Nodes that dial in, for minutes: ``python -m tests.soak.dialin streams | restart | chaos``.

``streams``: 500 streams over one connection with readers that stop for a minute: the others flow, and memory stays flat.
``restart``: 300 simulated nodes are back within seconds after the gateway was killed and started again.
``chaos``: nodes, backends, the gateway and connections are killed, stopped and cut at random moments under load: nothing
is charged that was not delivered, and the books are in order.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from lcp_gateway.node_client.reconnect import pause_s
from tests.support.dialin_node import EVENTS, ScriptedNode, chat_events, dial, hello, honest, model
from tests.support.forked import start_module
from tests.support.gateway import RunningGateway, clean_environment, gateway
from tests.support.http_node import HttpNodeThread
from tests.support.ports import free_port
from tests.support.wire import get
from tests.system.selling.seller import Office, selling

PRICE_MSAT = 1_000
COMMISSION_PERCENT = 10


@contextlib.contextmanager
def served(folder: Path, port: int, nodes: list[str], **settings: object):
    rows = [{"name": name, "token": f"tok-{name}", "price_per_request_msat": PRICE_MSAT} for name in nodes]
    environment = {
        "LCP_GATEWAY_HTTP_ADDR": f"127.0.0.1:{port}",
        "LCP_GATEWAY_LCPD_GRPC_ADDR": "127.0.0.1:1",
        "LCP_GATEWAY_PREFLIGHT": "false",
        "LCP_GATEWAY_JOURNAL_URL": str(folder / "journal.db"),
        "LCP_GATEWAY_DIALIN_NODES": json.dumps(rows),
        "LCP_GATEWAY_DIALIN_HEARTBEAT_S": "1",
        "LCP_GATEWAY_MAX_CONCURRENT_REQUESTS": "2000",
        **{f"LCP_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()},
    }
    if not nodes:
        environment["LCP_GATEWAY_DIALIN_ACCOUNTS"] = "true"
    with gateway(embedded=False, env=environment) as running:
        yield running


def up(port: int) -> int:
    try:
        return sum(node["up"] for node in get(port, "/readyz").json.get("nodes", {}).values())
    except OSError:
        return 0


async def until(is_so, timeout_s: float = 60.0) -> float:
    started = time.monotonic()
    while not await asyncio.to_thread(is_so):
        if time.monotonic() - started > timeout_s:
            raise SystemExit("it did not come to that in time")
        await asyncio.sleep(0.1)
    return time.monotonic() - started


# -- streams ------------------------------------------------------------------------------------------


async def streams(count: int, stopped: int, seconds: float) -> None:
    """One node, many streams of a token each 100 ms; some readers stop."""

    async def paced(node, request_id, request, _body):
        word = chat_events("m", ["word " * 40])[1]
        await node.head(request_id, EVENTS)
        ends = time.monotonic() + seconds + 10
        while time.monotonic() < ends:
            await node.body(request_id, word)
            await asyncio.sleep(0.1)

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        port = free_port()
        running: RunningGateway = stack.enter_context(
            served(Path(name), port, ["gpu"], stream_buffer_bytes=65_536, answers_max_bytes=2**20)
        )
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            said = hello(model("m"), concurrent=count + 10)
            node = ScriptedNode(await dial(session, port, "tok-gpu"), paced, said)
            tasks = [asyncio.create_task(node.run()), asyncio.create_task(node.beat(0.5))]
            await node.until(lambda: node.offered)
            got = [0] * count
            late = [0.0] * count
            resting = asyncio.Event()

            async def read(number: int) -> None:
                body = {"model": "m", "messages": [{"role": "user", "content": str(number)}], "stream": True}
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                async with session.post(url, json=body, read_bufsize=4096) as response:
                    assert response.status == 200, await response.text()
                    last = time.monotonic()
                    async for chunk in response.content.iter_any():
                        if number < stopped and resting.is_set():
                            await asyncio.sleep(seconds)
                        now = time.monotonic()
                        late[number] = max(late[number], now - last)
                        last = now
                        got[number] += len(chunk)

            readers = [asyncio.create_task(read(number)) for number in range(count)]
            while min(got) == 0:
                await asyncio.sleep(0.2)
            before, rss = list(got), running.rss_bytes()
            late[:] = [0.0] * count
            resting.set()
            peak = rss
            started = time.monotonic()
            while time.monotonic() - started < seconds:
                await asyncio.sleep(1)
                peak = max(peak, running.rss_bytes())
            flowing = [now - then for now, then in zip(got[stopped:], before[stopped:], strict=True)]
            print(
                f"{count} streams, {stopped} readers stopped for {seconds:g} s: the others got {min(flowing)} to "
                f"{max(flowing)} bytes each, longest gap {max(late[stopped:]):.2f} s; "
                f"memory {rss >> 20} MiB, then at most {peak >> 20} MiB"
            )
            for task in (*readers, *tasks):
                task.cancel()
            await asyncio.gather(*readers, *tasks, return_exceptions=True)
            assert min(flowing) > 0.5 * max(flowing)
            assert peak - rss < 64 * 2**20


# -- restart ------------------------------------------------------------------------------------------


async def restart(count: int) -> None:
    """Simulated nodes that dial again as the real ones do."""
    names = [f"n{number}" for number in range(count)]
    stop = asyncio.Event()

    async def keep(session: aiohttp.ClientSession, port: int, name: str) -> None:
        failures = 0
        while not stop.is_set():
            try:
                node = ScriptedNode(await dial(session, port, f"tok-{name}"), honest, hello(model("m"), name=name))
                failures = 0
                beating = asyncio.create_task(node.beat(0.5))
                try:
                    await node.run()
                finally:
                    beating.cancel()
            except (aiohttp.ClientError, OSError):
                failures += 1
            await asyncio.sleep(pause_s(max(failures, 1), random.random()))

    with tempfile.TemporaryDirectory() as name:
        port = free_port()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            keeping = [asyncio.create_task(keep(session, port, one)) for one in names]
            for how in ("at first", "after kill -9", "after SIGTERM"):
                with served(Path(name), port, names) as running:
                    took = await until(lambda: up(port) == count)
                    print(f"{how}: {count} nodes are there {took:.1f} s after the gateway listens")
                    sig = signal.SIGKILL if how == "at first" else signal.SIGTERM
                    await asyncio.to_thread(running.stop, sig)
            stop.set()
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)


# -- chaos --------------------------------------------------------------------------------------------


class Proxy:
    """Stands between a node and the gateway: cuts its connections, or swallows all bytes, as a half-open one does."""

    def __init__(self, target: int):
        self.port = free_port()
        self._target = target
        self._pairs: set[asyncio.StreamWriter] = set()
        self._silent = asyncio.Event()
        self._silent.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def cut(self) -> None:
        for writer in tuple(self._pairs):
            writer.transport.abort()

    async def go_silent(self, seconds: float) -> None:
        self._silent.clear()
        await asyncio.sleep(seconds)
        self.cut()
        self._silent.set()

    async def _serve(self, reader, writer) -> None:
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._pairs |= {writer, other}

        async def copy(source, sink) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    await self._silent.wait()
                    sink.write(data)
                    await sink.drain()
            sink.transport.abort()

        await asyncio.gather(copy(reader, other), copy(other_reader, writer))
        self._pairs -= {writer, other}


@dataclass
class Tally:
    whole: int = 0
    not_whole: int = 0
    refused: int = 0
    by_event: dict[str, int] = field(default_factory=dict)


async def ask(session: aiohttp.ClientSession, port: int, key: str, number: int, tally: Tally) -> None:
    stream = number % 2 == 0
    body = {"model": "m", "messages": [{"role": "user", "content": f"tell {number}"}], "stream": stream}
    try:
        async with session.post(
            f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
        ) as response:
            data = await response.read()
            if response.status != 200:
                tally.refused += 1
            elif (data.endswith(b"data: [DONE]\n\n") and b'"error"' not in data) if stream else b"choices" in data:
                tally.whole += 1
            else:
                tally.not_whole += 1
    except (aiohttp.ClientError, OSError):
        tally.not_whole += 1
        await asyncio.sleep(0.3)


def there(port: int) -> int:
    """How many nodes of accounts are there."""
    try:
        return sum(node["up"] for node in Office(port).get("nodes").json["data"])
    except (OSError, KeyError):
        return 0


def join(port: int, name: str, token: str, backend: HttpNodeThread, folder: Path):
    environment = {
        "LCP_GATEWAY_JOIN_TOKEN": token,
        "LCP_GATEWAY_JOIN_PRICE_PER_REQUEST_MSAT": str(PRICE_MSAT),
        "LCP_GATEWAY_JOIN_BACKEND": backend.base_url,
        "LCP_GATEWAY_JOIN_CONCURRENT": "16",
        "LCP_GATEWAY_JOIN_REFRESH_S": "1",
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }
    command = ("join", f"ws://127.0.0.1:{port}", "--name", name)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return start_module("lcp_gateway", *command, env=clean_environment(environment), **quiet)


async def chaos(moments: int, seed: int) -> None:  # noqa: C901, PLR0915 - one story
    """Break something every half second or so while eight customers ask."""
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    with tempfile.TemporaryDirectory() as folder_name, contextlib.ExitStack() as stack:
        folder, port, tally = Path(folder_name), free_port(), Tally()
        backends = {name: stack.enter_context(HttpNodeThread(name, ("m",))) for name in names}
        for backend in backends.values():
            backend.behave(token_delay_s=0.03)
        settings = {k.removeprefix("LCP_GATEWAY_").lower(): v for k, v in selling(markup_percent=0).items()}
        serving = contextlib.ExitStack()
        settings["node_commission_percent"] = COMMISSION_PERCENT
        running = serving.enter_context(served(folder, port, [], **settings))
        owner = Office(port).account()
        tokens = {name: Office(port).key(owner, scopes=["node"])["key"] for name in names}
        proxies = {name: Proxy(port) for name in names}
        for proxy in proxies.values():
            await proxy.start()
        nodes = {name: join(proxies[name].port, name, tokens[name], backends[name], folder) for name in names}
        await until(lambda: there(port) == len(names))
        filled = 10**9
        customer = await asyncio.to_thread(Office(port).customer, filled)
        stop = asyncio.Event()

        async def asker(number: int) -> None:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
                while not stop.is_set():
                    number += 8
                    await ask(session, port, customer.key, number, tally)

        askers = [asyncio.create_task(asker(number)) for number in range(8)]
        slowest_back_s = 0.0
        for moment in range(moments):
            await asyncio.sleep(rng.uniform(0.1, 0.7))
            name = rng.choice(names)
            what = rng.choice(("kill node", "stop node", "cut", "half-open", "backend", "kill gateway", "end gateway"))
            if "gateway" in what and moment % 4:
                what = "cut"
            tally.by_event[what] = tally.by_event.get(what, 0) + 1
            match what:
                case "kill node":
                    nodes[name].kill()
                    await asyncio.to_thread(nodes[name].wait, 30)
                    nodes[name] = join(proxies[name].port, name, tokens[name], backends[name], folder)
                case "stop node":
                    nodes[name].send_signal(signal.SIGSTOP)
                    await asyncio.sleep(rng.uniform(0.1, 4))
                    nodes[name].send_signal(signal.SIGCONT)
                case "cut":
                    proxies[name].cut()
                case "half-open":
                    await proxies[name].go_silent(rng.uniform(0.5, 4))
                case "backend":
                    await asyncio.to_thread(backends[name].stop)
                    await asyncio.sleep(0.2)
                    await asyncio.to_thread(backends[name].start)
                case _:
                    sig = signal.SIGKILL if what == "kill gateway" else signal.SIGTERM
                    await asyncio.to_thread(running.stop, sig, 90)
                    serving.close()
                    running = serving.enter_context(served(folder, port, [], **settings))
                    slowest_back_s = max(slowest_back_s, await until(lambda: there(port) >= 2))
        await until(lambda: there(port) == len(names))
        stop.set()
        await asyncio.gather(*askers)
        await until(lambda: customer.balance()["held_msat"] == 0)
        spent = filled - customer.balance()["balance_msat"]
        # A charge is taken when the result begins, and earned when the client has all of it.
        share = 100 - COMMISSION_PERCENT
        await until(lambda: Office(port).balance(owner)["balance_msat"] * 100 == spent * share)
        earned = Office(port).balance(owner)["balance_msat"]
        Office(port).is_in_order()
        print(
            f"{moments} moments {tally.by_event}: {tally.whole} whole results, {tally.not_whole} not, {tally.refused} "
            f"refused; charged {spent} msat for at most {tally.whole * PRICE_MSAT}, earned {earned}; nodes back {slowest_back_s:.1f} s "
            "after the gateway at the latest; the books are in order"
        )
        for process in nodes.values():
            process.kill()
            process.wait(30)
        serving.close()
        assert spent <= tally.whole * PRICE_MSAT, "something was charged that was not delivered"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.dialin", description=__doc__)
    parser.add_argument("what", choices=["streams", "restart", "chaos"])
    parser.add_argument("--count", type=int, default=0, help="streams (500) or nodes (300)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    match arguments.what:
        case "streams":
            asyncio.run(streams(arguments.count or 500, 5, arguments.seconds))
        case "restart":
            asyncio.run(restart(arguments.count or 300))
        case _:
            asyncio.run(chaos(arguments.moments, arguments.seed))


if __name__ == "__main__":
    main()
