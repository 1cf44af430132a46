"""What a regression gate has found: a verdict for every figure, as a table, Markdown and JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from tdn_bench.records.tables import markdown_table

OK, REGRESSION, INCONCLUSIVE = 0, 1, 3  # exit statuses; 2 is for what cannot run
FAILS = ("regression", "worse")
INCONCLUSIVE_VERDICT = "inconclusive"


@dataclass(frozen=True)
class Check:
    """One figure's verdict. `regression` and `worse` fail, `inconclusive` leaves open, all others pass."""

    name: str
    verdict: str
    text: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None


def exit_status(checks: Sequence[Check]) -> int:
    """A regression outweighs what is inconclusive."""
    verdicts = {c.verdict for c in checks}
    return REGRESSION if verdicts & set(FAILS) else INCONCLUSIVE if INCONCLUSIVE_VERDICT in verdicts else OK


HEADLINES = {OK: "no regression", REGRESSION: "REGRESSION", INCONCLUSIVE: "inconclusive"}


def table(checks: Sequence[Check], notes: Sequence[str], code: int) -> str:
    """The verdicts for a terminal."""
    width = max((len(c.name) for c in checks), default=0)
    lines = [f"  {c.name:{width}s}  {c.verdict:12s} {c.text}" for c in checks]
    return "\n".join([*lines, *(f"  note: {n}" for n in notes), HEADLINES[code] if checks else "measured"])


def to_markdown(checks: Sequence[Check], notes: Sequence[str], code: int) -> str:
    """The verdicts as GitHub-flavoured Markdown."""
    marks = {"regression": "❌", "worse": "❌", INCONCLUSIVE_VERDICT: "❔", "slower": "⚠️", "changed": "⚠️"}
    rows = [[marks.get(c.verdict, "✅"), f"`{c.name}`", c.verdict, c.text.replace("|", "\\|")] for c in checks]
    body = markdown_table(["", "figure", "verdict", "change [interval]"], rows)
    return "\n\n".join([f"### tdn_bench: {HEADLINES[code]}", body, "\n".join(f"- {n}" for n in notes)]).rstrip() + "\n"


def to_junit(checks: Sequence[Check], notes: Sequence[str]) -> str:
    """The verdicts as JUnit XML: what fails is a failure, what is inconclusive is skipped with its reason."""
    failed, open_ = (sum(c.verdict in v for c in checks) for v in (FAILS, (INCONCLUSIVE_VERDICT,)))
    suite = ElementTree.Element("testsuite", name="tdn_bench.regress")
    for total, count in (("tests", len(checks)), ("failures", failed), ("errors", 0), ("skipped", open_)):
        suite.set(total, str(count))
    for c in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=f"regress.{c.name.split()[0]}", name=c.name)
        if c.verdict in FAILS:
            ElementTree.SubElement(case, "failure", message=f"{c.verdict}: {c.text}", type=c.verdict).text = c.text
        elif c.verdict == INCONCLUSIVE_VERDICT:
            ElementTree.SubElement(case, "skipped", message=c.text)
        ElementTree.SubElement(case, "system-out").text = f"{c.verdict}: {c.text}"
    ElementTree.SubElement(suite, "system-out").text = "\n".join(notes)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
