"""Traces by OpenTelemetry; imported only where a collector is configured, since it needs the extra ``tracing``."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import Token
from typing import Any, Final, ParamSpec, Protocol, Self

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

P = ParamSpec("P")
Facts = Mapping[str, str | int | float | bool]

MAX_NAME: Final = 256
"""Characters of a span's name."""
_MAX_PARENT: Final = 512
_ERROR_TYPE: Final = "error.type"
_CANCELLED: Final = "cancelled"


class SpanStep(Protocol):
    """A step that has a span: its name, and whether it is a call to another server."""

    @property
    def value(self) -> str:
        """The name."""
        ...

    @property
    def is_call(self) -> bool:
        """Whether its span is of the kind client."""
        ...


class _CurrentSpan:
    """A span that is the current one within its block, and ends with it."""

    __slots__ = ("_error_type", "_span", "_token")

    def __init__(self, span: Span, error_type: Callable[[BaseException], str]) -> None:
        self._span = span
        self._error_type = error_type
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        self._token = attach(set_span_in_context(self._span))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        # A result may have been paid for by now: an error of tracing must not stop it.
        with suppress(Exception):
            if self._token is not None:
                detach(self._token)
            if error is not None:
                self.failed(self._error_type(error))
            self._span.end()

    @property
    def trace_id(self) -> str:
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else ""

    def name(self, name: str) -> None:
        self._span.update_name(name[:MAX_NAME])

    def note(self, facts: Callable[P, Facts], *args: P.args, **kwargs: P.kwargs) -> None:
        if self._span.is_recording():
            with suppress(Exception):
                self._span.set_attributes(facts(*args, **kwargs))

    def failed(self, why: str) -> None:
        self._span.set_attribute(_ERROR_TYPE, why)
        # A cancelled step has not failed.
        if why != _CANCELLED:
            self._span.set_status(StatusCode.ERROR)


class _NoSpan:
    """No span: the current one stays."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def note(self, facts: Callable[P, Facts], *args: P.args, **kwargs: P.kwargs) -> None:
        pass

    def failed(self, why: str) -> None:
        pass


_NO_SPAN = _NoSpan()


class OtelTracing:
    """Makes spans with a tracer of OpenTelemetry. Implements the ``Tracing`` of purchases.

    ``error_type`` returns the one attribute that a span gets of an error. A request that is not sampled costs one span
    that is never recorded, whose trace context is forwarded.
    """

    def __init__(self, tracer: Tracer, error_type: Callable[[BaseException], str]) -> None:
        self._tracer = tracer
        self._error_type = error_type
        self._propagator = TraceContextTextMapPropagator()

    def request(self, parents: Sequence[str], states: Sequence[str]) -> _CurrentSpan:
        """Begin a request's span, below the one that its headers name, if they are valid."""
        parent = self._parent(parents, states)
        span = self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER)
        return _CurrentSpan(span, self._error_type)

    def span(self, step: SpanStep) -> AbstractContextManager[_CurrentSpan | _NoSpan]:
        """Begin the span of a step, below the current one."""
        # Not whether it is recording: a purchase goes on when the span of its request has ended.
        if not get_current_span().get_span_context().trace_flags.sampled:
            return _NO_SPAN
        kind = SpanKind.CLIENT if step.is_call else SpanKind.INTERNAL
        return _CurrentSpan(self._tracer.start_span(step.value, kind=kind), self._error_type)

    def headers(self) -> Mapping[str, str]:
        """Return ``traceparent``, and ``tracestate`` if there is one."""
        context = get_current_span().get_span_context()
        if not context.is_valid:
            return {}
        traced = f"{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        headers = {"traceparent": f"00-{traced}"}
        if context.trace_state:
            headers["tracestate"] = context.trace_state.to_header()
        return headers

    def origin(self) -> SpanContext | None:
        """Return the current span's context."""
        context = get_current_span().get_span_context()
        return context if context.trace_flags.sampled else None

    def link(self, origin: object) -> None:
        """Link to a context that ``origin`` returned."""
        if isinstance(origin, SpanContext):
            get_current_span().add_link(origin)

    def exemplar(self) -> dict[str, str] | None:
        """Return the labels of an exemplar: the trace's id, or None where it is not recorded."""
        context = get_current_span().get_span_context()
        if not context.trace_flags.sampled:
            return None
        return {"trace_id": format_trace_id(context.trace_id)}

    def _parent(self, parents: Sequence[str], states: Sequence[str]) -> Context:
        # Two parents are none. The length is checked here too, since the library logs such a header's arrival.
        if len(parents) != 1 or len(parents[0]) > _MAX_PARENT:
            return set_span_in_context(INVALID_SPAN, Context())
        carrier: Any = {"traceparent": parents[0]}
        if states:
            carrier["tracestate"] = list(states)
        return self._propagator.extract(carrier, Context())
