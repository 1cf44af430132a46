"""Answers of a recognizer as people and programs read them."""

from tdn_bench.prediction.output import FORMATS, Writer

__all__ = ["FORMATS", "Writer"]
