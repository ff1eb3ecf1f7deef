from pathlib import Path

from lcp_gateway.purchase.states import TRANSITIONS

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_documented_diagram_is_the_table():
    drawn = PAGE.read_text().split("<!-- states:begin -->")[1].split("<!-- states:end -->")[0]
    arrows = [line.strip() for line in drawn.splitlines() if "-->" in line and "[*]" not in line]
    table = [
        f"{state} --> {target}: {event}"
        for state, row in TRANSITIONS.items()
        for event, target in row.items()
    ]
    assert sorted(arrows) == sorted(table)
