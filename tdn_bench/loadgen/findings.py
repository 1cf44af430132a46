"""What a scenario found, as a record holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tdn_bench.loadgen.serving import Service
from tdn_bench.measurement.statistics import PERCENTILES, Interval, TooFewSamples, percentile


@dataclass
class Findings:
    """Figures, samples and details, named as in a record."""

    figures: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def latencies(self, latency_ms: Sequence[float]) -> None:
        """p50, p90 and p99 with their intervals; what the samples do not bound is refused instead."""
        self.figures["queries"] = len(latency_ms)
        self.details["refused"] = []
        for q in PERCENTILES:
            try:
                self.interval(f"p{q}_latency", "ms", percentile(latency_ms, q))
            except TooFewSamples as refusal:
                self.details["refused"].append(str(refusal))

    def interval(self, name: str, unit: str, found: Interval) -> None:
        """An estimate and the ends of its interval, with the unit last."""
        self.figures |= {
            f"{name}_{unit}": found.value,
            f"{name}_low_{unit}": found.low,
            f"{name}_high_{unit}": found.high,
        }

    def describe(self, service: Service) -> None:
        """What there is to say of the service when all runs are over."""
        bad_clips = service.loader.bad_clips
        self.figures |= {
            "build_s": service.engine.build_s,
            "queries_not_decoded": service.undecoded,
            "bad_clips": len(bad_clips),
        }
        self.details |= {
            "engine": service.engine.details(),
            "ledger": service.threads,
            "agreement_with_eager_fp32": asdict(service.comparison),
        }
        if bad_clips.reasons:
            self.details["bad_clips"] = bad_clips.by_path()
