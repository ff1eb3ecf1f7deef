"""The jobs that were paid for lately: a peer must never be told that such a job is not wanted."""

from collections import OrderedDict
from typing import Final

_MOST: Final = 4_096


class PaidJobs:
    """Ids of jobs whose one call that may pay has gone out, the newest few thousand.

    Job ids are the peer's choice. One that hands out the id of a running job again must not have that job cancelled when
    its second quote is not taken.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, job_id: bytes) -> bool:
        """Return whether a job was paid for lately, or may have been."""
        return job_id in self._ids

    def add(self, job_id: bytes) -> None:
        """Remember a job that is about to be paid for."""
        self._ids[job_id] = None
        if len(self._ids) > _MOST:
            self._ids.popitem(last=False)
