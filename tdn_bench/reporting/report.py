"""One Markdown page, with its plots, from a folder of records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from pipelines.errors import printable
from pipelines.files import write_whole
from tdn_bench.errors import UserError
from tdn_bench.records import Record, machine_text, read_records
from tdn_bench.records.environment import tracked_files
from tdn_bench.records.tables import markdown_code, markdown_table, markdown_text
from tdn_bench.reporting.plots import MAX_MATRICES, confusion, plot_confusion, plot_stages
from tdn_bench.reporting.tables import (
    Columns,
    Unfit,
    decoder_parity_table,
    engine_parity_table,
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


@dataclass(frozen=True)
class Found:
    """A record and the file that it was read from; `published` where git tracks that."""

    path: Path
    record: Record
    published: bool

    @property
    def group(self) -> tuple[bool, str]:
        """What records must have in common to stand in one table: whose they are, and of what machine."""
        return self.published, machine_text(self.record.machine)


@dataclass
class Page:
    """A report while it is written: its parts, and what could not be shown, a line each."""

    folder: Path
    parts: list[str] = field(default_factory=list)
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
            self.unfit.append(f"{printable(found.path.name)}: {printable(str(e))}")
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
    """Write `report.md` and its plots into `folder`, from the newest record of each kind and name in it, none older
    than `since` (as `records.utc_now` writes times). `missing` lists what could not be measured, and why. Records of
    different machines, and those that git tracks beside others, have tables of their own; what is no record is named.
    Returns the page's path. Raises UserError where there are no records, and where the page cannot be written."""
    if not folder.is_dir():
        raise UserError(f"{printable(str(folder))}: no such folder")
    records, others = read_records(folder.glob("*.json"))
    if not records:
        why = f"; {len(others)} cannot be read, the first: {others[0]}" if others else " (*.json)"
        raise UserError(f"{printable(str(folder))}: holds no records{why}")
    tracked = tracked_files(folder)
    found = [Found(path, record, path.name in tracked) for path, record in records.items()]
    chosen = newest([f for f in found if f.record.created_utc >= since])
    if not chosen:
        raise UserError(f"{printable(str(folder))}: holds no records since {since}")
    page = Page(folder, ["# tdn_bench report"])
    groups = {group: list(of) for group, of in groupby(sorted(chosen, key=_group_order), lambda f: f.group)}
    if len(groups) > 1:
        page.parts.append(
            f"These records are of {len(groups)} sources, each with a heading of its own: machines, and published "
            "records (those in git) apart from others. Do not compare figures across headings."
        )
    try:
        for group, of in groups.items():
            _group(page, of, group if len(groups) > 1 else None)
        if older := len(found) - len(chosen):
            what = f"{older} older records in this folder are not shown"
            page.parts.append(f"{what}: of the same kinds and names, or of earlier runs.")
        if missing:
            page.parts += ["## Not measured here", _list(missing)]
        if page.unfit or others:
            page.parts += ["## Not shown", "These files are no records, or lack what their table shows:"]
            page.parts.append(_list([*page.unfit, *others]))
        if shown := published_table([f.record for f in chosen if f.record.kind in ("train", "evaluate", "throughput")]):
            page.parts += [
                "## Published, for reference only",
                "TDN paper (arXiv 2012.10071) and, of the compared networks, what it cites: other data, other "
                "training; ms/video on one V100 at 224 px, batch 16, data loading included. Not comparable with the "
                "rows above.",
                shown,
            ]
        path = folder / "report.md"
        write_whole(path, ("\n\n".join(page.parts) + "\n").encode())
    except OSError as e:
        raise UserError(f"{printable(str(folder))}: the report cannot be written ({e.strerror})") from e
    return path


def newest(found: Sequence[Found]) -> list[Found]:
    """The newest of every source, kind and name, oldest first. Where that is void, the newest that is not, too: a void
    run hides no good one."""
    last: dict[tuple[object, ...], Found] = {}
    for f in sorted(found, key=lambda f: f.record.created_utc):
        last[f.group, f.record.kind, f.record.name, f.record.status == "void"] = f
    void = {key for key in last if key[-1]}
    for key in void:
        if (good := last.get((*key[:-1], False))) and good.record.created_utc > last[key].record.created_utc:
            del last[key]
    return sorted(last.values(), key=lambda f: f.record.created_utc)


def _group_order(found: Found) -> tuple[bool, str, str]:
    return (*found.group, found.record.created_utc)


def _group(page: Page, found: Sequence[Found], group: tuple[bool, str] | None) -> None:
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
        drawn = _with_confusion(page, page.tables(trained, training_columns))
        page.plot(plot_confusion, drawn, "confusion.png", "Confusion matrices: true and predicted classes")
    if evaluated := kinds.pop("evaluate", []):
        page.parts += ["## Evaluations", "Videos that could not be used are left out, of these accuracies too."]
        page.tables(evaluated, evaluation_columns)
    if compared := kinds.pop("parity", []):
        _parity(page, compared)
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
            [shortened(f.record.kind), shortened(f.record.name), f.record.status, markdown_code(f.path.name)]
            for f in rest
        ]
        page.parts += ["## Other records", markdown_table(["kind", "name", "status", "file"], rows)]
    if disturbed := _disturbed(found):
        page.parts += ["## Disturbed", "Something else ran on the machine, or the pace of these runs changed:"]
        page.parts.append(disturbed)


def _fastest(page: Page, found: Sequence[Found]) -> list[Found]:
    """Those that have a pace, the fastest first."""
    return sorted((f for f in found if page.fits(f, pace)), key=lambda f: pace(f.record))


def _with_confusion(page: Page, found: Sequence[Found]) -> list[Found]:
    """The newest that have a confusion matrix, as many as a plot takes."""
    drawn = [f for f in found if page.fits(f, confusion) and confusion(f.record) is not None]
    if len(drawn) > MAX_MATRICES:
        page.parts.append(f"Confusion matrices of the newest {MAX_MATRICES} of {len(drawn)}:")
    return drawn[-MAX_MATRICES:]


def _parity(page: Page, found: Sequence[Found]) -> None:
    """Comparisons of engines and of decoders, a table each."""
    tables: Mapping[str, tuple[str, Callable[[Record], str]]] = {
        "engines": ("## Engines beside eager fp32", engine_parity_table),
        "decoders": ("## Decoders beside a whole decode", decoder_parity_table),
    }
    for f in found:
        title, table = tables["decoders" if "false_scans" in f.record.figures else "engines"]
        if page.fits(f, table):
            data = shortened(f.record.data["name"]) if f.record.data is not None else "no data set"
            what = f"{f.record.name} on {data}, status {f.record.status}"
            page.parts += [title, f"{markdown_text(shortened(what))}:", table(f.record)]


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
