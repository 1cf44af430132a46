"""The documentation's site: `make docs` builds it into build/docs from the pages that GitHub shows, and from the code.

The pages are plain Markdown, so that they read well on GitHub too. What only the site has is made here and in
index.rst: the front page, the tables of contents, the commands' help, and pages of files that lie outside of docs/.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}  # for the commands' help

from tdn_bench import __version__  # noqa: E402
from tdn_bench.__main__ import commands  # noqa: E402
from tdn_bench.cli.run import describe  # noqa: E402

project, author, release = "tdn_bench", "the authors of tdn_bench", __version__
project_copyright = "the authors of tdn_bench, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["index.md"]  # GitHub's front page; index.rst is the site's
nb_execution_mode = "off"  # a test runs the notebook, and the file keeps what it printed
myst_enable_extensions = ["alert"]
myst_heading_anchors = 4
nitpicky = True
# Types that are told in words, and other libraries' names: nothing here says where their pages are.
nitpick_ignore_regex = [("py:.*", ".*")]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "literal"
toc_object_entries = False

html_theme = "furo"
html_title = "tdn_bench"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00639c", "color-brand-content": "#00639c"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}

# The site's pages of files that lie outside of docs/, and of the index for GitHub.
OUTSIDE = {
    "project/start": "README.md",
    "project/pages": "docs/index.md",
    "project/results": "results/README.md",
    "project/demo_report": "results/amd-epyc-2core/demo/report.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/changelog": "CHANGELOG.md",
}


def read_outside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the file that a page stands for in its place, and let links lead to the site's own pages where it has one; of
    all other files Sphinx makes downloads. A folder of records becomes the page that lists the records, and examples/
    the one that names its files."""
    here = Path(app.srcdir, docname).parent
    origin = here
    if docname in OUTSIDE:
        origin = (ROOT / OUTSIDE[docname]).parent
        source[0] = (ROOT / OUTSIDE[docname]).read_text(encoding="utf-8")
    pages = {(ROOT / file).resolve(): Path(app.srcdir, f"{page}.md") for page, file in OUTSIDE.items()}

    def lead(match: re.Match[str]) -> str:
        target = (origin / match["path"]).resolve()
        if not target.exists():
            return match[0]
        if target == ROOT / "examples":
            target = ROOT / "docs/index.md"
        elif target.is_dir() or not (target.suffix != ".md" or target in pages or target.is_relative_to(app.srcdir)):
            target = ROOT / "results/README.md"
        return f"]({os.path.relpath(pages.get(target, target), here)}{match['anchor'] or ''})"

    source[0] = re.sub(r"\]\((?P<path>[\w./-]+)(?P<anchor>#[\w.-]*)?\)", lead, source[0])


def plain_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: `code` in backticks, and indented blocks of code. Nothing else in them is markup."""
    plain: list[str] = []
    for line in lines:
        before = next((earlier for earlier in reversed(plain) if earlier.strip()), "")
        if line.startswith("    ") and plain and not plain[-1].strip() and re.match(r"[\w\[(]", before):
            plain += ["::", ""]
            before = "::"
        if not (line.startswith("    ") and (before == "::" or before.startswith("    "))):
            parts = line.split("`")
            parts[::2] = [re.sub(r"[*|\\]|(?<=\w)_(?!\w)", r"\\\g<0>", text) for text in parts[::2]]
            line = "`".join(parts)
        plain.append(line)
    lines[:] = plain


def kinds(module: ModuleType) -> list[list[str]]:
    """The first words of a command that has subcommands, one for each set of flags."""
    found: dict[object, list[str]] = {}
    for name, kind in (describe(module.main).kinds or {}).items():
        found.setdefault(kind.make, [name])
    return list(found.values())


def help_of(module: ModuleType, words: list[str]) -> str:
    """What the command says of itself: all of its flags."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        module.main([*words, "--help-all"])
    return out.getvalue().strip()


class CommandHelp(SphinxDirective):
    """A section for each command, with its help in full."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        sections: list[nodes.Node] = []
        for name, summary in commands().items():
            module = importlib.import_module(f"tdn_bench.{name.replace('-', '_')}")
            section = nodes.section(ids=[f"command-{name}"], names=[name])
            section += [nodes.title(text=name), nodes.paragraph(text=f"{summary}.")]
            for words in [[], *kinds(module)]:
                section += nodes.literal_block(help := help_of(module, words), help, language="text")
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    app.connect("source-read", read_outside)
    app.connect("autodoc-process-docstring", plain_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
