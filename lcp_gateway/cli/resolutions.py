"""What people said about unknown purchases, and how they knew: a file beside the gateway's state, only ever added to."""

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lcp_gateway.cli.outcome import CommandFailed
from lcp_gateway.config.derived import state_folder
from lcp_gateway.purchase.states import State

_FILE = "resolutions.jsonl"


@dataclass(frozen=True, slots=True)
class Resolution:
    """One word of a person on one purchase."""

    job_id: bytes
    state: State
    why: str
    at: datetime


def write_down(resolution: Resolution) -> Path:
    """Add it to the file, durably, before the journal is changed; gives the file.

    Raises:
        CommandFailed: it cannot be written.
    """
    path = state_folder(os.environ) / _FILE
    line = json.dumps(
        {
            "at": resolution.at.isoformat(),
            "job_id": resolution.job_id.hex(),
            "state": resolution.state.value,
            "why": resolution.why,
        },
        ensure_ascii=False,
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CommandFailed(
            f"{path}: the reason cannot be kept, so nothing was changed: {error.strerror}"
        ) from None
    return path
