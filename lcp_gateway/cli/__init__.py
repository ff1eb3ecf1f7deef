"""The commands. This module stays light: each command imports its modules when it runs."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code: 0, 1 for a failure at run time, 2 for wrong use or configuration."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args == ["--version"]:
        # Scripts and health checks ask for it, and should not wait for typer.
        from lcp_gateway.__about__ import __version__  # noqa: PLC0415 - only here

        sys.stdout.write(f"lcp-gateway {__version__}\n")
        return 0
    from lcp_gateway.cli.program import run  # noqa: PLC0415 - the child process needs this package without typer

    return run(args)
