"""How much of Grad-CAM's heat lies on the moving object: `python benchmarks/heat_on_object.py --checkpoints …`.

On held-out clips of the synthetic set, whose renderer knows where the object is. Heat is for the clip's own class, in
all networks alike. Chance is the object's share of the pictures: the object's place has the same distribution in all
clips, so heat that knows nothing of it has that share on average. Beside each trained network stands the same one with
fresh weights: what edges and textures alone attract.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

from pipelines.sampling import evenly_spaced
from pipelines.synthetic import VERSION, draw_scene
from tdn_bench.cli import DataFlags, pick_device, run_command
from tdn_bench.cli.progress import progress
from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import Interval
from tdn_bench.records import make_record, record_folder, write_record
from tdn_bench.visualizing.grad_cam import STAGES, STRIDES
from tdn_bench.visualizing.looking import Looker, Subject, load_subjects
from tdn_bench.visualizing.on_object import dilated, masks_of, share_on_object

UNTRAINED = "untrained "
MASKS = {"object": 0, "object_and_a_cell": 2}  # their columns of heat; beside each that of its area


@dataclass(frozen=True)
class Benchmark:
    """Measure heat on the object, and write a record."""

    checkpoints: tuple[Path, ...]
    """Networks trained on the synthetic set; differences are those of the first to each other."""
    data: Path = Path("runs/demo/data")
    """The synthetic data set."""
    clips: int | None = None
    """Only so many of the validation clips, at equal distances."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""
    results: Path | None = None
    """Folder for the record; default: runs/benchmarks. To publish: results/<machine>."""


def seed_of(data: Path) -> int:
    """The seed of a synthetic data set. Raises UserError where it is none, or of another version."""
    path = data / "labels" / "synthetic.json"
    try:
        stamp = json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read: {e}; name a synthetic data set by --data") from e
    if not isinstance(stamp, dict) or stamp.get("version") != VERSION or not isinstance(stamp.get("seed"), int):
        raise UserError(f"{path}: not of this version's synthetic clips; make them anew by `tdn-bench demo`")
    return int(stamp["seed"])


def untrained(subject: Subject, device: torch.device) -> Subject:
    """The same network with fresh weights."""
    network = replace(subject.trained.network, checkpoint=None)
    trained = replace(subject.trained, network=network, classifier=network.build(subject.trained.classes, device))
    return replace(subject, label=f"{UNTRAINED}{subject.label}", trained=trained)


def mean(values: Sequence[float]) -> Interval:
    """The mean and its 95 % bootstrap interval (BCa); NaN of fewer than two values."""
    if len(values) < 2:
        return Interval(math.nan, math.nan, math.nan)
    found = bootstrap((np.asarray(values),), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return Interval(float(np.mean(values)), float(found.low), float(found.high))


def stated(name: str, values: np.ndarray) -> dict[str, float]:
    """The mean of percentages with its interval, as a record's figures."""
    found = mean(values.tolist())
    return {f"{name}_percent": found.value, f"{name}_low_percent": found.low, f"{name}_high_percent": found.high}


def figures_of(shares: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Of shares (clips, 4), in percent: heat and area of the mask, heat and area of the dilated one; NaN where a clip
    has no heat. `first`: those of the network that this one is set against, clip by clip."""
    usable = np.isfinite(shares).all(1)
    both = usable & np.isfinite(first).all(1)
    found: dict[str, float] = {"clips": int(usable.sum()), "clips_without_heat": int((~usable).sum())}
    for name, column in MASKS.items():
        heat, area = shares[usable, column], shares[usable, column + 1]
        found |= stated(f"on_{name}", heat) | stated(f"chance_{name}", area)
        found |= stated(f"above_chance_{name}", heat - area)
        if shares is not first:
            found |= stated(f"first_minus_this_{name}", (first - shares)[both, column])
    return found


def _text(row: dict[str, float], what: str) -> str:
    on = Interval(*(row[f"on_{what}{end}_percent"] for end in ("", "_low", "_high")))
    return f"{what} {on} %, chance {row[f'chance_{what}_percent']:.3g} %"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write a record."""
    import tyro

    config = tyro.cli(Benchmark, args=argv, prog="benchmarks/heat_on_object.py")
    results, device, seed = (
        record_folder(config.results, "benchmarks"),
        pick_device(config.device),
        seed_of(config.data),
    )
    if config.clips is not None and config.clips < 2:
        raise UserError("--clips: at least 2 are needed")
    trained = load_subjects(config.checkpoints, device)
    subjects = [*trained, *(untrained(s, device) for s in trained)]
    manifest = DataFlags(data=config.data).open()
    videos = manifest.split("validation")
    videos = videos if config.clips is None else evenly_spaced(videos, config.clips)
    shares = defaultdict[tuple[str, str], list[list[float]]](list)
    right = defaultdict[str, int](int)
    with Looker.open(subjects, device=device) as looker, progress("Looking", len(videos), "videos") as advance:
        for video in videos:
            scene, label = (
                draw_scene(seed, int(video.id)),
                trained[0].trained.classes.index(manifest.classes[video.sample.label]),
            )
            for subject in subjects:
                clip = looker.read(video, subject)
                right[subject.label] += int(clip.probabilities.argmax()) == label
                for stage in STAGES:
                    heat, middles = replace(looker, stage=stage).heat(subject, clip, label)
                    masks = masks_of(scene, clip.plan, middles, heat.shape[-1])
                    found = [
                        share_on_object(torch.from_numpy(heat), m) for m in (masks, dilated(masks, STRIDES[stage]))
                    ]
                    row = [value for share in found for value in (share.heat, share.area)]
                    shares[subject.label, stage].append([100 * value for value in row])
            advance(1)
    figures: dict[str, Any] = {f"{name}_top1_percent": 100 * n / len(videos) for name, n in right.items()}
    samples: dict[str, list[float]] = {}
    lines: list[str] = []
    for stage in STAGES:
        for subject in subjects:
            name = f"{subject.label}_{stage}".replace(" ", "_")
            found = np.array(shares[subject.label, stage])
            first = shares[trained[0].label, stage]
            figures[name] = row = figures_of(found, found if subject is trained[0] else np.array(first))
            for what, column in MASKS.items():
                samples[f"{name}_on_{what}_percent"] = found[:, column].round(2).tolist()
            lines.append(f"{stage} {subject.label:28s} {'; '.join(_text(row, what) for what in MASKS)}")
    record = make_record(
        "benchmark",
        "heat-on-object",
        figures=figures,
        samples=samples,
        settings=asdict(config),
        device=device,
        manifest=manifest,
        details={"networks": [s.label for s in subjects], "interval": "95 %, bootstrap over clips (BCa)"},
    )
    written = write_record(record, results)  # before anything is said: a closed pipe must not cost the run
    print(*lines, f"record: {written}", sep="\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
