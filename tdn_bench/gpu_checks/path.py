"""The step `path`: the whole way from video file to label, with every engine."""

from __future__ import annotations

from itertools import chain

from engines import why_unavailable
from tdn_bench.cli import as_flags
from tdn_bench.gpu_checks.run import Outcome, Row, Run, run_quietly
from tdn_bench.measurement.throughput import OutputFlags, Throughput, TimingFlags
from tdn_bench.records import latest_records, utc_now


def path(run: Run) -> Outcome:
    """From file to label with every engine that is ready; `tdn_bench.throughput` writes a record of each, too."""
    found, sizes = Outcome(), run.sizes
    for name in sizes.path_engines:
        if (reason := why_unavailable(name, str(run.device))) is not None:
            found.rows.append(Row(name, f"not run: {reason}"))
            continue
        config = Throughput(
            workload=run.workload(name, sizes.path_batch),
            timing=TimingFlags(seconds=sizes.path_s),
            output=OutputFlags(results=run.folder, name=f"path-{name}"),
        )
        started = utc_now()
        error = run_quietly("tdn_bench.throughput", list(chain.from_iterable(as_flags(config))), sizes)
        if error is not None:
            found.failures.append(f"{name}: {error}")
            continue
        [record] = (r for r in latest_records(run.folder, started) if r.name == f"path-{name}")
        f = record.figures
        found.figures |= {f"{name}_ms_per_video": f["ms_per_video"], f"{name}_clips_per_s": f["clips_per_s"]}
        value = f"{f['ms_per_video']:.2f} ms/video, {f['clips_per_s']:.1f} clips/s"
        found.rows.append(Row(f"{name}, {record.settings['precision']}, batch {sizes.path_batch}", value))
    return found
