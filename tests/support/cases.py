"""Checks many cases in one test, which names all that fail: an item for each takes longer than such a case itself."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def each_case(names: str, cases: Iterable[Any]) -> Callable:
    """Call a test with each case, in the form of ``pytest.mark.parametrize``; a case must leave nothing behind for the next.

    Raises:
        ExceptionGroup: the errors of all cases that failed, each with its values as a note.
    """
    listed = [name.strip() for name in names.split(",")]
    every = [dict(zip(listed, _values(case, len(listed)), strict=True)) for case in cases]

    def decorate(test: Callable) -> Callable:
        async def check_on_a_loop(**fixtures: Any) -> None:
            errors = []
            for values in every:
                try:
                    await test(**fixtures, **values)
                except Exception as error:  # noqa: BLE001 - the other cases are checked too
                    errors.append(_noted(error, values))
            _report(errors, len(every))

        def check(**fixtures: Any) -> None:
            errors = []
            for values in every:
                try:
                    test(**fixtures, **values)
                except Exception as error:  # noqa: BLE001 - the other cases are checked too
                    errors.append(_noted(error, values))
            _report(errors, len(every))

        made = functools.wraps(test)(check_on_a_loop if inspect.iscoroutinefunction(test) else check)
        signature = inspect.signature(test)
        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in listed]
        made.__signature__ = signature.replace(parameters=fixtures)
        return made

    return decorate


def _values(case: Any, count: int) -> Sequence[Any]:
    if isinstance(case, type(pytest.param())):
        return case.values
    return (case,) if count == 1 else case


def _noted(error: Exception, values: dict[str, Any]) -> Exception:
    error.add_note(f"the case: {values!r:.1000}")
    return error


def _report(errors: list[Exception], count: int) -> None:
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {count} cases", errors)
