"""Ask the gate: is this commit slower or less accurate?"""

from __future__ import annotations

from collections.abc import Sequence

from tdn_bench.cli import begin_run, parse, run_command
from tdn_bench.regression.flags import Regress
from tdn_bench.regression.gate import run

EXAMPLES = (
    "tdn-bench regress",
    "tdn-bench regress --against main",
    "tdn-bench regress --update --accept 'a better network'",
)
COMMON = (
    *("baseline", "against", "update", "accept", "engines", "data"),
    *("checkpoint", "margin", "accuracy_margin", "max_seconds", "json"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compare, and end with SystemExit and the verdict's exit status."""
    config = parse(Regress, argv, "regress", examples=EXAMPLES, common=COMMON)
    if config.json is not None:
        begin_run(config.json.parent, "regress", config)
    raise SystemExit(run(config))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
