"""What messages show of names from data."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name é 日本 👩‍🔬", "plain name é 日本 👩‍🔬"),
        ("a\nb\r\x00\x1b[2J", r"a\x0ab\x0d\x00\x1b[2J"),
        ("clip\udcff.mp4", r"clip\xff.mp4"),
        ("a\u202egpj.exe\u2028", r"a\u202egpj.exe\u2028"),
    ],
)
def test_what_would_move_the_cursor_is_an_escape(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_one_line_that_can_be_encoded(text):
    shown = printable(text)
    shown.encode()
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert printable(shown) == shown
