"""Write a network to a file that other programs load."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.errors import printable
from tdn_bench.cli import parse, run_command
from tdn_bench.errors import say
from tdn_bench.exporting.job import CheckFailed
from tdn_bench.exporting.plan import Export

EXAMPLES = (
    "tdn-bench export runs/demo/tdn/best.safetensors --format onnx",
    "tdn-bench export runs/demo/tdn/best.safetensors --format openvino --precision bf16 --check-on clip.mp4",
    "tdn-bench export runs/demo/tdn/best.safetensors --format torch-export --dynamic-batch --batch-size 8",
    "tdn-bench export runs/demo/tdn/best.safetensors --format triton --output models --name tdn",
)
COMMON = ("checkpoint", "format", "precision", "batch_size", "dynamic_batch", "output", "overwrite", "check_on")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file and its description. Ends with SystemExit(1) where the written file is not the network."""
    plan = parse(Export, argv, "export", examples=EXAMPLES, common=COMMON).plan()
    say(f"writing {plan.target} …")
    try:
        description, lines = plan.run()
    except CheckFailed as error:
        say(f"error: {error}; it was not kept")
        raise SystemExit(1) from error
    print(printable(f"{plan.target}: {plan.summary()}"))
    print(*map(printable, lines), printable(f"description: {description}"), sep="\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
