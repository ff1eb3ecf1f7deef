"""The pages' files: libraries are what SOURCES says, no file writes HTML or leads away, and a first visit is small."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

from lcp_gateway.http.console.assets import load_assets
from tests.support.cases import each_case

ASSETS = Path(str(files("lcp_gateway.http.console") / "assets"))
VENDOR = ASSETS / "vendor"
OWN = sorted(
    path for path in ASSETS.rglob("*") if path.suffix in {".js", ".html", ".css"} and VENDOR not in path.parents
)
FIRST_VISIT_BYTES = 60_000


def test_the_libraries_are_the_files_of_their_sources():
    lines = [line.split() for line in (VENDOR / "SOURCES").read_text().splitlines() if not line.startswith("#")]
    stated = {words[1]: words[2] for words in lines if words[0] == "file"}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir() if path.name != "SOURCES"
    }
    assert found == stated
    packages = {words[1]: words[3] for words in lines if words[0] == "package"}
    assert {f"LICENSE-{name}.txt" for name in packages} <= found.keys()
    assert all(digest.startswith("sha512-") for digest in packages.values())


@each_case("path", OWN)
def test_no_file_writes_html_evaluates_text_or_names_another_host(path):
    text = path.read_text()
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySetInnerHTML|\beval\(|new Function|localStorage|sessionStorage|document\.cookie"
    assert not re.findall(forbidden, text)
    named = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not named
    assert not re.findall(r"\son[a-z]+=\"|style=\"", text), "inline handlers and styles are blocked by the policy"


STATIC = re.compile(r'^(?:import|export) .* from "([^"]+)";$', re.MULTILINE)
DYNAMIC = re.compile(r'\bimport\("([^"]+)"\)')
JAVASCRIPT = [path for path in OWN if path.suffix == ".js"]


@each_case("path", JAVASCRIPT)
def test_every_import_is_a_file_of_the_console(path):
    """A browser resolves them; there is no build step that would find a wrong one."""
    # Snippets hold imports of other programs.
    text = path.read_text().partition("`")[0] if path.name == "snippets.js" else path.read_text()
    for target in STATIC.findall(text) + DYNAMIC.findall(text):
        assert target.startswith("."), target
        found = (path.parent / target).resolve()
        assert found.is_file() and ASSETS in found.parents, target


def test_every_page_of_the_navigation_is_there():
    named = set(re.findall(r'"\./pages/([a-z-]+\.js)"', (ASSETS / "app.js").read_text()))
    assert named == {path.name for path in (ASSETS / "pages").iterdir()}


def test_a_first_visit_is_small():
    """The page, its style, and the modules that the overview needs, as they are served; the rest comes when it is opened."""
    assets = load_assets()
    needed = [ASSETS / "app.js", ASSETS / "pages" / "overview.js"]
    for path in needed:
        found = [(path.parent / target).resolve() for target in STATIC.findall(path.read_text())]
        needed += [target for target in found if target not in needed]
    paths = [str(path.relative_to(ASSETS)) for path in needed] + ["console.css", "icon.svg"]
    sizes = {path: len(assets.by_path[path].packed or assets.by_path[path].body) for path in paths}
    assert sum(sizes.values()) + len(assets.page.packed or assets.page.body) <= FIRST_VISIT_BYTES, sizes
