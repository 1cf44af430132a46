"""Do all engines compute what the network computes, in every precision, and what does a precision cost in accuracy?

`tdn-bench parity engines` compares each with eager float32 on the same videos; `--per-layer` shows where the difference
comes from, and for eight bits which layers to keep in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines import ENGINES, QUANTISED, EngineError, EngineSpec, create_engine, supported_precisions, why_unavailable
from engines.base import copy_network
from engines.quantize import calibrate, quantisable, simulated
from pipelines.clip import ClipBatch
from pipelines.loader import ClipLoader
from tdn_bench.cli.flags import EngineFlags, LoaderFlags, NetworkFlags, pick_device
from tdn_bench.correctness.logits import TOLERANCE, Agreement, compare, plain
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.models.network import FrameClassifier
from tdn_bench.models.resnet import Bottleneck, ConvBN
from tdn_bench.models.temporal_difference import LongTermDifference, TemporalConv
from tdn_bench.records.record import check_folder, make_record, write_record

SAMPLES = 4096  # values of a layer's output that are compared, a clip
COSTLY = 4  # a layer that makes so many times its even share of the squared error is named to be kept


@dataclass(frozen=True, kw_only=True)
class Engines(EngineFlags, NetworkFlags, LoaderFlags):
    """Compare every engine and precision with eager float32: logits, class, and accuracy on labelled videos. Exit
    status 1 where an engine does not compute what the network does."""

    engines: tuple[str, ...] = ()
    """Which; default: all that are ready here (`tdn-bench doctor`)."""
    precisions: tuple[str, ...] = ()
    """Which; default: all that the engine has."""
    subset: str = "validation"
    """Which videos."""
    limit: int = 256
    """At most this many of them, spread over the split."""
    batch_size: int = 4
    """Clips that an engine takes at a time."""
    per_layer: bool = False
    """Also compare the output of every layer, on one batch; in int8 and fp8 also what each layer alone costs."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    results: Path | None = None
    """Also write a record to this folder."""


def run(config: Engines) -> None:
    """Compare and print. Ends with SystemExit(1) where an engine is not the network."""
    if config.results is not None:
        check_folder("--results", config.results)
    if config.batch_size < 1 or config.limit < 1:
        raise UserError(f"--batch-size {config.batch_size} and --limit {config.limit} must be at least 1")
    config = replace(config.resolved(), device=str(pick_device(config.device)))
    chosen = choose(config)
    torch.backends.cudnn.allow_tf32 = False
    manifest, spec = config.open(), config.clip_spec()
    videos = manifest.split(config.subset)
    if not videos:
        raise UserError(f"--subset {config.subset}: {manifest.name} has no such videos")
    videos = videos[:: max(1, len(videos) // config.limit)][: config.limit]
    network = config.build(len(manifest.classes), torch.device(config.device))
    quantisable(network, config.keep)  # a name that is no layer's is a mistake, not an engine's failure
    with ClipLoader(
        videos, spec, config.batch_size, backend=config.backend, device=config.device, workers=config.workers,
        policy=config.bad_clip_policy(),
    ) as loader:  # fmt: skip
        batches = list(loader.epoch())
    whole = replace(config, keep=()).engine_spec(spec.shape, config.batch_size, "fp32", config.device)
    with create_engine("eager", network, plain(whole)) as eager:
        wanted = scores(eager, batches)
    labelled = config.checkpoint is not None
    says = (
        f", top-1 {wanted.top(1):.2f} %, top-5 {wanted.top(5):.2f} %" if labelled else " (fresh weights: no accuracy)"
    )
    print(f"{config.model} on {len(wanted.ids)} videos, eager fp32{says}")
    titles = [("precision", 10), ("largest", 10), ("same class", 12), ("rank corr.", 12)]
    titles += [("top-1 %", 9), ("top-5 %", 9), ("built in s", 12)]
    print(f"{'engine':10s}" + "".join(f"{title:>{width}s}" for title, width in titles))
    figures: dict[str, Any] = {"eager-fp32": _accuracy(wanted, labelled)}
    wrong = []
    for name, precision in chosen:
        engine_spec = replace(whole, precision=precision, keep=config.keep if precision in QUANTISED else ())
        calibration = config.calibration(precision, manifest, spec, config)
        try:
            with create_engine(name, network, engine_spec, calibration=calibration, cache=config.kept_in()) as engine:
                found, build_s = scores(engine, batches), engine.build_s
        except EngineError as error:
            print(f"{name:10s}{precision:>10s}  {error}", flush=True)
            figures[f"{name}-{precision}"] = {"error": str(error)}
            continue
        agreement = compare(found.logits[:, 0], wanted.logits[:, 0], precision)
        accuracy = _accuracy(found, labelled)
        figures[f"{name}-{precision}"] = asdict(agreement) | accuracy | {"build_s": build_s}
        fault = agreement.fault()
        wrong += [f"{name} {precision}"] if fault else []
        print(
            _row(name, precision, agreement, accuracy, build_s) + (f"  not the network: {fault}" if fault else ""),
            flush=True,
        )
        if config.per_layer:
            figures[f"{name}-{precision}"]["layers"] = per_layer(
                name, network, engine_spec, batches[0].frames, calibration
            )
    if config.results is not None:
        record = make_record(
            "parity", "engines", figures=figures, samples={}, settings=asdict(config),
            device=torch.device(config.device), manifest=manifest,
            details={"tolerance": TOLERANCE, "videos": list(wanted.ids)},
        )  # fmt: skip
        print(f"record: {write_record(record, config.results)}")
    if wrong:
        print(f"not the network: {', '.join(wrong)}")
        raise SystemExit(1)


def choose(config: Engines) -> list[tuple[str, str]]:
    """The engines and precisions to compare. Raises UserError for one that does not exist, EngineUnavailable for one
    that was asked for and cannot be built here."""
    names = [
        name for name in config.engines or ENGINES if config.engines or why_unavailable(name, config.device) is None
    ]
    for name in config.engines:
        if (reason := why_unavailable(name, config.device)) is not None:
            raise UserError(f"--engines {name}: {reason}")
    pairs = [(name, p) for name in names for p in supported_precisions(name, config.device)]
    pairs = [(name, p) for name, p in pairs if not config.precisions or p in config.precisions]
    if not pairs:
        raise UserError(
            f"--precisions {' '.join(config.precisions)}: none of {', '.join(names)} has them on {config.device}"
        )
    return pairs


def scores(classify: Callable[[Tensor], Tensor], batches: Sequence[ClipBatch]) -> Scores:
    """What `classify` says of every batch."""
    logits = torch.cat([classify(batch.frames).float().cpu() for batch in batches])
    labels = torch.cat([batch.labels.cpu() for batch in batches])
    return Scores(tuple(i for batch in batches for i in batch.ids), logits[:, None], labels)


def _accuracy(found: Scores, labelled: bool) -> dict[str, float]:
    return {f"accuracy_top{k}_percent": found.top(k) for k in (1, 5)} if labelled else {}


def _row(name: str, precision: str, agreement: Agreement, accuracy: dict[str, float], build_s: float) -> str:
    row = f"{name:10s}{precision:>10s}{agreement.max_difference:10.1e}{agreement.top1_percent:10.1f} %"
    row += f"{agreement.rank_correlation:12.4f}"
    tops = [f"{value:9.2f}" for value in accuracy.values()] or [f"{'–':>9s}"] * 2
    return row + "".join(tops) + f"{build_s:12.1f}"


class Probe(nn.Module):
    """A network that returns its layers' outputs in place of logits: for each of `names` up to SAMPLES values a clip,
    (B, sum of them). Any engine runs it, and so shows what it computes inside."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def for_inference(self, engine: str) -> Probe:
        """The network within, rewritten."""
        self.network = self.network.for_inference(engine)  # type: ignore[operator]
        return self

    def forward(self, frames: Tensor) -> Tensor:
        return torch.cat(self.outputs(frames), 1)

    def outputs(self, frames: Tensor) -> list[Tensor]:
        """What `forward` joins, by layer."""
        taken: dict[str, Tensor] = {}

        def take(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            values = output.reshape(frames.shape[0], -1)
            values = values[:, :: -(-values.shape[1] // SAMPLES)]
            taken[name] = values.float() + 0  # a copy: the output may be changed in place

        layers = {name: self.network.get_submodule(name) for name in self.names}
        handles = [layer.register_forward_hook(partial(take, name)) for name, layer in layers.items()]
        self.network(frames)
        for handle in handles:
            handle.remove()
        return [taken[name] for name in self.names]


def layer_names(network: nn.Module) -> list[str]:
    """The layers that stay themselves when a network is rewritten, in the order in which they are called."""
    inside = [n for n, m in network.named_modules() if isinstance(m, LongTermDifference)]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (ConvBN, TemporalConv, LongTermDifference, Bottleneck, nn.Linear))
        and not any(name.startswith(f"{long_term}.") for long_term in inside)
    ]


def per_layer(
    name: str, network: FrameClassifier, spec: EngineSpec, frames: Tensor, calibration: list[Tensor] | None
) -> list[dict[str, Any]]:
    """Compare every layer's output in engine `name` with eager float32's on one batch, and print the differences.

    `relative` is ‖difference‖ ÷ ‖output‖, of all that went before and of the layer itself. For eight bits `alone` is
    the root mean square difference of the logits, as a share of their deviation, when this layer alone is
    quantised (simulated), and `share` its part of the sum of their squares.
    """
    if name == "compile":
        print("  (torch.compile shows no layers: see aoti, which compiles the same)")
        return []
    spec = replace(spec, max_batch=len(frames), ranged=False)
    names = layer_names(network)
    alone = _alone(network, name, spec, frames, calibration) if calibration is not None else {}
    total = sum(value**2 for value in alone.values()) or 1.0
    with torch.inference_mode():
        wanted = [output.cpu() for output in Probe(network, names).outputs(frames)]
    kept = replace(spec, keep=tuple(f"network.{layer}" for layer in spec.keep))
    with create_engine(name, Probe(network, names), kept, calibration=calibration) as engine:
        found = engine(frames).cpu().split([w.shape[1] for w in wanted], 1)
    rows = []
    for layer, a, b in zip(names, found, wanted, strict=True):
        rows.append({"layer": layer, "relative": ((a - b).norm() / b.norm().clamp(min=1e-30)).item()})
        line = f"    {layer:42s}{rows[-1]['relative']:10.1e}"
        if (value := alone.get(f"{layer}.conv")) is not None:
            rows[-1] |= {"alone": value, "share": value**2 / total}
            line += f"   alone {value:.1e} of the logits' deviation, {value**2 / total:4.0%} of the squared error"
        print(line)
    costly = [f"{row['layer']}.conv" for row in rows if row.get("share", 0) > COSTLY / max(1, len(alone))]
    if costly:
        print(f"  more than {COSTLY} times an even share of the error: --keep {' '.join(costly)}")
    return rows


@torch.inference_mode()
def _alone(
    network: nn.Module, name: str, spec: EngineSpec, frames: Tensor, calibration: list[Tensor]
) -> dict[str, float]:
    """The root mean square difference of logits when one layer alone is quantised, by layer, as a share of their
    deviation."""
    exact = copy_network(network, spec, name, "fp32")
    logits = exact(frames)
    alone = {}
    for layer, found in calibrate(exact, calibration, spec.keep, unsigned=name != "trt").items():
        with simulated(exact, {layer: found}, spec.precision):
            alone[layer] = ((exact(frames) - logits).square().mean().sqrt() / logits.std()).item()
    return alone
