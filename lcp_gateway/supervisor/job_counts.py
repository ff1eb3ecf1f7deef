"""How many jobs each worker has under way, in memory that all of them and the supervisor see."""

import mmap
import os
import tempfile
from typing import Final, Self

_WIDTH: Final = 8


class JobCounts:
    """A counter for each worker, which that worker alone writes; the supervisor clears that of one that died.

    A worker counts a job first and then reads the sum: of two at one time each sees the other's, so that a limit of all
    together is never exceeded, without a lock.
    """

    def __init__(self, descriptor: int, workers: int) -> None:
        """``descriptor`` is that of the file that ``create`` made, inherited."""
        self.descriptor = descriptor
        self._counts = memoryview(mmap.mmap(descriptor, workers * _WIDTH)).cast("q")

    @classmethod
    def create(cls, workers: int) -> Self:
        """Return counters that begin at 0; the descriptor is to be closed by the caller."""
        with tempfile.TemporaryFile() as file:
            file.truncate(workers * _WIDTH)
            return cls(os.dup(file.fileno()), workers)

    def add(self, place: int, by: int) -> None:
        """Count at a worker's place."""
        self._counts[place] += by

    def clear(self, place: int) -> None:
        """Forget the jobs of a worker that died."""
        self._counts[place] = 0

    @property
    def total(self) -> int:
        """The jobs of all workers."""
        return sum(self._counts)
