"""What is done to a data set before training: say what is wrong with it and what loading it costs, and re-encode it.

A name is imported when it is first used: to audit a data set loads neither torch nor a decoder.
"""

from typing import TYPE_CHECKING

from pipelines.exports import lazy_exports

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

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "audit": ("Audit", "Finding", "examine"),
        "encoding": ("Encoding",),
        "loading_advice": ("conclusions", "print_advice"),
        "loading_cost": ("Advice", "advise"),
        "summary": ("kind_of", "print_summary", "write_lists"),
        "transcode_folder": ("plan_folder", "transcode_all"),
        "transcoding": ("Transcoded", "transcode_file"),
    },
)
