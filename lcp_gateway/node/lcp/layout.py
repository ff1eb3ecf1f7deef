"""A layout: which TLV types hold which attributes of a class. One reader and one writer serve all of them."""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any, Generic, TypeVar

from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.tlv import Form, WireError, read_records, write_records

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Field:
    """One row: the TLV type ``kind`` holds ``attribute`` in ``form``.

    An attribute that is not ``required`` is left out where it is None or an empty list. A ``filled`` one may be neither
    empty nor zero where it is present. ``only`` names the version that has the row.
    """

    kind: int
    attribute: str
    form: Form
    required: bool = True
    filled: bool = False
    only: Protocol | None = None


class Layout(Generic[T]):
    """The records of a class in one version of the protocol.

    ``name`` is for errors. Records of types in ``forbidden`` refuse the whole; other types without a row are skipped.
    ``prepare`` may change the attributes that were read before the class is made of them; ``check`` raises WireError for
    attributes that do not go together, when they are read and when they are written.
    """

    def __init__(
        self,
        name: str,
        made: Callable[..., T],
        rows: Iterable[Field],
        protocol: Protocol,
        *,
        forbidden: frozenset[int] = frozenset(),
        prepare: Callable[[dict[str, Any]], None] | None = None,
        check: Callable[[T], None] | None = None,
    ) -> None:
        self.name = name
        self.made = made
        self.rows = tuple(row for row in rows if row.only in {None, protocol})
        self.form = Form(self.read, self.write)
        self._by_kind = {row.kind: (row, row.attribute, row.form.read, row.filled) for row in self.rows}
        self._to_write = tuple((row, row.attribute, row.form.write) for row in self.rows)
        self._required = frozenset(row.attribute for row in self.rows if row.required)
        self._forbidden = forbidden
        self._prepare = prepare
        self._check = check
        self._version = f"0.{protocol.value}"
        held = {row.attribute for row in self.rows}
        self._absent = {
            one.name: one.default
            for one in fields(made)  # type: ignore[arg-type]  # a dataclass, which Callable does not say
            if one.name not in held and one.default is not MISSING
        }

    def read(self, payload: bytes) -> T:
        """Read an object of the class.

        Raises:
            WireError: the bytes are no such object.
        """
        try:
            records = read_records(payload)
        except WireError as error:
            raise WireError(f"{self.name}: {error}") from None
        values: dict[str, Any] = {}
        for kind, value in records:
            known = self._by_kind.get(kind)
            if known is not None:
                row, attribute, read, filled = known
                try:
                    values[attribute] = found = read(value)
                except WireError as error:
                    raise self._failed(row, str(error)) from None
                if filled and not found:
                    raise self._failed(row, "empty or zero")
            elif kind in self._forbidden:
                raise WireError(f"{self.name}: type {kind} is not allowed here")
        if not values.keys() >= self._required:
            raise self._failed(next(it for it in self.rows if it.required and it.attribute not in values), "missing")
        if self._prepare is not None:
            self._prepare(values)
        made = self.made(**values)
        if self._check is not None:
            self._check(made)
        return made

    def write(self, made: T) -> bytes:
        """Write an object of the class.

        Raises:
            WireError: it has no valid bytes in this version of the protocol.
        """
        for attribute, default in self._absent.items():
            if getattr(made, attribute) != default:
                raise WireError(f"{self.name}: protocol {self._version} has no {attribute}")
        if self._check is not None:
            self._check(made)
        records: list[tuple[int, bytes]] = []
        for row, attribute, write in self._to_write:
            value = getattr(made, attribute)
            if (value is None or value == ()) and not row.required:
                continue
            if not value and row.filled:
                raise self._failed(row, "empty or zero")
            try:
                records.append((row.kind, write(value)))
            except WireError as error:
                raise self._failed(row, str(error)) from None
        try:
            return write_records(records)
        except WireError as error:
            raise WireError(f"{self.name}: {error}") from None

    def unknown(self, payload: bytes) -> tuple[int, ...]:
        """Return the types in a TLV stream that have no row here."""
        return tuple(kind for kind, _ in read_records(payload) if kind not in self._by_kind)

    def _failed(self, row: Field, problem: str) -> WireError:
        return WireError(f"{self.name}: {row.attribute} (type {row.kind}): {problem}")
