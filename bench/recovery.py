"""How soon a buyer and a seller over two small lnds work again after the death of a node, of an lnd, of all of them.

``python -m bench.recovery [--rounds N]``. Times begin when the processes are ended and started again at once. "idle" is until the
next job is delivered; "paying" is until the job is delivered whose payment was under way.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.lcp_jobs import VICTIMS, Job, end_and_start, let_everything_go
from tests.support.lcp_processes import LcpWorld, lcp_world


def _idle(world: LcpWorld, victims: tuple[str, ...]) -> tuple[float, float, float]:
    """Return how long it takes to start the processes, to see the peer, and to deliver a job; seconds."""
    began = time.monotonic()
    end_and_start(world, victims, lambda: None)
    started = time.monotonic() - began
    world.until_ready()
    ready = time.monotonic() - began
    if not world.accept(world.quote()).wait().delivered:
        raise SystemExit(f"no job is delivered after the end of {victims}")
    return started, ready, time.monotonic() - began


def _paying(world: LcpWorld, victims: tuple[str, ...]) -> float:
    job = Job(world, "paying")
    began = time.monotonic()
    end_and_start(world, victims, lambda: None)
    job.go_on()
    world.until_ready()
    if not job.end().delivered:
        raise SystemExit(f"a paid job is lost after the end of {victims}")
    return time.monotonic() - began


def _measure(victims: tuple[str, ...]) -> tuple[float, ...]:
    # Nodes of their own for each measurement: after a second break within a minute a node waits longer before it tries again.
    with tempfile.TemporaryDirectory() as folder, lcp_world(Path(folder)) as world:
        world.until_ready()
        idle = _idle(world, victims)
    with tempfile.TemporaryDirectory() as folder, lcp_world(Path(folder)) as world:
        world.until_ready()
        paying = _paying(world, victims)
        world.network.run(let_everything_go(world))
    return (*idle, paying)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{'ended':42} {'started':>8} {'peer':>8} {'idle':>8} {'paying':>8}   median seconds of {rounds}")
    for victims in VICTIMS:
        columns = zip(*[_measure(victims) for _ in range(rounds)], strict=True)
        print(f"{' + '.join(victims):42}", *(f"{statistics.median(it):8.2f}" for it in columns), flush=True)


if __name__ == "__main__":
    main()
