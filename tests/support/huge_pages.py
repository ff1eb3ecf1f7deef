"""The environment that puts the heap on huge pages, as the operations page writes it for a shell."""

import re

from tests.support.promql import ROOT

_SHELL_LINE = re.compile(r"^(GLIBC_TUNABLES=\S+) (PYTHONMALLOC=\S+) lcp-gateway serve$", re.MULTILINE)


def documented() -> dict[str, str]:
    """Return the two variables of the page."""
    line = _SHELL_LINE.search((ROOT / "docs" / "operations.md").read_text())
    assert line is not None
    return dict(variable.split("=", 1) for variable in line.groups())
