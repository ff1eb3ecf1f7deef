"""What waits to be written, what came of it, and the problems that somebody should hear of."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.journal import Budget, Intent, Learnt
from lcp_gateway.purchase.refunds import Refund, RefundDecision
from lcp_gateway.purchase.states import State

NOTHING_NEW = Learnt()


@dataclass(frozen=True, slots=True)
class IntentEntry:
    """An intent to write. ``number`` tells it from every other of the same process."""

    number: int
    intent: Intent
    budgets: Sequence[Budget]


@dataclass(frozen=True, slots=True)
class NoteEntry:
    """A later state to write; ``state`` is None where only more became known.

    ``withdraws`` is the number of an intent whose writing may have gone unheard: the note is for that intent alone, and
    is nothing to speak of where it was never written. ``on_refund`` hears whether a charge was given back.
    """

    job_id: bytes
    state: State | None
    at: datetime
    learnt: Learnt = NOTHING_NEW
    withdraws: int | None = None
    on_refund: Callable[[Refund], None] | None = None


class ProblemKind(enum.StrEnum):
    """What can go wrong behind the back of whoever called."""

    LATE_NOTE = "late_note"
    """The state table has no such move from where the purchase stands, or it stands there already: left as it is."""
    SWEPT = "swept"
    """An answer of this process was delivered after another process had taken this one for dead.

    Its purchase stays ``undelivered``: what was given back is not taken again.
    """
    UNKNOWN_JOB = "unknown_job"
    """A note for a purchase that the journal does not have."""
    NOTE_REFUSED = "note_refused"
    """The database refused the values of a note: it is lost."""
    NOTE_LOST = "note_lost"
    """The journal was closed, or its memory full, before a note could be written: it is lost."""
    UNAVAILABLE = "unavailable"
    """The database cannot be written. Said once, until it can be again."""
    AVAILABLE = "available"
    """It can be written again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that somebody should hear of. ``detail`` holds no secret."""

    kind: ProblemKind
    detail: str
    job_id: bytes | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one transaction.

    For each intent, why it was refused or None; the problems with notes; and the decisions on charges to be given back.
    """

    refusals: Sequence[Refused | None]
    problems: Sequence[Problem]
    refunds: Sequence[RefundDecision] = ()
