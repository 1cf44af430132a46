"""The step `loader`: how many clips a second each backend decodes."""

from __future__ import annotations

from tdn_bench.gpu_checks.run import Outcome, Row, Run
from tdn_bench.measurement.throughput import Throughput, TimingFlags, measure


def loader(run: Run) -> Outcome:
    """Clips/s of every backend that fills the device's memory, and of DALI on the CPU, by batch size."""
    found = Outcome()
    best: dict[str, float] = {}
    where = str(run.device)
    timing = TimingFlags(seconds=run.sizes.loader_s, warmup_batches=2)
    for backend, device in dict.fromkeys((("pyav", where), ("dali", "cpu"), ("dali", where))):
        for batch in run.sizes.loader_batches:
            workload = run.workload("none", batch, device=device, backend=backend)  # type: ignore[arg-type]
            record = measure(Throughput(workload=workload, timing=timing))
            label = f"{backend}_{device.replace(':', '')}_batch{batch}"
            found.figures |= {f"{label}_{k}": v for k, v in record.figures.items()}
            found.samples |= {f"{label}_{k}": list(v) for k, v in record.samples.items()}
            found.expect(not record.figures["bad_clips"], f"{label}: bad clips: {record.details.get('bad_clips')}")
            rate = record.figures["clips_per_s"]
            best[f"{backend} {device}"] = max(rate, best.get(f"{backend} {device}", 0))
            busy = record.figures.get("gpu_nvdec_percent")
            note = f", video decoder {busy:.0f} % busy" if busy is not None else ""
            found.rows.append(Row(f"{backend} on {device}, batch {batch}", f"{rate:.1f} clips/s{note}"))
    found.figures["dali_over_pyav"] = best[f"dali {where}"] / best[f"pyav {where}"]
    found.rows.append(Row(f"dali on {where} : pyav, each at its best", f"{found.figures['dali_over_pyav']:.2f}"))
    return found
