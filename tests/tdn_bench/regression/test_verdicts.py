"""What is undecided never shows as passed, and names from data stay text in every format."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tdn_bench.measurement.statistics import Change, Interval
from tdn_bench.regression.checks import time_checks
from tdn_bench.regression.verdicts import Check, exit_status, table, to_junit, to_markdown

# By hand, for a margin of 3 %: value, low, high; verdict of a stage, and of a whole; exit status of either.
TIMES = [
    ((1.38, 0.99, 1.49), "inconclusive", (0, 3)),
    ((1.20, 1.01, 1.49), "inconclusive", (0, 3)),
    ((1.01, 0.99, 1.02), "same", (0, 0)),
    ((1.02, 1.01, 1.025), "slower", (0, 0)),
    ((0.90, 0.85, 0.95), "faster", (0, 0)),
    ((1.20, 1.10, 1.30), "regression", (1, 1)),
]


@pytest.mark.parametrize(("times", "verdict", "codes"), TIMES)
@pytest.mark.parametrize("is_part", [True, False])
def test_a_stage_is_judged_as_its_whole_is_but_does_not_decide(times, verdict, codes, is_part):
    name = "loader decode_ms" if is_part else "loader loader_ms"
    [check] = checks = time_checks({name: Change(Interval(*times), 1.05)}, 0.03, void=False)
    assert (check.verdict, check.part) == (verdict, is_part)
    code = exit_status(checks)
    assert code == codes[not is_part]
    passed = verdict in ("same", "faster")
    markdown, suite = to_markdown(checks, [], code), ElementTree.fromstring(to_junit(checks, []))
    assert ("✅" in markdown) == passed
    assert ("❔" in markdown) == (verdict == "inconclusive")
    skipped = suite.findall("testcase/skipped")
    assert len(skipped) == int(suite.attrib["skipped"]) == (verdict == "inconclusive")
    if verdict == "inconclusive":
        assert "+" in skipped[0].attrib["message"]
        assert table(checks, [], code).endswith("(1 of 1 figures undecided)")
        assert re.search(r"loader \w+ +inconclusive \+", table(checks, [], code))


def test_what_is_not_judged_is_open():
    checks = [Check("train host_bytes", "not judged", "1 MiB"), Check("train train_ms", "same", "+0 %")]
    assert exit_status(checks) == 0
    markdown = to_markdown(checks, [], 0)
    assert markdown.count("✅") == 1
    assert markdown.startswith("### tdn_bench: no regression (1 of 2 figures undecided)\n")


@example("a\\|b", "\\|")
@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_any_name_and_text_stay_text(name, text):
    """XML and Markdown with any characters that Python has, lone surrogates and NUL too."""
    checks = [Check(name, "worse", text), Check(name, "inconclusive", text), Check("a b", "same", "c")]
    suite = ElementTree.fromstring(to_junit(checks, [text]).encode())
    assert len(suite.findall("testcase")) == 3
    assert suite.find("testcase/failure") is not None
    rows = [line for line in to_markdown(checks, [text], 1).splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {5}
    assert all("<" not in row for row in rows) or "<" in name  # which `code` shows as it is
    shown = table(checks, [text], 1)
    shown.encode()
    assert len(shown.splitlines()) == 5
