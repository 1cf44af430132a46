"""Draw what the network will see of a data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import Positional

from pipelines.annotations import flip_labels
from pipelines.clip import ClipSpec
from pipelines.loader import create_decoder
from pipelines.manifest import Manifest
from pipelines.plan import ClipPlan, plan_evaluation, plan_training
from pipelines.processes import cores
from pipelines.sampling import evenly_spaced
from pipelines.scan import scan_file
from pipelines.video import OK, Video
from tdn_bench.cli import DataFlags, NetworkFlags, parse, run_command
from tdn_bench.cli.flags import DatasetName
from tdn_bench.cli.progress import progress
from tdn_bench.cli.ranges import MAX_SEED, check_ranges
from tdn_bench.dataset_tools.contact_sheet import Strip, check_size, strips, write_sheet
from tdn_bench.errors import UserError
from tdn_bench.recipes import RECIPES
from tdn_bench.recognizer import VIEWS
from tdn_bench.records import check_file
from tdn_bench.training.ablation import RecipeName

EXAMPLES = (
    "tdn-bench browse folders --data /data/mine",
    "tdn-bench browse --manifest runs/sthv2.arrow --recipe sthv2 --epoch 3 --limit 20",
    "tdn-bench browse sthv2 --data runs/demo/data --subset validation --format html --out sheet.html",
)
COMMON = ("name", "data", "manifest", "recipe", "checkpoint", "subset", "limit", "epoch", "views", "format", "out")


@dataclass(frozen=True, kw_only=True)
class Browse:
    """Write a contact sheet of a data set's clips, pixel for pixel as the network gets them: augmented as in an epoch
    of training, or as an evaluation takes them. Only the videos that are shown are looked at."""

    name: Positional[DatasetName | None] = None
    """How --data is annotated. The same as --dataset."""
    data: DataFlags = field(default_factory=DataFlags)
    network: NetworkFlags = field(default_factory=NetworkFlags)
    recipe: RecipeName | None = None
    """Take the clips of this recipe. Network, T, size and crops are its."""
    subset: Literal["train", "validation", "test"] = "train"
    """Which videos."""
    mode: Literal["auto", "training", "evaluation"] = "auto"
    """Clips as training draws them, or as an evaluation takes them. auto: training for --subset train."""
    seed: int = 0
    """Seed of the augmentation, as `train` has it."""
    epoch: int = 0
    """Epoch of training. Its clips are drawn; from 0 on."""
    views: Literal[1, 30] = 1
    """Views of an evaluation. One clip and crop, or ten clips × three crops of 256 pixels."""
    frames: Literal["centre", "all"] = "centre"
    """Show the centre frame of every segment, or all L of them."""
    limit: int = 8
    """How many videos. Evenly spaced over the split."""
    backend: Literal["pyav", "dali"] = "pyav"
    """What decodes; DALI on the GPU where there is one."""
    format: Literal["png", "html"] = "png"
    """A picture, or a page that needs no other file."""
    out: Path | None = None
    """The file. Default: runs/browse-<subset>.<format>."""

    def spec(self) -> ClipSpec:
        """The clips. Raises UserError for flags that cannot be."""
        flags, scales = self.network, ClipSpec().crop_scales
        if self.recipe is not None:
            recipe = RECIPES[self.recipe]()
            of_recipe = recipe.clip_spec()
            flags = replace(
                flags,
                model=flags.model or recipe.model,
                num_segments=flags.num_segments or of_recipe.num_segments,
                size=flags.size or recipe.size,
                crop_ratio=flags.crop_ratio or recipe.crop_ratio,
            )
            scales = recipe.crop_scales
        clips, crops, usual = VIEWS[self.views]
        spec = replace(flags.resolve().clip_spec(), crop_scales=scales, num_clips=clips, num_crops=crops)
        return replace(spec, size=usual) if usual is not None and self.network.size is None else spec

    def open(self) -> tuple[str, tuple[str, ...], list[tuple[int, Video]]]:
        """The data set's name and classes, and the videos to show, with their places in the split."""
        data = self.data if self.name is None else replace(self.data, dataset=self.name)
        data.check()
        if data.manifest is not None:
            manifest = Manifest.open(data.manifest, data.data)
            videos = manifest.split(self.subset)
            chosen = evenly_spaced(range(len(videos)), self.limit)
            return manifest.name, manifest.classes, [(i, videos[i]) for i in chosen]
        annotations = data.annotations()
        for note in annotations.notes:
            print(note, file=sys.stderr)
        samples = [sample for sample in annotations.samples if sample.split == self.subset]
        chosen = evenly_spaced(range(len(samples)), self.limit)
        scanned = [(i, Video(samples[i], scan_file(samples[i].path))) for i in chosen]
        return annotations.name, annotations.classes, scanned


def main(argv: Sequence[str] | None = None) -> None:
    """Decode some videos of a split as the flags say, and write the sheet."""
    config = parse(Browse, argv, "browse", examples=EXAMPLES, common=COMMON)
    check_ranges(config, limit=(1, 10_000), seed=(0, MAX_SEED), epoch=(0, 10**6))
    augment = config.mode == "training" or (config.mode == "auto" and config.subset == "train")
    if augment and config.views != 1:
        raise UserError(f"--views {config.views}: training takes one clip of a video; add --mode evaluation")
    out, spec = config.out or Path(f"runs/browse-{config.subset}.{config.format}"), config.spec()
    if out.suffix != f".{config.format}":
        raise UserError(f"--out {out}: a {config.format} is written; name it *.{config.format}, or set --format")
    check_file("--out", out)
    name, classes, videos = config.open()
    if not videos:
        raise UserError(f"--subset {config.subset}: {name} has no such videos")
    check_size(len(videos), spec, all_frames=config.frames == "all")
    flipped = flip_labels(classes)

    def plan(position: int, video: Video) -> ClipPlan:
        if not augment:
            return plan_evaluation(video, spec)
        seed, epoch = config.seed, config.epoch
        return plan_training(video, spec, seed=seed, epoch=epoch, position=position, flipped_labels=flipped)

    device = torch.device("cuda" if config.backend == "dali" and torch.cuda.is_available() else "cpu")
    decoder = create_decoder(config.backend, spec, device, config.data.workers or cores())
    found: list[Strip] = []
    bad = 0
    with progress("Decoding", len(videos), "videos") as advance:
        for position, video in videos:
            if video.file.status == OK:
                planned = plan(position, video)
                [clip] = decoder([planned])
                found += strips(planned, clip, spec, classes, all_frames=config.frames == "all")
            else:
                found.append(Strip((video.id, f"cannot be used: {video.file.status}")))
            bad += found[-1].frames is None
            advance(1)
    decoder.close()
    how = f"training, epoch {config.epoch}, seed {config.seed}" if augment else f"evaluation, views: {spec.num_views}"
    write_sheet(out, f"{name}, {config.subset}: {how}", found, page=config.format == "html")
    print(f"sheet: {out}{f' ({bad} of {len(videos)} videos could not be used)' if bad else ''}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
