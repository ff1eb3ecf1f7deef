"""Paced streams are each their own, also around a daemon that is killed: the short version of `python -m tests.soak.streams`."""

import pytest

from tests.soak.streams import soak

pytestmark = pytest.mark.slow


async def test_streams_are_never_mixed_up_nor_called_whole_when_the_daemon_is_killed(tmp_path):
    run = await soak(streams=24, seconds=10, pause_s=0.02, chunks=120, folder=tmp_path, returns=False)
    assert run.problems == []
    assert run.counts["whole"] >= 24
    assert run.counts["cut"] > 0
