"""The documentation's site is built without a warning, and holds every page, every command and every public name."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.paths import ROOT

from tdn_bench.__main__ import commands

DOCS = ROOT / "docs"
GUIDES = sorted(page for page in DOCS.glob("*.md") if page.name != "index.md")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = [title.replace("`", "") for title in re.findall(r"^#+ (.*?) *$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    wrong = []
    for name, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / name if name else page
        if not target.exists():
            wrong.append(name)
        elif anchor and target.suffix == ".md" and anchor not in headings(target):
            wrong.append(f"{name}#{anchor}")
    assert not wrong


def test_the_index_names_every_page_and_every_command_once() -> None:
    index = (DOCS / "index.md").read_text()
    assert [page.name for page in GUIDES if f"({page.name}" not in index] == []
    assert [name for name in commands() if index.count(f"| `{name}` |") != 1] == []


def test_the_table_of_machines_names_every_folder_of_results_once() -> None:
    folders = [path.name for path in (ROOT / "results").iterdir() if path.is_dir()]
    page = (ROOT / "results/README.md").read_text()
    assert [name for name in folders if page.count(f"| [{name}]({name}) |") != 1] == []


class Links(HTMLParser):
    """The local links and the ids of a built page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets, self.ids, self.images = set[str](), set[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids.add(named.get("id") or "")
        for key, found in (("href", self.targets), ("src", self.images)):
            value = named.get(key) or ""
            if value and not re.match(r"[a-z]+:|//|data:", value):
                found.add(value)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for module in ("furo", "myst_nb", "sphinx_copybutton", "sphinx_design"):
        pytest.importorskip(module, reason="the site needs the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-n", "--keep-going", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    built = {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    for page in GUIDES:
        assert site / f"{page.stem}.html" in built
    for page, links in built.items():
        for link in links.targets | links.images:
            name, _, anchor = link.partition("#")
            target = (page.parent / name.partition("?")[0]) if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or target not in built or anchor in built[target].ids, f"{page.name}: {link}"
    reference = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert [name for name in commands() if f'id="command-{name}"' not in reference] == []
    python = built[site / "reference/python.html"].ids
    assert {"tdn_bench.load_recognizer", "tdn_bench.models.create_model", "engines.create_engine"} <= python
