"""What a regression gate has found: a verdict for every figure, as a table, Markdown and JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from tdn_bench.reporting.report import markdown_table

OK, REGRESSION, CANNOT_TELL = 0, 1, 3  # exit statuses; 2 is for what cannot run
FAILS = ("regression", "worse")


@dataclass(frozen=True)
class Check:
    """One figure's verdict. `regression` and `worse` fail, `cannot tell` leaves open, all others pass."""

    name: str
    verdict: str
    text: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None


def exit_status(checks: Sequence[Check]) -> int:
    """A regression outweighs what cannot be told."""
    verdicts = {c.verdict for c in checks}
    return REGRESSION if verdicts & set(FAILS) else CANNOT_TELL if "cannot tell" in verdicts else OK


HEADLINES = {OK: "no regression", REGRESSION: "REGRESSION", CANNOT_TELL: "cannot tell"}


def table(checks: Sequence[Check], notes: Sequence[str], code: int) -> str:
    """The verdicts for a terminal."""
    width = max((len(c.name) for c in checks), default=0)
    lines = [f"  {c.name:{width}s}  {c.verdict:12s} {c.text}" for c in checks]
    return "\n".join([*lines, *(f"  note: {n}" for n in notes), HEADLINES[code] if checks else "measured"])


def to_markdown(checks: Sequence[Check], notes: Sequence[str], code: int) -> str:
    """The verdicts as GitHub-flavoured Markdown."""
    marks = {"regression": "❌", "worse": "❌", "cannot tell": "❔", "slower": "⚠️", "changed": "⚠️"}
    rows = [[marks.get(c.verdict, "✅"), f"`{c.name}`", c.verdict, c.text.replace("|", "\\|")] for c in checks]
    body = markdown_table(["", "figure", "verdict", "change [interval]"], rows)
    return "\n\n".join([f"### tdn_bench: {HEADLINES[code]}", body, "\n".join(f"- {n}" for n in notes)]).rstrip() + "\n"


def to_junit(checks: Sequence[Check], notes: Sequence[str]) -> str:
    """The verdicts as JUnit XML: what fails is a failure, what cannot be told is skipped with its reason."""
    failed, open_ = (sum(c.verdict in v for c in checks) for v in (FAILS, ("cannot tell",)))
    suite = ElementTree.Element(
        "testsuite", name="tdn_bench.regress", tests=str(len(checks)), failures=str(failed), errors="0",
        skipped=str(open_),
    )  # fmt: skip
    for c in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=f"regress.{c.name.split()[0]}", name=c.name)
        if c.verdict in FAILS:
            ElementTree.SubElement(case, "failure", message=f"{c.verdict}: {c.text}", type=c.verdict).text = c.text
        elif c.verdict == "cannot tell":
            ElementTree.SubElement(case, "skipped", message=c.text)
        ElementTree.SubElement(case, "system-out").text = f"{c.verdict}: {c.text}"
    ElementTree.SubElement(suite, "system-out").text = "\n".join(notes)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
