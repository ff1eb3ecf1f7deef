"""A command on a leash: its exit code, and no process of it left behind."""

import asyncio
from asyncio.subprocess import DEVNULL, PIPE

import psutil
import pytest

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


@pytest.mark.parametrize("turns", [0, 2, 3, 4])
async def test_a_start_that_is_cancelled_leaves_nothing_behind(tmp_path, turns):
    """Regression: it waited for ever for its pipes, which the command holds, and the command ran on."""
    pid = tmp_path / "pid"
    command = ("sh", "-c", f"echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 600")
    starting = asyncio.create_task(start_leashed(command, stdout=PIPE, stderr=DEVNULL))
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns:
        # It has been forked by now, and its pipes are not connected yet.
        eventually(pid.exists)
    is_started = starting.done()
    starting.cancel()
    await asyncio.wait([starting], timeout=60)
    assert starting.done()
    if is_started:
        await stop_leashed(starting.result())
    if turns:
        await asyncio.to_thread(eventually, lambda: _is_gone(int(pid.read_text())))


def _is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
