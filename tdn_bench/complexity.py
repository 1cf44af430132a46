"""Count multiply-adds, parameters and memory traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mode

from tyro.conf import Positional

from tdn_bench.cli import parse, run_command
from tdn_bench.cli.flags import MAX_SEGMENTS, SIZES
from tdn_bench.cli.ranges import check_ranges
from tdn_bench.errors import UserError
from tdn_bench.models.complexity import MIN_SIZE, Stage, measure
from tdn_bench.models.variants import BACKBONES, VARIANTS
from tdn_bench.records.published import Published, published_for

EXAMPLES = (
    "tdn-bench complexity tdn_resnet50 tsn_resnet50",
    "tdn-bench complexity --backbone resnet101",
)
COMMON = ("backbone", "num_segments", "num_classes", "size", "stages")

BYTES_PER_VALUE = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Multiply-adds, parameters, activations and arithmetic intensity of networks, beside published counts."""

    models: Positional[tuple[str, ...]] = ()
    """Networks (`tdn-bench list`); default: every variant, with --backbone."""
    backbone: str = "resnet50"
    """Backbone of the default."""
    num_segments: int | None = None
    """T; default: the network's."""
    num_classes: int = 174
    """Classes (174 of Something-Something)."""
    size: int = 224
    """Height and width, pixels."""
    stages: bool = False
    """Also a line for each stage of each network; the default for a single network."""

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        check_ranges(self, num_segments=(1, MAX_SEGMENTS), num_classes=(1, 1_000_000), size=(MIN_SIZE, SIZES[1]))


def published_gmacs(model: str, num_segments: int) -> Published | None:
    """The published row that counts this network's multiply-adds at this T: where rows round to different counts, the
    first of those with the most frequent one."""
    variant, _, backbone = model.rpartition("_resnet")
    rows = [
        row
        for row in published_for(variant)
        if row.gmacs
        and row.backbone == f"resnet{backbone}"
        and row.frames.split()[0] == str(num_segments)
        and "+" not in row.frames
        and ("×" not in row.frames or row.views)  # else the count is of several clips
    ]
    usual = mode(row.gmacs for row in rows) if rows else None
    return next((row for row in rows if row.gmacs == usual), None)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    config = parse(Flags, argv, "complexity", examples=EXAMPLES, common=COMMON)
    if config.backbone not in BACKBONES:
        raise UserError(f"--backbone {config.backbone}: choose one of {', '.join(BACKBONES)}")
    models = config.models or tuple(f"{v}_{config.backbone}" for v in VARIANTS)
    wide = max(24, *map(len, models)) + 2
    print(
        f"{'one clip, eval mode':{wide}s}{'clip T × L':>12s}{'G mult-adds':>13s}{'published':>11s}{'M params':>10s}"
        f"{'M activations':>15s}{'flop/byte fp32':>16s}{'fp16':>8s}"
    )
    for model in models:
        found = measure(model, num_classes=config.num_classes, num_segments=config.num_segments, size=config.size)
        row = published_gmacs(model, found.clip[0]) if config.size == 224 else None
        note = f"{row.gmacs:g} (T{row.table})" if row else "–"
        print(_line(model, wide, f"{found.clip[0]} × {found.clip[1]}", found.total, note))
        if config.stages or len(models) == 1:
            for name, stage in found.stages.items():
                print(_line(f"  {name}", wide, "", stage, ""))


def _line(name: str, wide: int, clip: str, stage: Stage, note: str) -> str:
    fp32, fp16 = (stage.intensity(BYTES_PER_VALUE[p]) for p in ("fp32", "fp16"))
    return (
        f"{name:{wide}s}{clip:>12s}{stage.macs / 1e9:13.3f}{note:>11s}{stage.parameters / 1e6:10.3f}"
        f"{stage.activations / 1e6:15.2f}{fp32:16.1f}{fp16:8.1f}"
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
