"""What disturbs a measurement: other processes, a hypervisor, throttling, clock changes, drift."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tdn_bench.measurement.statistics import drift

UNSTABLE_FOREIGN, VOID_FOREIGN = 0.05, 0.25  # shares of the machine's processor time that others took
UNSTABLE_STEAL, VOID_STEAL = 0.02, 0.20  # … that the hypervisor gave to other machines
CLOCK_CHANGE = 0.10  # of the median clock
DRIFT = 0.05  # of the median, from the first half of the samples to the second
MIN_SAMPLES = 10  # below, halves are too short for a drift to show
# NVML's clock event reasons that are somebody's limit: hardware slowdown, its thermal and its power brake, software
# thermal. The power cap (4) is how a card at full load works: noted, not void.
THROTTLED = 0x8 | 0x40 | 0x80 | 0x20
POWER_CAP = 0x4


def _processor_s() -> tuple[float, float]:
    """Processor seconds since boot: busy, and stolen. Raises OSError where the kernel does not say."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


def _own_s(pids: Sequence[int]) -> float:
    """Processor seconds of this process, its ended children, and `pids`."""
    own = sum(os.times()[:4])
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended: then it is one of the ended children
            continue
        own += sum(int(x) for x in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return own


def _throttle_count() -> int:
    folder = Path("/sys/devices/system/cpu")
    return sum(int(p.read_text()) for p in folder.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))


class Watch:
    """`with Watch() as watch: …; watch.verdict(samples)`: what else went on while something was measured.

    `pids` are processes that belong to the measurement beside this one and its children that end meanwhile.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._pids = pids
        self.figures: dict[str, float] = {}

    def __enter__(self) -> Watch:
        self.figures["load_average_before"] = os.getloadavg()[0]
        self._begun = time.perf_counter()
        self._throttled = _throttle_count()
        try:
            self._before = (*_processor_s(), _own_s(self._pids))
        except OSError:  # not Linux: nothing is known of others
            self._before = None  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        wall_s = time.perf_counter() - self._begun
        self.figures["thermal_throttles"] = _throttle_count() - self._throttled
        if self._before is not None:
            whole = wall_s * (os.cpu_count() or 1)
            busy, stolen = (now - then for now, then in zip(_processor_s(), self._before, strict=False))
            own = _own_s(self._pids) - self._before[2]
            self.figures["foreign_cpu_share"] = max(0.0, busy - own) / whole
            self.figures["stolen_cpu_share"] = stolen / whole

    def verdict(
        self, samples: Sequence[float] = (), gpu: dict[str, list[float]] | None = None, processes: int = 1
    ) -> tuple[str, list[str]]:
        """`stable`, `unstable` or `void`, and why. `samples` are times in order, `gpu` what a GpuMonitor sampled,
        `processes` how many of this measurement's use the card."""
        unstable: list[str] = []
        void: list[str] = []
        for name, text, limits in (
            ("foreign_cpu_share", "other processes took {:.0%} of the processors", (UNSTABLE_FOREIGN, VOID_FOREIGN)),
            ("stolen_cpu_share", "the hypervisor took {:.0%} of the processors", (UNSTABLE_STEAL, VOID_STEAL)),
        ):
            share = self.figures.get(name, 0.0)
            if share > limits[0]:
                (void if share > limits[1] else unstable).append(text.format(share))
        if self.figures.get("thermal_throttles"):
            void.append("the processor was throttled by its temperature")
        if len(samples) >= MIN_SAMPLES and abs(drift(samples)) > DRIFT:
            unstable.append(f"the samples drift by {drift(samples):+.1%} from the first half to the second")
        gpu = gpu or {}
        if clocks := gpu.get("sm_clock_mhz"):
            middle = statistics.median(clocks)
            if (change := max(max(clocks) - middle, middle - min(clocks)) / middle) > CLOCK_CHANGE:
                unstable.append(f"the GPU's clock changed by {change:.0%}")
        reasons = {int(value) for value in gpu.get("throttle_reasons", ())}
        if any(value & THROTTLED for value in reasons):
            void.append("the GPU was slowed down by its temperature or power supply")
        elif any(value & POWER_CAP for value in reasons):
            unstable.append("the GPU reached its power cap")
        if max(gpu.get("compute_processes", (0,))) > processes:
            void.append("other processes used the GPU")
        return ("void" if void else "unstable" if unstable else "stable"), void + unstable
