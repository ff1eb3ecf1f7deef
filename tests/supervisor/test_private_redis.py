"""The private Redis: on a socket that only its user reaches, started again when it dies, ended with the process that started it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from lcp_gateway.supervisor.private_redis import PrivateRedis, RedisMissing, find_server
from tests.support.redis import binary

UNTIL_S = 60


def servers(folder):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words) and "redis-server" in words[0]:
            found.append(process)
    return found


async def until(happened):
    async with asyncio.timeout(UNTIL_S):
        while not happened():
            await asyncio.sleep(0.02)


async def test_it_serves_on_a_private_socket_and_is_started_again(tmp_path):
    reports = []
    redis = PrivateRedis(binary(), tmp_path, os.environ, reports.append)
    await redis.start()
    keeper = asyncio.create_task(redis.keep_running())
    try:
        assert redis.url == f"unix://{tmp_path}/redis.sock"
        assert (tmp_path / "redis.sock").stat().st_mode & 0o077 == 0
        first = servers(tmp_path)
        first[0].send_signal(signal.SIGKILL)
        await until(lambda: reports and redis._process.returncode is None and servers(tmp_path) not in ([], first))
        assert "starts again" in reports[0]
    finally:
        # First: it starts a server that has ended.
        keeper.cancel()
        await asyncio.wait([keeper])
        await redis.stop()
    await until(lambda: not servers(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.name != "redis.sock"] == []


async def test_one_that_did_not_answer_in_time_is_started_again(tmp_path, monkeypatch):
    server, hung = tmp_path / "redis-server", tmp_path / "hung"
    server.write_text(f'#!/bin/sh\n[ -e {hung} ] && exec {binary()} "$@"\n: >{hung}\nexec sleep 600\n')
    server.chmod(0o700)
    redis = PrivateRedis(str(server), tmp_path, os.environ)
    with monkeypatch.context() as impatient:
        impatient.setattr("lcp_gateway.supervisor.private_redis._START_S", 0.2)
        with pytest.raises(RedisMissing, match="did not answer"):
            await redis.start()
    keeper = asyncio.create_task(redis.keep_running())
    try:
        await until((tmp_path / "redis.sock").exists)
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
        await redis.stop()
    await until(lambda: not servers(tmp_path))


async def test_it_ends_with_a_parent_that_was_killed(tmp_path):
    code = (
        "import asyncio, os, pathlib\n"
        "from lcp_gateway.supervisor.private_redis import PrivateRedis\n"
        f"async def main():\n await PrivateRedis({binary()!r}, pathlib.Path({str(tmp_path)!r}), os.environ).start()\n"
        " print('up', flush=True)\n await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert await asyncio.to_thread(parent.stdout.readline) == b"up\n"
        assert servers(tmp_path)
    finally:
        parent.kill()
        parent.wait(UNTIL_S)
        parent.stdout.close()
    await until(lambda: not servers(tmp_path))


async def test_a_server_that_ends_at_once_says_why(tmp_path):
    redis = PrivateRedis(shutil.which("false"), tmp_path, os.environ)
    with pytest.raises(RedisMissing, match="ended at once"):
        await redis.start()


def test_without_a_server_the_error_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisMissing, match=r"apt install redis-server.*redis_url, or use workers = 1"):
        find_server()
