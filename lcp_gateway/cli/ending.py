"""Ends a gateway's process: it is asked first, and killed only when it does not go."""

import signal
from collections.abc import Callable

from lcp_gateway.cli.processes import Process, children_of, send, wait_gone

_TELL_AFTER_S = 1.0
_KILLED_WITHIN_S = 5.0
# An embedded node leaves by itself once its gateway is gone.
_NODE_LEAVES_WITHIN_S = 5.0


class WouldNotEnd(Exception):
    """A process is still there after it was killed."""


def end(process: Process, timeout_s: float, waiting: Callable[[], None]) -> bool:
    """End a gateway and the node that it runs, and tell whether it had to be killed after ``timeout_s``.

    ``waiting`` is called once when it takes a while.

    Raises:
        WouldNotEnd: not even that helped.
        OSError: the system does not allow it.
    """
    nodes = {*children_of(process)}
    send(process, signal.SIGTERM)
    left = wait_gone([process], min(timeout_s, _TELL_AFTER_S))
    if left and timeout_s > _TELL_AFTER_S:
        waiting()
        left = wait_gone([process], timeout_s - _TELL_AFTER_S)
    if left:
        nodes.update(children_of(process))
        send(process, signal.SIGKILL)
        if wait_gone([process], _KILLED_WITHIN_S):
            raise WouldNotEnd
    for node in wait_gone(list(nodes), _NODE_LEAVES_WITHIN_S):
        send(node, signal.SIGKILL)
    return bool(left)
