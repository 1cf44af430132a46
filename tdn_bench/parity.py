"""Compare decoders, or engines, with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines import EngineError
from pipelines.odd_clips import skipped_cases
from tdn_bench.cli import NetworkFlags, begin_run, parse_kind, run_command, settings_of
from tdn_bench.cli.progress import tracked
from tdn_bench.correctness.decoder_parity import DecoderParity, Decoders, compare_decoders, compare_predictions
from tdn_bench.correctness.decoder_report import details_of, figures_of, report_lines
from tdn_bench.correctness.engine_parity import TABLE_HEAD, EngineParity, Engines, open_engine_parity
from tdn_bench.correctness.logits import TOLERANCE
from tdn_bench.records import Record, check_folder, make_record, write_record

EXAMPLES = (
    "tdn-bench parity engines --checkpoint runs/demo/tdn/best.safetensors --data runs/demo/data",
    "tdn-bench parity engines --precisions int8 --per-layer",
    "tdn-bench parity decoders --videos clip.mp4",
)
COMMON = (
    *("engines", "precisions", "videos", "checkpoint", "data", "dataset"),
    *("limit", "per_layer", "odd_clips", "device", "results"),
)


def run_decoders(config: Decoders) -> bool:
    """Compare and print. Returns whether every decoder returned the right frames and true pictures, or refused."""
    parity = compare_decoders(config)
    if config.odd_clips:
        for name, reason in skipped_cases().items():
            print(f"left out: {name}: {reason}")
    print("\n".join(report_lines(parity.cases, parity.backends)), flush=True)
    predictions, failures = compare_predictions(config, parity)
    for backend, reason in failures.items():
        print(f"  {backend}: {reason}")
    for pair, found in predictions.items():
        print(f"{pair}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()))
    if config.results is not None:
        print(f"record: {write_record(_decoder_record(config, parity, predictions), config.results)}")
    return not parity.failed


def _decoder_record(config: Decoders, parity: DecoderParity, predictions: dict[str, dict[str, float]]) -> Record:
    figures = figures_of(parity.cases, parity.backends)
    network = NetworkFlags(checkpoint=config.checkpoint).resolve()
    matched = network.class_details(parity.manifest.classes) if parity.manifest is not None else {}
    return make_record(
        "parity",
        "decoders",
        figures=figures | {pair: figures.get(pair, {}) | found for pair, found in predictions.items()},
        samples={},
        settings=settings_of(config),
        device=parity.device,
        manifest=parity.manifest,
        details={"cases": details_of(parity.cases)} | matched,
    )


def run_engines(config: Engines) -> bool:
    """Compare and print, a line as soon as it is known. Returns whether every engine that was built is the network."""
    parity = open_engine_parity(config)
    print(f"{parity.headline()}\n{TABLE_HEAD}", flush=True)
    figures: dict[str, dict[str, Any]] = {"eager-fp32": parity.accuracy}
    wrong = []
    for name, precision in tracked(parity.chosen, "Comparing", len(parity.chosen), "engines and precisions"):
        try:
            result = parity.compare(name, precision)
        except EngineError as error:
            print(f"{name:10s}{precision:>10s}  {error}", flush=True)
            figures[f"{name}-{precision}"] = {"error": str(error)}
            continue
        print(result.row(), flush=True)
        figures[f"{name}-{precision}"] = result.figures()
        if result.comparison.fault():
            wrong.append(f"{name} {precision}")
        if config.per_layer:
            layers = parity.compare_layers(name, precision)
            print("\n".join(layers.lines()), flush=True)
            figures[f"{name}-{precision}"]["layers"] = layers.rows
    if config.results is not None:
        print(f"record: {write_record(_engine_record(config, parity, figures), config.results)}")
    if wrong:
        print(f"not the network: {', '.join(wrong)}")
    return not wrong


def _engine_record(config: Engines, parity: EngineParity, figures: dict[str, dict[str, Any]]) -> Record:
    return make_record(
        "parity",
        "engines",
        figures=figures,
        samples={},
        settings=settings_of(config) | settings_of(parity.network) | {"device": str(parity.device)},
        device=parity.device,
        manifest=parity.manifest,
        details={"tolerance": TOLERANCE, "videos": list(parity.reference.ids)}
        | parity.network.class_details(parity.manifest.classes),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Compare all of a kind. Ends with SystemExit(1) where one does not do what the others do."""
    kind, config = parse_kind(
        {"decoders": Decoders, "engines": Engines}, argv, "parity", examples=EXAMPLES, common=COMMON
    )
    if config.results is not None:
        check_folder("--results", config.results)
        begin_run(config.results, f"parity {kind}", config)
    alike = run_engines(config) if isinstance(config, Engines) else run_decoders(config)
    if not alike:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
