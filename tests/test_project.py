"""What holds for the project as a whole."""

import filecmp
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_generated_stubs_are_those_of_the_protos(tmp_path):
    subprocess.run([ROOT / "scripts" / "gen-protos", tmp_path], check=True, capture_output=True)
    committed = ROOT / "lcp_gateway" / "_gen" / "lcpd"
    names = [path.name for path in (tmp_path / "lcpd").iterdir()]
    assert {"lcpd_pb2.pyi", "lcpd_pb2_grpc.pyi", "lcpd_v03_pb2.pyi"} <= set(names)
    _, different, missing = filecmp.cmpfiles(tmp_path / "lcpd", committed, names, shallow=False)
    assert not different and not missing, "run scripts/gen-protos"


def test_every_link_in_the_docs_leads_somewhere():
    import re

    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_file_that_the_architecture_page_names_is_there():
    import re

    named = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]*\.py)`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 50
    missing = {path for path in named if not (ROOT / "lcp_gateway" / path).exists() and not (ROOT / path).exists()}
    assert missing == set()
