"""Text from data in Markdown: it is shown, and is never markup."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tdn_bench.records.tables import Markdown, markdown_code, markdown_table, markdown_text

ANY = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tdn_resnet50, T = 8, −1.5 % (p = 0.05)", "tdn_resnet50, T = 8, −1.5 % (p = 0.05)"),
        ("a|b", r"a\|b"),
        ("`rm`", r"\`rm\`"),
        ("_x_ **y** ~z~ $w$", r"\_x\_ \*\*y\*\* \~z\~ \$w\$"),
        ("<img src=x> & @all", "&lt;img src=x&gt; &amp; &#64;all"),
        ("[a](http://b)", r"\[a](http://b)"),
        ("# a", r"\# a"),
        ("1. a", r"1\. a"),
        ("-1.5 and 12.5", "-1.5 and 12.5"),
        ("a\n\n# b", r"a\\x0a\\x0a# b"),
        (r"\|", r"\\\|"),
    ],
)
def test_text_is_shown_as_it_is(text, shown):
    assert markdown_text(text) == shown


def unescaped(markdown):
    """What a reader of Markdown shows of escaped text, the obvious way: escapes first, then entities."""
    shown = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)
    for entity, c in (("&lt;", "<"), ("&gt;", ">"), ("&#64;", "@"), ("&amp;", "&")):
        shown = shown.replace(entity, c)
    return shown


@given(st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_a_reader_sees_the_text(text):
    assert unescaped(markdown_text(text)) == text


@example("\\|")
@given(ANY)
def test_a_table_has_its_cells_whatever_they_hold(text):
    lines = markdown_table([text, "b"], [[text, markdown_code(text)], [Markdown("`a`"), text]]).splitlines()
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {3}
