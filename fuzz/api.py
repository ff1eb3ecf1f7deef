"""``python -m fuzz.api``: the gateway's own routes, tried by their description with new values each time.

Starts a gateway with an embedded node, and ends it. Ends with 1 where a response is none that the description states, where the
server fails, or where the books do not agree afterwards.
"""

import argparse
import sys

from tests.support.described_api import Seller, problems_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--examples", type=int, default=50, help="good ones, and as many bad ones, for each route and caller"
    )
    parser.add_argument("--path", default="/", help="only routes that begin like this")
    asked = parser.parse_args()
    found: list[str] = []
    with Seller.running() as seller:
        for operation in seller.operations():
            if not operation.path.startswith(asked.path):
                continue
            for name, key in seller.keys.items():
                problems = problems_of(operation, seller, name, key, examples=asked.examples, anew=True)
                print(f"{operation.label:60} {name:10} {len(problems) or 'fine'}", flush=True)
                found += problems
        if not seller.is_sound():
            found.append("the books do not agree")
        found += [line for line in seller.gateway.log_lines if "unexpected error" in line]
    print("\n\n".join(found))
    print(f"{len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
