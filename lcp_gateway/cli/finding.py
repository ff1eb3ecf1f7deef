"""One line of the doctor's report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at and how it is; ``advice`` says what to do and is empty where there is nothing to do."""

    name: str
    ok: bool
    text: str
    advice: str = ""
