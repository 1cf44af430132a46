"""`tdn-bench COMMAND …`, the same as `python -m tdn_bench.COMMAND …`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "demo": "the whole way on synthetic videos: train TDN and TSN, measure every engine, write a report",
    "prepare": "scan a data set as it was downloaded and write its manifest",
    "train": "train a network by a recipe",
    "evaluate": "accuracy of a checkpoint: one clip, thirty views; saves the raw scores",
    "scores": "accuracy from saved scores: of one file, an ensemble, the mean of splits",
    "throughput": "ms/video from file to label with one engine",
    "regress": "the regression gate: measure again what a baseline holds, and compare",
    "scenario": "MLPerf's scenarios and live streams: latencies from the arrival, the highest load in time",
    "report": "a Markdown page and plots from a folder of records",
    "history": "a figure over commits, from all records below some folders: a table and a plot",
    "doctor": "what this machine can run; with a data set: what is wrong with it, and what loading it costs",
    "transcode": "re-encode a data set so that clips decode faster",
    "parity": "do all video decoders return the same frames?",
    "complexity": "multiply-adds, parameters, activations and arithmetic intensity of any network, by stage",
    "ablate": "train a table of networks by one recipe, and tabulate it beside the published rows",
    "list": "the networks, recipes and tables by name",
    "gpu-suite": "check, then measure, everything a GPU machine can do (a dry run without one)",
}


MOVED = {
    "train": "training.loop",
    "scores": "correctness.scores",
    "throughput": "measurement.throughput",
    "regress": "regression.gate",
    "scenario": "loadgen.scenarios",
    "report": "reporting.report",
    "history": "reporting.history",
    "transcode": "dataset_tools.transcoding",
    "parity": "correctness.logits",
    "complexity": "models.complexity",
    "ablate": "training.ablation",
    "gpu-suite": "gpu_checks.suite",
    "list": "doctor",
}


def main() -> int:
    """Run a command; 2 for an unknown one."""
    from tdn_bench.cli.run import run_command

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: tdn-bench COMMAND [--help] …\n")
        print("\n".join(f"  {command:12s}{what}" for command, what in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = import_module(f"tdn_bench.{MOVED.get(name, name.replace('-', '_'))}")
    return run_command(module.list_main if name == "list" else module.main, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
