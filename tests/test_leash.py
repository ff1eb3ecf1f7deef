"""A command on a leash: its exit code, and no process of it left behind."""

import asyncio
from asyncio.subprocess import DEVNULL

import psutil

from lcp_gateway.leash import start_leashed, stop_leashed, wait_leashed
from tests.support.node_thread import eventually


async def start(*command):
    return await start_leashed(command, stdout=DEVNULL, stderr=DEVNULL)


async def test_the_exit_code_is_the_commands():
    assert await wait_leashed(await start("sh", "-c", "exit 7")) == 7
    assert await wait_leashed(await start("no-such-command")) == 127


async def test_a_process_that_a_command_leaves_behind_is_killed(tmp_path):
    pid = tmp_path / "pid"
    await wait_leashed(await start("sh", "-c", f"sleep 600 & echo $! >{pid}"))
    eventually(lambda: _is_gone(int(pid.read_text())))


async def test_a_command_that_is_stopped_gets_a_signal_that_it_can_answer(tmp_path):
    said, ready = tmp_path / "said", tmp_path / "ready"
    process = await start("sh", "-c", f"trap 'echo bye >{said}; exit 0' TERM; : >{ready}; while :; do sleep 0.05; done")
    async with asyncio.timeout(60):
        while not ready.exists():
            await asyncio.sleep(0.01)
    await stop_leashed(process)
    assert said.read_text() == "bye\n"


def _is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
