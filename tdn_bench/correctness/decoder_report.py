"""What comparing decoders found: lines to read, and figures and details as a record holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from tdn_bench.correctness.decoder_checks import SUSPECT_DB, Case, Pixels

VERDICTS = ("exact", "refused", "wrong")


def report_lines(cases: Sequence[Case], backends: Sequence[str]) -> list[str]:
    """A line a case; then reasons, false scans and the distance of pixels."""
    lines = _table(cases, backends)
    lines += [f"{note}: {', '.join(names)}" for note, names in _notes(cases).items()]
    for backend in backends:
        count = _verdicts(cases, backend)
        lines.append(f"{backend}: {', '.join(f'{count[v]} {v}' for v in VERDICTS)} of {len(cases)}")
    for pair, compared in _by_pair(cases).items():
        values = [db for pixels in compared for db in pixels.psnr_db]
        levels = fmean(d for pixels in compared for d in pixels.difference)
        lines.append(
            f"{pair}: PSNR median {median(values):.1f} dB, lowest {min(values):.1f} dB; mean difference {levels:.2f}"
        )
    return lines


def _table(cases: Sequence[Case], backends: Sequence[str]) -> list[str]:
    """A column a backend with its verdict, a column a pair of decoders with the lowest PSNR."""
    wide = max((len(case.name) for case in cases), default=0)
    pairs = list(_by_pair(cases))
    lines = [
        f"{'frames':{wide}s}  " + "  ".join(f"{b:9s}" for b in backends) + f"  lowest PSNR, dB: {', '.join(pairs)}"
    ]
    for case in cases:
        verdicts = "  ".join(f"{case.returned[b].verdict:9s}" for b in backends)
        lowest = (f"{min(case.pixels[p].psnr_db):{len(p)}.1f}" if p in case.pixels else " " * len(p) for p in pairs)
        lines.append(f"{case.name:{wide}s}  {verdicts}  {'':17s}{'  '.join(lowest)}".rstrip())
    return lines


def _notes(cases: Sequence[Case]) -> dict[str, list[str]]:
    """What was found, and the names of the cases where."""
    notes: dict[str, list[str]] = {}
    for case in cases:
        found = [f"scan: {reason}" for reason in case.scan]
        for backend, returned in case.returned.items():
            if returned.verdict != "exact":
                found.append(f"{backend}: {returned}")
            if (lowest_db := case.lowest_db(backend)) < SUSPECT_DB:
                word = "false" if backend in case.false_pictures else "suspicious"
                found.append(f"{backend}: {word} pictures: {lowest_db:.1f} dB from the reference")
        for note in found:
            notes.setdefault(note, []).append(case.name)
    return notes


def _verdicts(cases: Sequence[Case], backend: str) -> Counter[str]:
    return Counter(case.returned[backend].verdict for case in cases)


def _by_pair(cases: Sequence[Case]) -> dict[str, list[Pixels]]:
    """The pixels of all cases in which two decoders were compared, by their names."""
    found: dict[str, list[Pixels]] = {}
    for case in cases:
        for pair, pixels in case.pixels.items():
            found.setdefault(pair, []).append(pixels)
    return found


def figures_of(cases: Sequence[Case], backends: Sequence[str]) -> dict[str, Any]:
    """Counts of cases by verdict for every backend, and PSNR in dB by pair, as records hold them."""
    figures: dict[str, Any] = {"cases": len(cases), "false_scans": sum(bool(case.scan) for case in cases)}
    for backend in backends:
        count = _verdicts(cases, backend)
        figures[backend] = {verdict: count[verdict] for verdict in VERDICTS}
        figures[backend]["false_pictures"] = sum(backend in case.false_pictures for case in cases)
    for pair, compared in _by_pair(cases).items():
        values = [db for pixels in compared for db in pixels.psnr_db]
        figures[pair] = {"psnr_median_db": median(values), "psnr_min_db": min(values)}
    return figures


def details_of(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """All of every case, as records hold it."""
    return [
        {
            "name": case.name,
            "scan": case.scan,
            "returned": {b: asdict(r) | {"verdict": r.verdict} for b, r in case.returned.items()},
            "pixels": {pair: asdict(pixels) for pair, pixels in case.pixels.items()},
        }
        for case in cases
    ]
