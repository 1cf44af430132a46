"""Power, memory and utilisation of a GPU while something runs, sampled from NVML in a thread."""

from __future__ import annotations

import statistics
import threading

import torch

INTERVAL_S = 0.1


class GpuMonitor:
    """`with GpuMonitor(device) as monitor: …; monitor.figures()`. On a CPU it measures nothing."""

    def __init__(self, device: torch.device) -> None:
        self.samples: dict[str, list[float]] = {}
        self._device = device
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuMonitor:
        if self._device.type == "cuda":
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(self._device).uuid)
            # by UUID: NVML's numbering ignores CUDA_VISIBLE_DEVICES
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            self._thread = threading.Thread(target=self._sample, args=(pynvml, handle), daemon=True)
            self._thread.start()
        return self

    def _sample(self, pynvml, handle) -> None:  # type: ignore[no-untyped-def]  # pynvml has no types
        readers = {
            "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "sm_percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "nvdec_percent": lambda: pynvml.nvmlDeviceGetDecoderUtilization(handle)[0],
            "memory_used_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used,
            "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "throttle_reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            "compute_processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        }
        while not self._stop.wait(INTERVAL_S):
            for name, read in list(readers.items()):
                try:
                    self.samples.setdefault(name, []).append(float(read()))
                except pynvml.NVMLError:  # a figure that this card or driver does not offer
                    del readers[name]

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def figures(self) -> dict[str, float]:
        """Means over the time, and the peak of the memory in use on the card (by all processes)."""
        counted = self.samples.keys() - {"throttle_reasons", "compute_processes"}  # of which a mean says nothing
        found = {f"gpu_{name}": statistics.fmean(self.samples[name]) for name in sorted(counted)}
        if used := self.samples.get("memory_used_bytes"):
            found["gpu_memory_used_bytes"] = max(used)
        return found
