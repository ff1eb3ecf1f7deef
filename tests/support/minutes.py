"""Limits count by minutes of the clock: what was counted before a minute ended weighs less with each second after it."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_ATTEMPTS = 3


def within_a_minute(attempt: Callable[[], T]) -> T:
    """Return the result of an attempt that has to begin and end in one minute; only one that did not may fail, and is made anew."""
    for _ in range(_ATTEMPTS - 1):
        minute = time.time() // 60
        try:
            return attempt()
        except AssertionError:
            if time.time() // 60 == minute:
                raise
    return attempt()


def within(limit_s: float, attempt: Callable[[], T]) -> T:
    """Return the result of an attempt that may take ``limit_s`` seconds; only one that took longer may fail, and is made anew."""
    for _ in range(_ATTEMPTS - 1):
        begun = time.monotonic()
        try:
            return attempt()
        except AssertionError:
            if time.monotonic() - begun < limit_s:
                raise
    return attempt()
