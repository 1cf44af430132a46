"""What `tdn-bench gpu-suite` checks and measures: a file a step, or two that belong together, and what runs them.

`steps.STEPS` is the list. A step is a function from `run.Run` (how much, where) to `run.Outcome` (what it found).
"""

from tdn_bench.gpu_checks.run import Outcome, Row, Run
from tdn_bench.gpu_checks.sizes import Sizes, dry, full
from tdn_bench.gpu_checks.steps import STEPS
from tdn_bench.gpu_checks.supervisor import Verdict, find_record, run_step, supervise, table

__all__ = [
    "STEPS",
    "Outcome",
    "Row",
    "Run",
    "Sizes",
    "Verdict",
    "dry",
    "find_record",
    "full",
    "run_step",
    "supervise",
    "table",
]
