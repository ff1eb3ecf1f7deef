"""Runs `python -m MODULE ARGUMENTS`, a gateway, with long waits in place of the short ones that no setting reaches.

For tests of what comes after such a wait: on a machine with other work a quote or a commit can take seconds.
"""

import functools
import runpy
import sys

from lcp_gateway.app.wiring import purchase
from lcp_gateway.purchase.quoting import QuotingRules
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter


def be_patient() -> None:
    purchase.QuotingRules = functools.partial(QuotingRules, patience_s=30.0)
    open_database.__kwdefaults__ |= {"busy_timeout_s": 60.0, "write_timeout_s": 60.0}
    JournalWriter.__init__.__kwdefaults__["limits"] = JournalLimits(wait_s=60.0)


if __name__ == "__main__":
    be_patient()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
