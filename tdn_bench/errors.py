"""How a command ends when the user, not the program, must act."""

from __future__ import annotations


class UserError(Exception):
    """One line: what is wrong with which file or flag, and what to do. Commands print it and exit with 2."""
