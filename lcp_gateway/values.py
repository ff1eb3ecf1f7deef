"""Values: data classes that are made by the dozen for each request."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform, overload

T = TypeVar("T")


@overload
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(kind: type[T], /) -> type[T]: ...
@overload
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(*, kw_only: bool) -> Callable[[type[T]], type[T]]: ...
def value(kind: type[T] | None = None, /, *, kw_only: bool = False) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a data class whose fields are never set again, which the type checker sees to.

    ``dataclass(frozen=True)`` sees to it at run time as well, and then makes an object at two to four times the cost.
    Arguments by name cost a microsecond more: worth it where a mistake of order would be one about money.
    """
    made: Callable[[type[T]], type[T]] = dataclass(slots=True, unsafe_hash=True, kw_only=kw_only)
    return made if kind is None else made(kind)
