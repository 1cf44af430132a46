"""Answers of a recognizer as people and programs read them."""

from tdn_bench.prediction.output import FORMATS, Writer, check_not_read, open_output

__all__ = ["FORMATS", "Writer", "check_not_read", "open_output"]
