"""Measure the accuracy of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from pipelines.clip import ClipBatch, ClipSpec
from pipelines.errors import printable
from tdn_bench.cli import begin_run, parse, pick_device, run_command, settings_of
from tdn_bench.cli.flags import DataFlags, LimitFlags, LoaderFlags, Network, NetworkFlags, counted_once
from tdn_bench.cli.progress import progress
from tdn_bench.cli.ranges import MAX_BATCH, check_ranges
from tdn_bench.correctness.evaluation import evaluation_record, protocol_of, score
from tdn_bench.correctness.label_order import find_permutation
from tdn_bench.correctness.partial_scores import PartialScores, evaluation_key, partial_file
from tdn_bench.correctness.scores import Scores, check_target, per_class_lines
from tdn_bench.errors import UserError
from tdn_bench.records import check_folder, write_record

EXAMPLES = (
    "tdn-bench evaluate --checkpoint runs/demo/tdn/best.safetensors --data runs/demo/data",
    "tdn-bench evaluate --checkpoint runs/demo/tdn/best.safetensors --data runs/demo/data --limit 32 --per-class",
    "tdn-bench evaluate --checkpoint k400.pth.tar --dataset kinetics400 --data k400 --protocol thirty-view",
)
COMMON = (
    *("checkpoint", "data", "dataset", "manifest", "subset", "protocol"),
    *("limit", "device", "per_class", "scores", "results"),
)

# The paper's: clips, crops, size in pixels (None: the checkpoint's).
PROTOCOLS: dict[str, tuple[int, Literal[1, 3], int | None]] = {"one-clip": (1, 1, None), "thirty-view": (10, 3, 256)}


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Top-1 and top-5 accuracy of a checkpoint by the paper's protocols. A video that cannot be used is left out and
    counted; no other takes its place."""

    network: NetworkFlags = field(default_factory=NetworkFlags)
    data: DataFlags = field(default_factory=DataFlags)
    part: LimitFlags = field(default_factory=LimitFlags)
    loader: LoaderFlags = field(default_factory=LoaderFlags)
    subset: Literal["train", "validation", "test"] = "validation"
    """Which videos."""
    protocol: Literal["one-clip", "thirty-view"] = "one-clip"
    """one-clip: 1 clip, centre crop (the paper's Something-Something). thirty-view: 10 clips × 3 crops of 256 pixels,
    softmax scores averaged (the paper's Kinetics). --clips, --crops and --size change a part of it."""
    clips: int | None = None
    """Clips per video. Default: the protocol's. One is centred; several are drawn at random, the same in every run."""
    crops: Literal[1, 3] | None = None
    """Crops per clip: the centre, or 3 that span the short side (then --crop-ratio has no effect). Default: the
    protocol's."""
    batch_size: int = 16
    """Views that the network takes at a time."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    per_class: bool = False
    """Also print the accuracy of every class, worst first."""
    scores: Path | None = None
    """Also write the raw scores of every video and view to this file, for `tdn-bench scores`."""
    fresh: bool = False
    """Begin anew where the same evaluation was interrupted before. Else it goes on with the scores kept then."""
    results: Path | None = None
    """Also write a record to this folder."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(self, clips=(1, 100), batch_size=(1, MAX_BATCH))

    def resolve(self) -> tuple[Network, ClipSpec]:
        """The network and all of its views: where a flag is left out, the protocol's, then the checkpoint's. Raises
        UserError for a number that cannot be."""
        self.check()
        clips, crops, size = PROTOCOLS[self.protocol]
        clips = clips if self.clips is None else self.clips
        network = replace(self.network, size=size if self.network.size is None else self.network.size).resolve()
        return network, replace(network.clip_spec(), num_clips=clips, num_crops=self.crops or crops)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the accuracy of a checkpoint on a split."""
    config = parse(Evaluate, argv, "evaluate", examples=EXAMPLES, common=COMMON)
    checkpoint = config.network.checkpoint
    if checkpoint is None:
        raise UserError("--checkpoint is missing: name the weights to evaluate")
    if config.scores is not None:
        check_target(config.scores)
    if config.results is not None:
        check_folder("--results", config.results)
    (network, spec), device = config.resolve(), pick_device(config.device)
    if config.results is not None:
        begin_run(config.results, "evaluate", config)
    manifest = counted_once(config.data.open(limit=config.part.limit), [config.subset])  # repeats of train, too
    videos = manifest.split(config.subset)
    if not videos:
        raise UserError(f"--subset {config.subset}: {manifest.name} has no such videos")
    classifier = network.build(manifest.classes, device)
    videos_at_once = max(1, config.batch_size // spec.num_views)
    with (
        torch.inference_mode(),
        config.loader.open(videos, spec, videos_at_once, device=device, workers=config.data.workers) as loader,
    ):
        key = evaluation_key(network, manifest, config.subset, loader, config.batch_size)
        kept = PartialScores(partial_file(config.scores, key), key, loader, fresh=config.fresh)
        if kept.note is not None:
            print(kept.note, file=sys.stderr)
        with kept, progress("Evaluating", len(videos), done=kept.done) as advance:

            def done(batch: ClipBatch, part: Scores) -> None:
                kept.add(batch, part)
                advance(len(part.ids))

            rest = loader.epoch(first_batch=kept.next_batch)
            scores = score(classifier, rest, spec.num_views, config.batch_size, before=kept.parts, done=done)
    if not scores.logits.isfinite().all():
        kept.remove()  # whoever goes on with it comes to the same
    scores.check_finite(checkpoint)
    permutation = find_permutation(scores)
    # written before anything is said: a closed pipe must not cost the run
    written = []
    if config.scores is not None:
        notes = {"model": network.model, "checkpoint": checkpoint.name, "protocol": protocol_of(spec)}
        notes |= {"data": manifest.name, "digest": manifest.digest(), "subset": config.subset}
        scores.save(config.scores, notes | {"classes": manifest.classes, "backend": loader.decoder.name})
        written.append(f"scores: {config.scores}")
    if config.results is not None:
        matched = network.class_details(manifest.classes)
        permuted = {} if permutation is None else {"label_permutation": asdict(permutation)}
        settings = settings_of(config) | settings_of(network) | {"clips": spec.num_clips, "crops": spec.num_crops}
        notes = {"checkpoint_sha256": key["checkpoint"], **matched, **permuted}
        record = evaluation_record(settings, manifest, config.subset, loader, scores, notes)
        written.append(f"record: {write_record(record, config.results)}")
    kept.remove()
    bad_clips = loader.bad_clips.by_path()
    left_out = f" ({len(bad_clips)} of {len(videos)} could not be used)" if bad_clips else ""
    views = f", {spec.num_views} views each" if spec.num_views > 1 else ""
    name = printable(f"{network.model} on {manifest.name}/{config.subset}")
    all_of_it = manifest.whole.get(config.subset, len(videos))
    count = f"{len(scores.ids)}{f' of {all_of_it:,}' if len(videos) < all_of_it else ''}"
    print(f"{name}: {count} videos{left_out}{views}, {scores}")
    for path, reason in bad_clips.items():
        print(f"  not used: {printable(path)}: {printable(reason)}")
    if permutation is not None:
        print(f"warning: {permutation}", file=sys.stderr)
    if config.per_class:
        for line in per_class_lines(scores, manifest.classes):
            print(printable(line))
    print(*written, sep="\n", end="\n" if written else "")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
