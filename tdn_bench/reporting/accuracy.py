"""What was measured of a network's accuracy, over its runs, and what its network costs: to be set beside others'."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tdn_bench.errors import UserError
from tdn_bench.measurement.statistics import Interval, share_interval
from tdn_bench.models.complexity import measure
from tdn_bench.models.variants import list_models
from tdn_bench.records import Published
from tdn_bench.reporting.found import Found
from tdn_bench.reporting.tables import Unfit, needed, network_of, number, number_setting, setting, shortened

CLASSES = {"sthv1": 174, "sthv2": 174, "kinetics400": 400, "ucf101": 101, "hmdb51": 51}  # of the published data sets
SIZE = 224  # pixels, of all published counts


@dataclass(frozen=True)
class Accuracy:
    """Top-1 of a network on some data: of one run, or the mean of runs that differ in their seed alone."""

    network: str  # as tables show it
    model: str
    variant: str
    backbone: str
    segments: int
    size: int
    views: int
    data: str  # its name
    dataset: str  # what it is laid out as
    classes: int | None
    whole: bool  # of all held-out videos
    top1_percent: float
    spread: float | None  # sample standard deviation over runs
    interval: Interval | None  # of one run, by the number of its videos
    found: Sequence[Found]  # the runs, the newest last

    @property
    def gmacs(self) -> float | None:
        """10⁹ multiply-adds a video, all views; None for a network that is none of ours."""
        one = gmacs(self.model, self.segments, self.size, self.classes or 174)
        return None if one is None else one * self.views

    def is_of(self, row: Published) -> bool:
        """Whether this is the same measurement as a published one: network, clip, views, all of the same held-out
        videos. Those of Table 4 are means over three splits, which no single run is."""
        network = (self.variant, self.backbone, str(self.segments), self.size)
        views = self.views == int(row.views) if row.views and row.views.isdigit() else "×" not in row.frames
        wanted = (row.variant, row.backbone, row.frames.split(" × ")[0], SIZE)
        same_data = (self.dataset, self.classes) == (row.data, CLASSES.get(row.data))
        return network == wanted and same_data and views and self.whole and row.table != "4"


def accuracies(found: Sequence[Found]) -> list[Accuracy]:
    """Of trainings and evaluations that fit (`accuracy_of`) and are not void, those of one network, data and budget
    together; the highest first."""
    alike: dict[tuple[object, ...], list[Found]] = {}
    for f in found:
        alike.setdefault(_alike(f), []).append(f)
    return sorted((_together(of) for of in alike.values()), key=lambda a: -a.top1_percent)


def _alike(found: Found) -> tuple[object, ...]:
    r = found.record
    data = (r.data or {}).get("digest")
    budget = setting(r, "epochs"), setting(r, "subset"), setting(r, "limit"), setting(r, "crop_ratio")
    single = r.name if r.kind == "evaluate" else None  # of one checkpoint: no run of a seed
    return found.group, r.kind, network_of(r), data, budget, single


def accuracy_of(found: Found) -> Accuracy:
    """Of one record. Raises Unfit where it lacks what that needs."""
    r = found.record
    model = str(r.settings.get("model"))
    variant, _, backbone = model.rpartition("_resnet")
    top1 = needed(r.figures, "top1_percent")
    if not 0 <= top1 <= 100:
        raise Unfit("top1_percent is none from 0 to 100")
    segments, size = (_whole(number_setting(found.record, key), key) for key in ("num_segments", "size"))
    views = _whole(number(r.figures, "views") or 1, "views")
    names = r.details.get("classes")
    videos, interval = number(r.figures, "videos"), None
    if r.kind == "evaluate" and videos is not None and 0 < videos < 1e9:
        interval = share_interval(round(top1 * videos / 100), round(videos))
    return Accuracy(
        network_of(r),
        model,
        variant,
        f"resnet{backbone}",
        segments,
        size,
        views,
        shortened(r.data["name"]) if r.data is not None else "–",
        str(r.settings.get("dataset")),
        len(names) if isinstance(names, list) else None,
        r.settings.get("limit") is None and r.settings.get("subset") in (None, "validation"),
        top1,
        None,
        interval,
        [found],
    )


def _whole(value: float, key: str) -> int:
    if not 1 <= value <= 4096 or value != int(value):
        raise Unfit(f"{key} is no whole number from 1 to 4096")
    return int(value)


def _together(found: Sequence[Found]) -> Accuracy:
    runs = [accuracy_of(f) for f in found]
    values = [a.top1_percent for a in runs]
    spread = statistics.stdev(values) if len(values) > 1 else None
    interval = runs[-1].interval if len(runs) == 1 else None
    of = {f.name: getattr(runs[-1], f.name) for f in runs[-1].__dataclass_fields__.values()}
    return Accuracy(
        **of | {"top1_percent": statistics.mean(values), "spread": spread, "interval": interval, "found": found}
    )


@cache
def gmacs(model: str, segments: int, size: int = SIZE, classes: int = 174) -> float | None:
    """10⁹ multiply-adds of one view, counted; None for a network that is none of ours, or takes no such clip."""
    if model not in list_models():
        return None
    try:
        return measure(model, num_classes=classes, num_segments=segments, size=size).total.macs / 1e9
    except UserError:
        return None
