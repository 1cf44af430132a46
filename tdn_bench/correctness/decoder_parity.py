"""Do all video decoders return the same frames? Odd clips, real videos, and a network's predictions by each of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipelines.clip import ClipSpec
from pipelines.errors import DataError
from pipelines.loader import Decoder, create_decoder
from pipelines.manifest import Manifest, Videos, as_video
from pipelines.odd_clips import make_odd_clips
from pipelines.processes import cores
from tdn_bench.cli import DataFlags, LoaderFlags, NetworkFlags, pick_device
from tdn_bench.cli.progress import tracked
from tdn_bench.cli.ranges import MAX_SEED, check_ranges
from tdn_bench.cli.videos import named_videos
from tdn_bench.correctness.decoder_checks import SPEC, Case, check_video
from tdn_bench.correctness.evaluation import score
from tdn_bench.correctness.scores import Scores, score_differences
from tdn_bench.errors import UserError

SCORED_AT_ONCE = 8  # clips in a batch of the network's


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """Decode the same frames with every video decoder that can run here, and compare them: the numbers in the frames of
    odd clips, the pixels, and a network's predictions. The exit status is 1 if a decoder returns a wrong frame or false
    pictures."""

    data: DataFlags = field(default_factory=DataFlags)
    videos: tuple[str, ...] = ()
    """Videos to compare as well. Files, folders and quoted patterns."""
    checkpoint: Path | None = None
    """Also compare this network's predictions on the data set's videos, decoder by decoder."""
    subset: Literal["train", "validation", "test"] = "validation"
    """Which videos of the data set."""
    limit: int = 100
    """At most this many videos of the data set, drawn with --seed."""
    odd_clips: bool = True
    """Make the odd clips in a temporary folder and read the numbers in their frames."""
    seed: int = 0
    """Seed of the frames, crops and videos that are drawn."""
    device: str = "auto"
    """Where the network runs and DALI decodes, which it does on the CPU in any case: cuda, cuda:1, cpu; auto takes a
    GPU where there is one."""
    results: Path | None = None
    """Also write a record to this folder."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(self, limit=(1, 1_000_000), seed=(0, MAX_SEED))


@dataclass(frozen=True)
class DecoderParity:
    """Every case by every backend; and the data set with the videos drawn from it, None where no flag names one."""

    backends: tuple[str, ...]
    cases: list[Case]
    device: torch.device
    manifest: Manifest | None
    drawn: Videos | None

    @property
    def failed(self) -> bool:
        """Whether a backend returned a wrong frame or false pictures."""
        return any(case.false_pictures or any(r.wrong for r in case.returned.values()) for case in self.cases)


def open_decoders(spec: ClipSpec, device: torch.device, workers: int) -> dict[str, Decoder]:
    """Every backend that can run here, by name. DALI decodes on the CPU, and on a GPU that `device` names; where it
    cannot, a line says why. `workers` are decoding threads. The caller closes them."""
    decoders = {"pyav": create_decoder("pyav", spec, torch.device("cpu"), workers)}
    for where in dict.fromkeys((torch.device("cpu"), device)):
        try:
            decoders[f"dali-{where.type}"] = create_decoder("dali", spec, where, workers)
        except DataError as e:
            print(f"left out: {e}")
            break
    return decoders


def compare_decoders(config: Decoders) -> DecoderParity:
    """Frames and pixels of the odd clips and of all videos that the flags name. Raises UserError for flags that name
    nothing to compare, DataError for what is wrong with the data set."""
    device = pick_device(config.device)
    named = [as_video(Path(path), path) for path in named_videos("--videos", config.videos)]
    manifest, drawn = _open_data(config)
    with ExitStack() as stack:
        decoders = open_decoders(SPEC, device, config.data.workers or cores())
        for decoder in decoders.values():
            stack.callback(decoder.close)
        cases: list[Case] = []
        if config.odd_clips:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="odd-clips-"))
            for clip in tracked(make_odd_clips(Path(folder)), "Comparing", None, "odd clips"):
                cases.append(check_video(as_video(clip.path, clip.name), decoders, config.seed, clip))
        videos = [*named, *(drawn or ())]
        cases += [check_video(video, decoders, config.seed) for video in tracked(videos, "Comparing", len(videos))]
    return DecoderParity(tuple(decoders), cases, device, manifest, drawn)


def _open_data(config: Decoders) -> tuple[Manifest | None, Videos | None]:
    """The data set that the flags name, if any, and the videos drawn from it. Raises UserError."""
    if not config.data.named and config.data.val_list is None:
        if config.checkpoint is not None:
            raise UserError("--checkpoint needs labelled videos; name them by --data DIR or --manifest FILE")
        if not config.odd_clips and not config.videos:
            raise UserError("nothing to compare: drop --no-odd-clips, or name videos by --videos or --data")
        return None, None
    manifest = config.data.open()
    videos = manifest.split(config.subset)
    if not videos:
        raise UserError(f"--subset {config.subset}: {manifest.name} has no such videos")
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(videos))[: config.limit])
    return manifest, Videos.of((videos[row] for row in rows), manifest.root)


def compare_predictions(config: Decoders, parity: DecoderParity) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """How the predictions of --checkpoint on the videos drawn differ, by pair of backends, as `score_differences` says;
    and of a backend that decodes none of them, why. Both are empty without --checkpoint."""
    if config.checkpoint is None or parity.manifest is None or parity.drawn is None:
        return {}, {}
    scores, failures = _score_split(config, parity.manifest, parity.drawn, parity.device, parity.backends)
    return {f"{a}–{b}": score_differences(scores[a], scores[b]) for a, b in combinations(scores, 2)}, failures


def _score_split(
    config: Decoders, manifest: Manifest, videos: Videos, device: torch.device, backends: Sequence[str]
) -> tuple[dict[str, Scores], dict[str, str]]:
    """The network's scores of the videos as each backend decodes them; of one that decodes none, why."""
    network = NetworkFlags(checkpoint=config.checkpoint).resolve()
    classifier = network.build(manifest.classes, device)
    found, failures = {}, {}
    for name in backends:
        flags = LoaderFlags(backend="pyav" if name == "pyav" else "dali", max_bad_share=1)
        where = device if name == "dali-cuda" else torch.device("cpu")
        spec, workers = network.clip_spec(), config.data.workers
        with flags.open(videos, spec, SCORED_AT_ONCE, device=where, workers=workers) as loader, torch.inference_mode():
            try:
                found[name] = score(lambda frames: classifier(frames.to(device)), loader.epoch())
            except DataError as e:  # a backend may know none of the split's codecs
                failures[name] = str(e)
    return found, failures
