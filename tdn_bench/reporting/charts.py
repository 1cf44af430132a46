"""The charts of the HTML report, as Vega-Lite specifications that Vega-Altair makes.

Colours are the page's (light and dark), so none is named here but the grey of what others published. A record that was
disturbed is paler, dashed or hollow, and its name says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import printable
from pipelines.ledger import WORK
from tdn_bench.records import Published, Record
from tdn_bench.reporting.accuracy import Accuracy
from tdn_bench.reporting.confusions import Gain, Matrix
from tdn_bench.reporting.found import Found
from tdn_bench.reporting.history import Point
from tdn_bench.reporting.tables import Unfit, number, pace

if TYPE_CHECKING:
    import altair as alt

Spec = Mapping[str, Any]
Rows = list[dict[str, Any]]
GREY = "#8a8f98"
# The order gives the colours: what takes longest gets those that differ most.
STAGES = ("infer", "decode", "augment", "open", "demux", "read", "copy", "plan", "copy_back")
assert set(STAGES) == set(WORK) - {"train"}
MAX_LINES, MAX_GAINS, MAX_LABEL = 8, 15, 48
QUANTILES = 101
VALIDATE = False  # against Vega-Lite's schema: takes longer than all else; tests do it


def label_of(record: Record) -> str:
    """A record's name on an axis, with what disturbed it."""
    name = printable(record.name)
    name = name if len(name) <= MAX_LABEL else f"{name[:MAX_LABEL]}…"
    return f"{name} ({record.status})" if record.status in ("unstable", "void") else name


def labels_of(records: Sequence[Record]) -> list[str]:
    """Of several, told apart where names are alike."""
    names, seen = [label_of(r) for r in records], Counter[str]()
    seen_in_all = Counter(names)
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} #{seen[name]}" if seen_in_all[name] > 1 else name)
    return found


def _spec(chart: Any, description: str, height: int | None = 280) -> Spec:
    """A chart as wide as its place."""
    size = {"width": "container"} | ({} if height is None else {"height": height})
    spec = chart.properties(**size, description=description).to_dict(validate=VALIDATE)
    return {key: value for key, value in spec.items() if key != "config"}  # which is the page's


def _data(rows: Rows) -> alt.Data:
    import altair as alt

    return alt.Data(values=rows)


def stages(found: Sequence[Found], hrefs: Sequence[str]) -> Spec:
    """Work a video by stage, stacked, beside the wall time. Raises Unfit for a figure that is none."""
    import altair as alt

    names = labels_of([f.record for f in found])
    rows: Rows = []
    for f, name, href in zip(found, names, hrefs, strict=True):
        for order, stage in enumerate(STAGES):
            if ms := number(f.record.figures, f"ledger_{stage}_ms"):
                row = {"run": name, "stage": stage, "ms": ms, "order": order, "href": href, "status": f.record.status}
                rows.append(row | {"wall": pace(f.record)})
    used = [stage for stage in STAGES if any(row["stage"] == stage for row in rows)]
    y = alt.Y("run:N", sort=names, title=None, axis=alt.Axis(labelLimit=190))
    base = alt.Chart(_data(rows))
    bars = base.mark_bar().encode(
        y=y,
        x=alt.X("ms:Q", title="ms per video"),
        color=alt.Color("stage:N", scale=alt.Scale(domain=used), title=None),
        order="order:O",
        opacity=alt.condition("datum.status == 'unstable'", alt.value(0.55), alt.value(1)),
        href="href:N",
        tooltip=[
            alt.Tooltip("run:N"),
            alt.Tooltip("stage:N"),
            alt.Tooltip("ms:Q", format=".3f", title="ms per video"),
            alt.Tooltip("wall:Q", format=".3f", title="wall time, ms per video"),
            alt.Tooltip("status:N"),
        ],
    )
    wall = base.mark_tick(thickness=3, size=20).encode(y=y, x="max(wall):Q")
    said = f"Stacked bars: milliseconds of work a video by stage, of {len(names)} runs; a tick marks the wall time."
    return _spec(bars + wall, said, height=30 * max(len(names), 1) + 20)


def distribution(found: Sequence[Found], values: Sequence[np.ndarray], hrefs: Sequence[str], title: str) -> Spec:
    """The share of values (float, one array a record) up to each value: a line a record."""
    import altair as alt

    rows: Rows = []
    for f, name, of, href in zip(found, labels_of([f.record for f in found]), values, hrefs, strict=True):
        shares = np.linspace(0, 1, min(QUANTILES, len(of)))
        for share, ms in zip(shares.tolist(), np.quantile(of, shares).tolist(), strict=True):
            rows.append({"run": name, "ms": ms, "share": 100 * share, "href": href, "status": f.record.status})
    chart = (
        alt.Chart(_data(rows))
        .mark_line(clip=True)
        .encode(
            x=alt.X("ms:Q", title=title, scale=alt.Scale(zero=False, nice=True)),
            y=alt.Y("share:Q", title="% at most this long"),
            color=alt.Color("run:N", title=None, sort=None),
            strokeDash=_dash(alt),
            href="href:N",
            tooltip=["run:N", alt.Tooltip("share:Q", format=".0f", title="%"), alt.Tooltip("ms:Q", format=".3f")],
        )
    )
    return _spec(chart, f"Cumulative distribution of {title}: one line for each of {len(found)} runs.")


def _dash(alt: Any) -> Any:
    return alt.condition("datum.status == 'unstable'", alt.value([4, 3]), alt.value([1, 0]))


def accuracy_against_cost(measured: Sequence[Accuracy], published: Sequence[Published], hrefs: Sequence[str]) -> Spec:
    """Top-1 against multiply-adds a video: others' points in grey, measured ones in colour."""
    import altair as alt

    grey: Rows = [
        {
            "name": row.name,
            "what": f"{row.name}, {row.backbone}, {row.frames} frames",
            "gmacs": row.total_gmacs,
            "top1": row.top1_percent,
        }
        for row in published
        if row.total_gmacs and row.top1_percent is not None
    ]
    own: Rows = []
    for a, href in zip(measured, hrefs, strict=True):
        status = next((f.record.status for f in a.found if f.record.status == "unstable"), a.found[-1].record.status)
        row = {"network": a.model[:MAX_LABEL], "what": a.network, "gmacs": a.gmacs, "top1": a.top1_percent}
        spread = a.spread or 0
        row |= {"low": a.top1_percent - spread, "high": min(a.top1_percent + spread, 100), "runs": len(a.found)}
        own.append(row | {"href": href, "status": status, "data": a.data})
    x = alt.X(
        "gmacs:Q", title="G multiply-adds a video, all views", scale=alt.Scale(type="log", nice=False, padding=18)
    )
    values = [row["top1"] for row in grey] + [row[end] for row in own for end in ("low", "high")]
    domain = [max(0, min(values, default=0) - 5), min(103, max(values, default=100) + 5)]
    y = alt.Y("top1:Q", title="top-1 %", scale=alt.Scale(domain=domain, nice=False))
    layers = []
    if grey:
        base = alt.Chart(_data(grey))
        tip = [alt.Tooltip("what:N", title="published"), "gmacs:Q", alt.Tooltip("top1:Q", title="top-1 %")]
        layers.append(base.mark_point(color=GREY, filled=True, size=55, opacity=0.8).encode(x=x, y=y, tooltip=tip))
        text = base.mark_text(color=GREY, align="left", dx=7, fontSize=10).encode(x=x, y=y, text="name:N")
        layers.append(text.transform_filter("datum.name == 'TDN'"))
    if own:
        base = alt.Chart(_data(own))
        tip = [
            alt.Tooltip("what:N", title="measured"),
            alt.Tooltip("data:N"),
            alt.Tooltip("gmacs:Q", format=".4g"),
            alt.Tooltip("top1:Q", format=".2f", title="top-1 %"),
            alt.Tooltip("runs:Q"),
            alt.Tooltip("status:N"),
        ]
        bars = base.mark_rule(opacity=0.5).encode(x=x, y=alt.Y("low:Q", title="top-1 %"), y2="high:Q")
        points = base.mark_point(filled=True, size=110).encode(
            x=x,
            y=y,
            color=alt.Color("network:N", title=None, legend=alt.Legend(symbolLimit=20)),
            shape=alt.Shape("network:N", title=None, legend=alt.Legend(symbolLimit=20)),
            opacity=alt.condition("datum.status == 'unstable'", alt.value(0.45), alt.value(1)),
            href="href:N",
            tooltip=tip,
        )
        layers += [bars, points]
    said = f"Scatter plot: top-1 against multiply-adds; {len(grey)} published points in grey, {len(own)} measured."
    return _spec(alt.layer(*layers), said, height=340)


def curves(found: Sequence[Found], lines: Sequence[Sequence[tuple[float, float]]], title: str) -> Spec:
    """A value over epochs (pairs): a line a run."""
    import altair as alt

    rows: Rows = []
    for f, name, line in zip(found, labels_of([f.record for f in found]), lines, strict=True):
        rows += [{"run": name, "epoch": epoch, "value": v, "status": f.record.status} for epoch, v in line]
    chart = (
        alt.Chart(_data(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("run:N", title=None, sort=None),
            strokeDash=_dash(alt),
            tooltip=["run:N", "epoch:Q", alt.Tooltip("value:Q", format=".4g", title=title)],
        )
    )
    return _spec(chart, f"{title} over epochs: one line for each of {len(found)} runs.", height=230)


def heat_map(matrix: Matrix) -> Spec:
    """A confusion matrix in percent of each true class: rows true, columns predicted classes."""
    import altair as alt

    counts, names = matrix
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = [f"{i} {printable(name)}" for i, name in enumerate(names)]
    rows: Rows = [
        {"true": shown[i], "predicted": shown[j], "column": j, "videos": int(counts[i, j]), "share": float(share)}
        for (i, j), share in np.ndenumerate(shares)
    ]
    y = alt.Y("true:N", sort=shown, title="true class", axis=alt.Axis(labelLimit=190))
    x = alt.X("column:O", title="predicted class, by number", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(_data(rows)).encode(x=x, y=y)
    boxes = base.mark_rect().encode(
        color=alt.Color(
            "share:Q", title="% of the true class", scale=alt.Scale(scheme="cividis", domain=[0, 100]), legend=None
        ),
        tooltip=[
            "true:N",
            "predicted:N",
            "videos:Q",
            alt.Tooltip("share:Q", format=".1f", title="% of the true class"),
        ],
    )
    text = base.mark_text(fontSize=10).encode(
        text=alt.Text("share:Q", format=".0f"),
        color=alt.condition("datum.share > 55", alt.value("#000"), alt.value("#fff")),
    )
    layers = boxes + text.transform_filter("datum.share >= 0.5")
    return _spec(layers, f"Confusion matrix of {len(names)} classes.", height=26 * len(names) + 10)


def gain_bars(found: Sequence[Gain]) -> Spec:
    """By class, points above (or below) a baseline; of many classes the largest and the smallest."""
    import altair as alt

    shown = list(found) if len(found) <= 2 * MAX_GAINS else [*found[:MAX_GAINS], *found[-MAX_GAINS:]]
    rows: Rows = [
        {
            "class": f"{printable(g.name)[:MAX_LABEL]}{' ' * i}",  # no two alike
            "points": g.points,
            "videos": g.videos,
            "percent": g.percent,
            "baseline": g.baseline_percent,
            "better": g.points >= 0,
        }
        for i, g in enumerate(shown)
    ]
    order = [row["class"] for row in rows]
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            y=alt.Y("class:N", sort=order, title=None, axis=alt.Axis(labelLimit=190)),
            x=alt.X("points:Q", title="percentage points above the baseline"),
            color=alt.Color("better:N", scale=alt.Scale(domain=[True, False]), legend=None),
            tooltip=[
                "class:N",
                alt.Tooltip("points:Q", format="+.1f"),
                alt.Tooltip("percent:Q", format=".1f", title="% recognised"),
                alt.Tooltip("baseline:Q", format=".1f", title="% by the baseline"),
                "videos:Q",
            ],
        )
    )
    return _spec(chart, f"Bars: gain by class of {len(shown)} classes.", height=22 * len(shown) + 20)


def over_commits(lines: Mapping[tuple[str, ...], Sequence[Point]], figure: str, hrefs: Mapping[int, str]) -> Spec:
    """A figure over commits, oldest first: a line a name; void runs are crosses, joined with nothing."""
    import altair as alt

    columns = sorted({p.column for points in lines.values() for p in points})
    place = {column: i for i, column in enumerate(columns)}
    rows: Rows = []
    names = [f"{kind}: {printable(name)[:MAX_LABEL]}" for _, kind, name in lines]
    for name, points in zip(names, lines.values(), strict=True):
        for p in points:
            row = {"line": name, "at": place[p.column], "value": p.value, "commit": p.commit}
            low, high = p.quartiles or (None, None)
            row |= {"status": p.record.status, "time": p.record.created_utc, "low": low, "high": high}
            rows.append(row | {"href": hrefs.get(id(p.record), "")})
    text = {str(place[p.column]): p.commit for points in lines.values() for p in points}
    x = alt.X(
        "at:O",
        title="commit, oldest first",
        axis=alt.Axis(labelExpr=f"({_expression(text)})[datum.value]", labelAngle=-50, labelOverlap="parity"),
    )
    y = alt.Y("value:Q", title=figure, scale=alt.Scale(zero=False))
    colour = alt.Color("line:N", title=None, sort=None)
    base = alt.Chart(_data(rows))
    drawn = base.transform_filter("datum.status != 'void'").mark_line().encode(x=x, y=y, color=colour)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(opacity=0.5, strokeWidth=2)
    bars = bars.encode(x=x, y=alt.Y("low:Q", title=figure), y2="high:Q", color=colour)
    points = base.mark_point(size=70, strokeWidth=2).encode(
        x=x,
        y=y,
        color=colour,
        fillOpacity=alt.condition("datum.status == 'unstable' || datum.status == 'void'", alt.value(0), alt.value(1)),
        fill=colour,
        shape=alt.condition("datum.status == 'void'", alt.value("cross"), alt.value("circle")),
        href="href:N",
        tooltip=["line:N", "commit:N", "time:N", alt.Tooltip("value:Q", format=".5g", title=figure), "status:N"],
    )
    return _spec(alt.layer(drawn, bars, points), f"{figure} over {len(columns)} commits, {len(lines)} lines.")


def _expression(labels: Mapping[str, str]) -> str:
    """A Vega expression's object of labels that are commits' names: letters, digits and marks."""
    if any(not set(label) <= set("0123456789abcdefnone+?") for label in labels.values()):
        raise Unfit("a commit's name is none of git's")
    return "{" + ", ".join(f"'{key}': '{label}'" for key, label in labels.items()) + "}"


def ratios(rows: Iterable[tuple[str, float | None, tuple[float, float, float]]]) -> Spec:
    """Times as multiples of TSN's: (network, published, (measured, its interval's ends))."""
    import altair as alt

    data: Rows = []
    for network, published, (ratio, low, high) in rows:
        data.append({"network": network, "whose": "measured here", "ratio": ratio, "low": low, "high": high})
        if published is not None:
            data.append({"network": network, "whose": "published", "ratio": published, "low": None, "high": None})
    order = list(dict.fromkeys(row["network"] for row in data))
    base = alt.Chart(_data(data))
    y = alt.Y("network:N", sort=order, title=None)
    x = alt.X("ratio:Q", title="time ÷ TSN's", scale=alt.Scale(type="log"))
    measured = base.transform_filter("datum.whose == 'measured here'")
    bars = measured.mark_rule(strokeWidth=3, opacity=0.6).encode(
        y=y, x=alt.X("low:Q", title="time ÷ TSN's"), x2="high:Q"
    )
    tip = ["network:N", "whose:N", alt.Tooltip("ratio:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f")]
    tip.append(alt.Tooltip("high:Q", format=".3f"))
    points = measured.mark_point(filled=True, size=110).encode(y=y, x=x, tooltip=tip)
    others = base.transform_filter("datum.whose == 'published'").mark_point(
        filled=True, size=90, color=GREY, shape="diamond"
    )
    said = "Times of the networks of Table 5 as multiples of TSN's: measured (circles) and published (grey diamonds)."
    return _spec(alt.layer(bars, points, others.encode(y=y, x=x, tooltip=tip)), said, height=30 * len(order) + 20)
