"""Work as numbers that do not depend on the machine: executed lines of Python and called functions.

Copies and searches inside one C call are not seen: ``python -m bench.growth`` measures those.
"""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_executed(call: Callable[[], object]) -> int:
    """Return how many lines of Python a call executes, each turn of a loop counted."""
    lines = 0

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    # A collection would run the finalizers of other tests' objects here.
    gc.disable()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return lines


def functions_called(call: Callable[[], object]) -> tuple[str, ...]:
    """Return the names of the functions that a call calls, those written in C too, in their order."""
    names: list[str] = []

    def trace(frame: FrameType, event: str, value: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_qualname)
        elif event == "c_call":
            names.append(value.__qualname__)

    gc.disable()
    sys.setprofile(trace)
    try:
        call()
    finally:
        sys.setprofile(None)
        gc.enable()
    return tuple(names[:-1])
