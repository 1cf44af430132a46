"""What a regression gate has found: a verdict for every figure, as a table, Markdown and JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from pipelines.errors import printable
from tdn_bench.records.tables import Markdown, markdown_code, markdown_table, markdown_text

OK, REGRESSION, INCONCLUSIVE = 0, 1, 3  # exit statuses; 2 is for what cannot run
FAILS = ("regression", "worse")
INCONCLUSIVE_VERDICT, NOT_JUDGED = "inconclusive", "not judged"
OPEN = (INCONCLUSIVE_VERDICT, NOT_JUDGED)  # neither passed nor failed


@dataclass(frozen=True)
class Check:
    """One figure's verdict. `regression` and `worse` fail; `inconclusive` and `not judged` leave open, and never show
    as passed; all others pass. Of a `part` of another figure, what is open does not decide: its whole does."""

    name: str
    verdict: str
    text: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    part: bool = False


def exit_status(checks: Sequence[Check]) -> int:
    """A regression outweighs what is inconclusive."""
    if any(c.verdict in FAILS for c in checks):
        return REGRESSION
    return INCONCLUSIVE if any(is_undecided(c) for c in checks) else OK


def is_undecided(check: Check) -> bool:
    """Whether a figure that decides is open."""
    return check.verdict == INCONCLUSIVE_VERDICT and not check.part


HEADLINES = {OK: "no regression", REGRESSION: "REGRESSION", INCONCLUSIVE: "inconclusive"}


def headline(checks: Sequence[Check], code: int) -> str:
    """The verdict on all, and how many figures are open."""
    undecided = sum(c.verdict in OPEN for c in checks)
    return HEADLINES[code] + (f" ({undecided} of {len(checks)} figures undecided)" if undecided else "")


def table(checks: Sequence[Check], notes: Sequence[str], code: int) -> str:
    """The verdicts for a terminal."""
    width = max((len(c.name) for c in checks), default=0)
    lines = [printable(f"  {c.name:{width}s}  {c.verdict:12s} {c.text}") for c in checks]
    lines += [printable(f"  note: {n}") for n in notes]
    return "\n".join([*lines, headline(checks, code) if checks else "measured"])


def to_markdown(checks: Sequence[Check], notes: Sequence[str], code: int) -> str:
    """The verdicts as GitHub-flavoured Markdown."""
    marks = dict.fromkeys(FAILS, "❌") | dict.fromkeys(OPEN, "❔") | {"slower": "⚠️", "changed": "⚠️"}
    rows = [[Markdown(marks.get(c.verdict, "✅")), markdown_code(c.name), c.verdict, c.text] for c in checks]
    body = markdown_table(["", "figure", "verdict", "change [interval]"], rows)
    said = "\n".join(f"- {markdown_text(n)}" for n in notes)
    return f"### tdn_bench: {headline(checks, code)}\n\n{body}\n\n{said}".rstrip() + "\n"


def to_junit(checks: Sequence[Check], notes: Sequence[str]) -> str:
    """The verdicts as JUnit XML: what fails is a failure, what is open is skipped with its reason."""
    failed, open_ = (sum(c.verdict in v for c in checks) for v in (FAILS, OPEN))
    suite = ElementTree.Element("testsuite", name="tdn_bench.regress")
    for total, count in (("tests", len(checks)), ("failures", failed), ("errors", 0), ("skipped", open_)):
        suite.set(total, str(count))
    for c in checks:
        # ElementTree escapes markup, but not what XML has no way to say: NUL, lone surrogates
        name, text = printable(c.name), printable(c.text)
        worker = name.split(" ")[0]
        case = ElementTree.SubElement(suite, "testcase", classname=f"regress.{worker}", name=name)
        if c.verdict in FAILS:
            ElementTree.SubElement(case, "failure", message=f"{c.verdict}: {text}", type=c.verdict).text = text
        elif c.verdict in OPEN:
            ElementTree.SubElement(case, "skipped", message=f"{c.verdict}: {text}")
        ElementTree.SubElement(case, "system-out").text = f"{c.verdict}: {text}"
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(printable, notes))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
