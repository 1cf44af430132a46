"""Has a commit become slower or less accurate? The gate, and the comparison of any two configurations."""

from tdn_bench.regression.accuracy import AccuracyVerdict, compare_scores
from tdn_bench.regression.baseline import GatePlan, read_baseline
from tdn_bench.regression.comparison import Comparison, compare
from tdn_bench.regression.flags import Regress
from tdn_bench.regression.gate import run
from tdn_bench.regression.interleaving import Interleaved, WorkerSpec, interleave
from tdn_bench.regression.verdicts import Check

__all__ = [
    "AccuracyVerdict",
    "Check",
    "Comparison",
    "GatePlan",
    "Interleaved",
    "Regress",
    "WorkerSpec",
    "compare",
    "compare_scores",
    "interleave",
    "read_baseline",
    "run",
]
