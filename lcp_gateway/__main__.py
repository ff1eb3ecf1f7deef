"""Lets ``python -m lcp_gateway`` do what the ``lcp-gateway`` command does."""

import sys

from lcp_gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
