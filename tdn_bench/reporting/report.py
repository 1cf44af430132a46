"""The report of a folder of records: a Markdown page with its plots, and an HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import printable
from pipelines.files import write_whole
from tdn_bench.errors import UserError
from tdn_bench.records import Record, machine_text
from tdn_bench.records.tables import markdown_code, markdown_table, markdown_text
from tdn_bench.reporting.confusions import MAX_READABLE, confusion, most_confused
from tdn_bench.reporting.found import Collection, Found, Group, collect
from tdn_bench.reporting.page import html_page
from tdn_bench.reporting.plots import MAX_MATRICES, plot_confusion, plot_stages
from tdn_bench.reporting.tables import (
    COMPARED,
    Columns,
    Unfit,
    compared_tables,
    evaluation_columns,
    loader_columns,
    pace,
    published_table,
    scenario_columns,
    shortened,
    throughput_columns,
    training_columns,
)

STAGES_ALT = "Work per video by stage"


@dataclass
class Page:
    """A report while it is written: its parts, and what could not be shown, a line each."""

    folder: Path
    parts: list[str]
    unfit: list[str] = field(default_factory=list)

    def plot(self, draw: Callable[[Sequence[Record], Path], None], found: Sequence[Found], name: str, alt: str) -> None:
        """A plot of records; `name` is the file's, with a number where there is one before it."""
        if found:
            stem, suffix = name.split(".")
            number = sum(part.startswith(f"![{alt}]") for part in self.parts) + 1
            name = f"{stem}{f'-{number}' if number > 1 else ''}.{suffix}"
            draw([f.record for f in found], self.folder / name)
            self.parts.append(f"![{alt}]({name})")

    def fits(self, found: Found, take: Callable[[Record], object]) -> bool:
        """Whether `take` finds in a record what it needs; else the record is named as one that is not shown."""
        try:
            take(found.record)
        except Unfit as e:
            self.unfit.append(f"{found.shown}: {printable(str(e))}")
            return False
        return True

    def tables(self, found: Sequence[Found], columns: Callable[[Sequence[Record]], Columns]) -> list[Found]:
        """A table of what is valid, and one of what is void. Returns the records that are in the first."""
        header, row = columns([f.record for f in found])
        shown = [f for f in found if self.fits(f, row)]
        valid, void = ([f for f in shown if (f.record.status == "void") == is_void] for is_void in (False, True))
        for kept, title in ((valid, ""), (void, "**Void: do not use these figures**; Disturbed says what happened.")):
            if kept:
                self.parts += [title] * bool(title) + [markdown_table(header, [row(f.record) for f in kept])]
        return valid


def write_report(folder: Path, *, since: str = "", missing: Sequence[str] = ()) -> Path:
    """Write `report.md` with its plots and `report.html` into `folder`, from the newest record of each kind and name
    below it, none older than `since` (as `records.utc_now` writes times). `missing` lists what could not be measured,
    and why. Records of different machines, and those that git tracks beside others, have tables of their own; what is
    no record is named. Returns the Markdown page's path; `html_path` says where the other is. Raises UserError where
    there are no records, and where the pages cannot be written."""
    found = collect(folder, since)
    page = html_page(found, missing)
    try:
        path = _write_markdown(found, missing)
        write_whole(html_path(folder), page)
    except OSError as e:
        raise UserError(f"{printable(str(folder))}: the report cannot be written ({e.strerror})") from e
    return path


def html_path(folder: Path) -> Path:
    """Where `write_report` writes the HTML page."""
    return folder / "report.html"


def _write_markdown(found: Collection, missing: Sequence[str]) -> Path:
    page = Page(found.folder, ["# tdn_bench report"])
    groups = found.groups
    if len(groups) > 1:
        page.parts.append(
            f"These records are of {len(groups)} sources, each with a heading of its own: machines, and published "
            "records (those in git) apart from others. Do not compare figures across headings."
        )
    for group, of in groups.items():
        _group(page, of, group if len(groups) > 1 else None)
    if older := len(found.every) - len(found.chosen):
        what = f"{older} older records in this folder are not shown"
        page.parts.append(f"{what}: of the same kinds and names, or of earlier runs.")
    if missing:
        page.parts += ["## Not measured here", _list(missing)]
    if page.unfit or found.others:
        page.parts += ["## Not shown", "These files are no records, or lack what their table shows:"]
        page.parts.append(_list([*page.unfit, *found.others]))
    shown = [f.record for f in found.chosen if f.record.kind in ("train", "evaluate", "throughput")]
    if published := published_table(shown):
        page.parts += [
            "## Published, for reference only",
            "TDN paper (arXiv 2012.10071) and, of the compared networks, what it cites: other data, other "
            "training; ms/video on one V100 at 224 px, batch 16, data loading included. Not comparable with the "
            "rows above.",
            published,
        ]
    path = found.folder / "report.md"
    write_whole(path, ("\n\n".join(page.parts) + "\n").encode())
    return path


def _group(page: Page, found: Sequence[Found], group: Group | None) -> None:
    """The tables of one source."""
    if group is not None:
        published, machine = group
        page.parts.append(f"# {'Published' if published else 'Not published'}: {markdown_text(shortened(machine))}")
    page.parts.append(_provenance(found))
    kinds: dict[str, list[Found]] = {}
    for f in found:
        kinds.setdefault(f.record.kind, []).append(f)
    if trained := kinds.pop("train", []):
        page.parts.append("## Accuracy")
        _confusions(page, page.tables(trained, training_columns))
    if evaluated := kinds.pop("evaluate", []):
        page.parts += ["## Evaluations", "Videos that could not be used are left out, of these accuracies too."]
        page.tables(evaluated, evaluation_columns)
    _compared(page, [f for kind in COMPARED for f in kinds.pop(kind, [])])
    if measured := kinds.pop("throughput", []):
        page.parts += [
            "## From video file to label",
            "Data loading included, warm-up left out; every engine was checked against eager fp32 on real clips first. "
            "Percentiles are over batches. Compare rows of one network, batch and data set.",
        ]
        page.plot(plot_stages, page.tables(_fastest(page, measured), throughput_columns), "ledger.png", STAGES_ALT)
    if loaders := kinds.pop("loader", []):
        page.parts += ["## Loader alone", "Stages are thread time; they overlap."]
        page.tables(_fastest(page, loaders), loader_columns)
    if scenarios := kinds.pop("scenario", []):
        page.parts += [
            "## Scenarios",
            "Decoding included; latency of Server counts from the scheduled arrival, of LiveStreams from the video's "
            "last frame. Percentiles that too few queries bound are left out.",
        ]
        page.tables(scenarios, scenario_columns)
    if rest := [f for of in kinds.values() for f in of]:
        rows = [
            [shortened(f.record.kind), shortened(f.record.name), f.record.status, markdown_code(f.shown)] for f in rest
        ]
        page.parts += ["## Other records", markdown_table(["kind", "name", "status", "file"], rows)]
    if disturbed := _disturbed(found):
        page.parts += ["## Disturbed", "Something else ran on the machine, or the pace of these runs changed:"]
        page.parts.append(disturbed)


def _fastest(page: Page, found: Sequence[Found]) -> list[Found]:
    """Those that have a pace, the fastest first."""
    return sorted((f for f in found if page.fits(f, pace)), key=lambda f: pace(f.record))


def _confusions(page: Page, found: Sequence[Found]) -> None:
    """The matrices of the newest that have one, as many as a plot takes, where they are small enough to be read; the
    most confused classes of each."""
    known = [f for f in found if page.fits(f, confusion) and confusion(f.record) is not None]
    small = [f for f in known if len(confusion(f.record)[1]) <= MAX_READABLE]  # type: ignore[index]
    if len(small) > MAX_MATRICES:
        page.parts.append(f"Confusion matrices of the newest {MAX_MATRICES} of {len(small)}:")
    drawn = small[-MAX_MATRICES:]
    page.plot(plot_confusion, drawn, "confusion.png", "Confusion matrices: true and predicted classes")
    for f in (f for f in known[-MAX_MATRICES:] if f not in small):
        header, rows = most_confused(confusion(f.record))  # type: ignore[arg-type]
        page.parts += [f"Most confused by {markdown_text(shortened(f.record.name))}:", markdown_table(header, rows)]


def _compared(page: Page, found: Sequence[Found]) -> None:
    """Comparisons of engines, of decoders, of two sides, of two commits: tables for each."""
    for f in found:
        title, tables = compared_tables(f.record)
        if page.fits(f, tables):
            data = shortened(f.record.data["name"]) if f.record.data is not None else "no data set"
            what = f"{f.record.name} on {data}, status {f.record.status}"
            page.parts += [f"## {title}", f"{markdown_text(shortened(what))}:"]
            page.parts += [markdown_table(header, rows) for header, rows in tables(f.record)]


def _provenance(found: Sequence[Found]) -> str:
    """Machine, versions and commits."""
    records = [f.record for f in found]
    versions: dict[str, list[str]] = {}
    for r in records:
        for package, version in r.versions.items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    said = ", ".join(f"{package} {' or '.join(of)}" for package, of in versions.items())
    commits = sorted({r.commit or "unknown" for r in records})
    shown = ", ".join(c[:12] + ("+ (changed files)" if c.endswith("+") else "") for c in commits)
    return (
        f"Machine: {markdown_text(shortened(machine_text(records[-1].machine)))}. Versions: {markdown_text(said)}. "
        f"Commit: {shown}. Records of {records[0].created_utc} to {records[-1].created_utc}, in this folder"
        f"{', published with this repository' if found[0].published else ''}; each holds its command, settings and raw "
        "samples."
    )


def _disturbed(found: Sequence[Found]) -> str:
    """What was not stable, and why."""
    return _list(
        [
            f"{shortened(r.name)} ({shortened(r.kind)}): {r.status}: {'; '.join(r.status_reasons)}"
            for r in (f.record for f in found)
            if r.status in ("unstable", "void")
        ]
    )


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)
