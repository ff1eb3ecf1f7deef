"""The jobs of all workers: exact in their sum, never above a limit, and without those of a worker that died."""

import os

from lcp_gateway.supervisor.job_counts import JobCounts

LIMIT, WORKERS, TURNS = 5, 4, 3_000


def enter_and_leave(counts, inside, place):
    """Take places while there is room for one; return 1 if ever more than the limit were inside."""
    for _ in range(TURNS):
        counts.add(place, 1)
        if counts.total > LIMIT:
            counts.add(place, -1)
            continue
        inside.add(place, 1)
        too_many = inside.total > LIMIT
        inside.add(place, -1)
        counts.add(place, -1)
        if too_many:
            return 1
    return 0


def test_processes_that_enter_at_one_time_never_exceed_the_limit():
    counts, inside = JobCounts.create(WORKERS), JobCounts.create(WORKERS)
    pids = []
    for place in range(WORKERS):
        pid = os.fork()
        if not pid:
            os._exit(enter_and_leave(JobCounts(counts.descriptor, WORKERS), inside, place))
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * WORKERS
    assert counts.total == inside.total == 0
    for made in (counts, inside):
        os.close(made.descriptor)


def test_a_worker_that_died_has_no_jobs_any_more():
    counts = JobCounts.create(3)
    counts.add(0, 2)
    counts.add(2, 5)
    assert counts.total == 7
    counts.clear(2)
    assert counts.total == 2
    os.close(counts.descriptor)
