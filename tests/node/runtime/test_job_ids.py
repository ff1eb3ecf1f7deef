"""Ids of jobs that a node knows again."""

import os

from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.node.runtime.job_ids import JobIds

KEY = b"\x01" * 32


@given(st.integers(0, 2**32 - 1))
def test_an_id_tells_its_own_node_when_it_was_made(time):
    job_id = JobIds(KEY, lambda: time + 0.9).new()
    assert len(job_id) == 32
    assert JobIds(KEY, lambda: 0).made_at(job_id) == time
    assert JobIds(b"\x02" * 32, lambda: 0).made_at(job_id) is None


@given(st.integers(0, 31), st.integers(1, 255))
def test_an_id_that_was_altered_is_another_nodes(place, change):
    altered = bytearray(JobIds(KEY, lambda: 1_800_000_000).new())
    altered[place] ^= change
    assert JobIds(KEY, lambda: 0).made_at(bytes(altered)) is None


def test_ids_differ_and_those_of_other_programs_are_not_known():
    ids = JobIds(KEY, lambda: 1_800_000_000)
    assert len({ids.new()[:6] for _ in range(1_000)}) == 1_000
    assert ids.made_at(os.urandom(32)) is None
    assert ids.made_at(b"") is None
