"""What is done to a data set before training: say what is wrong with it and what loading it costs, and re-encode it.

A name is imported when it is first used: to audit a data set loads neither torch nor a decoder.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdn_bench.dataset_tools.audit import Audit, Finding, examine
    from tdn_bench.dataset_tools.encoding import Encoding
    from tdn_bench.dataset_tools.loading_advice import conclusions, print_advice
    from tdn_bench.dataset_tools.loading_cost import Advice, advise
    from tdn_bench.dataset_tools.summary import kind_of, print_summary, write_lists
    from tdn_bench.dataset_tools.transcode_folder import plan_folder, transcode_all
    from tdn_bench.dataset_tools.transcoding import Transcoded, transcode_file

__all__ = [
    "Advice",
    "Audit",
    "Encoding",
    "Finding",
    "Transcoded",
    "advise",
    "conclusions",
    "examine",
    "kind_of",
    "plan_folder",
    "print_advice",
    "print_summary",
    "transcode_all",
    "transcode_file",
    "write_lists",
]

_NAMES = {
    "audit": ("Audit", "Finding", "examine"),
    "encoding": ("Encoding",),
    "loading_advice": ("conclusions", "print_advice"),
    "loading_cost": ("Advice", "advise"),
    "summary": ("kind_of", "print_summary", "write_lists"),
    "transcode_folder": ("plan_folder", "transcode_all"),
    "transcoding": ("Transcoded", "transcode_file"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
