"""Does the gate notice a network that became worse, and only that? `python benchmarks/injected_errors.py --checkpoint
FILE --data DIR`.

Faults of the input path and of the weights are injected here, not in the product: in all videos, and in just as many,
drawn at random, that about two points of accuracy are lost. `tdn_bench.accuracy` judges each. Then the same network
runs again and again in other batches, orders, threads and engines, which must never be called changed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines import create_engine, why_unavailable
from pipelines.clip import ClipBatch, ClipSpec
from pipelines.loader import ClipLoader
from pipelines.manifest import Videos
from pipelines.plan import ClipPlan
from tdn_bench.cli import BuildFlags, DataFlags, LoaderFlags, NetworkFlags, parse, run_command, settings_of
from tdn_bench.correctness.evaluation import score
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.regression.accuracy import AccuracyVerdict, compare_scores

BATCH, PIXELS_OFF = 16, 4
judge = partial(compare_scores, precision="fp32")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Inject faults, judge them, and write a record."""

    network: NetworkFlags = field(default_factory=NetworkFlags)
    data: DataFlags = field(default_factory=DataFlags)
    loader: LoaderFlags = field(default_factory=LoaderFlags)
    build: BuildFlags = field(default_factory=lambda: BuildFlags(dynamic_batch=True))
    engines: tuple[str, ...] = ("openvino", "eager", "onnx")
    """The first that is ready computes the baseline and the faults; all are run again."""
    draws: int = 100
    """Random choices of the videos that are made faulty."""
    loss_points: float = 2
    """Accuracy that they lose."""
    repetitions: int = 100
    """Runs of the same network."""
    weight_noise: float = 0.2
    """Of stale weights, as a share of every layer's deviation."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


def shifted_crop(plan: ClipPlan, pixels: int = PIXELS_OFF) -> ClipPlan:
    """To the right and down, or to the left and up where the picture ends."""
    (x, y, width, height), file = plan.crop, plan.video.file
    x = x + pixels if x + pixels + width <= file.width else max(0, x - pixels)
    y = y + pixels if y + pixels + height <= file.height else max(0, y - pixels)
    return replace(plan, crop=(x, y, width, height))


def other_frames(plan: ClipPlan, step: int = 0, order: Sequence[int] | slice = slice(None)) -> ClipPlan:
    """Segments in another order, every frame off by `step`."""
    frames = plan.frames[order if isinstance(order, slice) else list(order)] + step
    return replace(plan, frames=np.clip(frames, 0, plan.video.file.num_frames - 1))


class FaultyLoader(ClipLoader):
    """Plans are changed before anything is decoded."""

    fault: Callable[[ClipPlan], ClipPlan] | None = None

    def plan(self, position: int, epoch: int) -> ClipPlan:
        plan = super().plan(position, epoch)
        return plan if self.fault is None else self.fault(plan)


def load(
    config: Benchmark,
    videos: Videos,
    spec: ClipSpec,
    fault: Callable[[ClipPlan], ClipPlan] | None = None,
    batch_size: int = BATCH,
) -> list[ClipBatch]:
    flags, workers = config.loader, config.data.workers
    with FaultyLoader(
        videos, spec, batch_size, backend=flags.backend, workers=workers, policy=flags.policy()
    ) as loader:
        loader.fault = fault
        return list(loader.epoch())


def stale(network: nn.Module, share: float) -> Callable[[Tensor], Tensor]:
    """Weights of another moment of the training: each is off by a share of its layer's deviation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (p for p in network.parameters() if p.ndim > 1):
            p += share * p.std() * torch.randn(p.shape, generator=generator)
    return torch.inference_mode()(network)


def partly(before: Scores, after: Scores, points: float, rng: np.random.Generator) -> Scores:
    """Videos become faulty one by one, in random order, until so many points are lost, or all are."""
    net = before.found(1).int() - after.found(1).int()
    order = rng.permutation(len(before.ids))
    lost = np.cumsum(net.numpy()[order])
    enough = np.flatnonzero(lost >= round(points / 100 * len(before.ids)))
    faulty = torch.from_numpy(order[: enough[0] + 1] if len(enough) else order)
    logits = before.logits.clone()
    logits[faulty] = after.logits[faulty]
    return replace(before, logits=logits)


def shuffled(batches: Sequence[ClipBatch], size: int, rng: np.random.Generator) -> list[ClipBatch]:
    """The same clips in another order, in batches of another size."""
    order = torch.from_numpy(rng.permutation(sum(map(len, batches))))
    frames, labels = torch.cat([b.frames for b in batches]), torch.cat([b.labels for b in batches])
    ids = [i for b in batches for i in b.ids]
    return [ClipBatch(frames[part], labels[part], tuple(ids[i] for i in part)) for part in order.split(size)]


def main(argv: Sequence[str] | None = None) -> None:
    """Inject, judge and write a record."""
    config = parse(Benchmark, argv, "injected-errors")
    results = record_folder(config.results, "benchmarks")
    names = [name for name in config.engines if why_unavailable(name, "cpu") is None]
    if config.network.checkpoint is None or not names or min(config.draws, config.repetitions) < 1:
        raise UserError("--checkpoint is missing, no engine of --engines is ready, or --draws or --repetitions below 1")
    resolved, device = config.network.resolve(), torch.device("cpu")
    manifest, spec, rng = config.data.open(), resolved.clip_spec(), np.random.default_rng(0)
    videos, network = manifest.split("validation"), resolved.build(manifest.classes, device)
    engine_spec = config.build.spec(spec, BATCH, "fp32", device)
    engines = {name: create_engine(name, network, engine_spec, cache=config.build.engine_cache) for name in names}
    run, clips = engines[names[0]], load(config, videos, spec)
    before, segments = score(run, clips), list(range(spec.num_segments))

    def through(fault: Callable[[ClipPlan], ClipPlan] | None, spec: ClipSpec = spec) -> Callable[[], Scores]:
        return lambda: score(run, load(config, videos, spec, fault))

    faults: dict[str, Callable[[], Scores]] = {
        "crop at 0.9 of its size": through(None, replace(spec, crop_ratio=0.9 * spec.crop_ratio)),
        "crop at 0.6 of its size": through(None, replace(spec, crop_ratio=0.6 * spec.crop_ratio)),
        f"crop off by {PIXELS_OFF} pixels": through(shifted_crop),
        "BGR for RGB": lambda: score(run, [replace(b, frames=b.frames.flip(-1)) for b in clips]),
        "frames one late": through(partial(other_frames, step=1)),
        "two segments swapped": through(partial(other_frames, order=[1, 0, *segments[2:]])),
        "segments reversed": through(partial(other_frames, order=segments[::-1])),
        "stale weights": lambda: score(stale(network, config.weight_noise), clips),
    }
    print(f"{resolved.model} on {len(before.ids)} videos, {names[0]} fp32: {before}")
    titles = ("top-1", "lost", "gained", "moved", "median", "verdict", "points", "by test", "caught", "fewest")
    print(f"{'fault':28s}" + "".join(f"{t:>9s}" for t in titles))
    figures: dict[str, float | int | str] = {"videos": len(before.ids), "top1_percent": before.top(1)}
    samples: dict[str, list[float]] = {}
    for fault, faulty in faults.items():
        after, key = faulty(), fault.replace(" ", "_")
        full = judge(after, before)
        drawn = [judge(partly(before, after, config.loss_points, rng), before) for _ in range(config.draws)]
        samples[f"{key}_points"] = [v.change_points.value for v in drawn]
        points = statistics.mean(samples[f"{key}_points"])
        by_test = sum(v.p_value <= 1 - v.confidence for v in drawn) / config.draws
        caught = sum(v.verdict == "worse" for v in drawn) / config.draws
        fewest = min(v.changed_videos for v in drawn)
        found = {"top1_percent": after.top(1), "moved_videos": full.changed_videos, "verdict": full.verdict}
        found |= {"lost": full.lost, "gained": full.gained, "p_value": full.p_value}
        found |= {"median_deviations": full.median_difference, "scaled_points": points, "scaled_fewest_moved": fewest}
        found |= {"scaled_caught_by_test": by_test, "scaled_caught": caught}
        figures |= {f"{key}_{name}": value for name, value in found.items()}
        print(
            f"{fault:28s}{after.top(1):9.2f}{full.lost:9d}{full.gained:9d}{full.changed_videos:9d}"
            f"{full.median_difference:9.1e}{full.verdict:>9s}{points:9.2f}{by_test:9.0%}{caught:9.0%}{fewest:9d}",
            flush=True,
        )
    threads, verdicts = torch.get_num_threads(), list[AccuracyVerdict]()
    reloaded = [clips, load(config, videos, spec, batch_size=7)]
    for i, name in zip(range(config.repetitions), itertools.cycle(names), strict=False):
        torch.set_num_threads(1 + i // len(names) % threads)
        again = shuffled(reloaded[i % 2], int(rng.integers(BATCH // 2, BATCH + 1)), rng)
        verdicts.append(judge(score(engines[name], again), before))
    torch.set_num_threads(threads)
    samples["same_largest_deviations"] = [v.largest_difference for v in verdicts]
    figures |= {"repetitions": len(verdicts), "false_alarms": sum(v.verdict != "same" for v in verdicts)}
    figures |= {"same_largest_deviations": max(samples["same_largest_deviations"])}
    figures |= {"detectable_loss_points": verdicts[0].detectable_loss_points}
    print(
        f"the same network, {len(verdicts)} times in other batches, orders, threads and {', '.join(names)}: "
        f"{figures['false_alarms']} alarms, largest difference {figures['same_largest_deviations']:.1e} deviations\n"
        f"McNemar's test alone detects {figures['detectable_loss_points']:.1f} points (power 90 %)"
    )
    record = make_record(
        "benchmark",
        "injected-errors",
        figures=figures,
        samples=samples,
        settings=settings_of(config) | settings_of(resolved),
        device=device,
        manifest=manifest,
    )
    print(f"record: {write_record(record, results)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
