"""The steps `engine-<name>`: is the engine the network, and how fast is it alone?"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
from torch import nn

from engines import QUANTISED, EngineSpec, supported_precisions, why_unavailable
from tdn_bench.correctness.engine_check import checked_engine
from tdn_bench.errors import UserError
from tdn_bench.gpu_checks.run import Outcome, Row, Run, count_flops, first_line, time_calls
from tdn_bench.models.gate_kernel import why_no_kernel
from tdn_bench.models.temporal_difference import use_gate_kernel


@dataclass(frozen=True)
class Case:
    """One engine to build. `gate_kernel`: TDN's blocks with the Triton kernels."""

    engine: str
    precision: str
    batch: int
    gate_kernel: bool

    @property
    def label(self) -> str:
        """The start of the case's keys in the record."""
        return f"{self.precision}_batch{self.batch}{'_gate_kernel' if self.gate_kernel else ''}"

    @property
    def title(self) -> str:
        """The case in the table."""
        kernel = ", gate kernel" if self.gate_kernel else ""
        return f"{self.engine}, {self.precision}, batch {self.batch}{kernel}"


def engine(run: Run, *, name: str) -> Outcome:
    """One engine in each of its precisions and batch sizes: first against eager fp32, then alone, data in place."""
    found, sizes = Outcome(), run.sizes
    if (reason := why_unavailable(name, str(run.device))) is not None:
        found.rows = [Row(name, f"not run: {reason}")]
        return found
    batches = sizes.compile_batches if name in ("compile", "aoti") else sizes.engine_batches
    if not batches:
        found.rows = [Row(name, "not run: left out of a dry run")]
        return found
    classifier = run.network()
    flops = count_flops(classifier, run.frames(1), backward=False)
    found.figures["gflop_per_video"] = flops / 1e9
    precisions = set(sizes.engine_precisions) & set(supported_precisions(name, str(run.device)))
    # in the engines that can run them, the kernels too, and last: a network does not go back
    kernels = (False, True) if name == "compile" and why_no_kernel(run.device) is None else (False,)
    for kernel, precision, batch in product(kernels, sorted(precisions), batches):
        if kernel:
            use_gate_kernel(classifier)
        case = Case(name, precision, batch, kernel)
        try:
            _check_and_time(run, case, classifier, flops, found)
        except (RuntimeError, UserError) as e:  # cannot be built, disagrees, out of memory: the others still count
            found.failures.append(f"{name} {case.label}: {first_line(e)}")
    return found


def _check_and_time(run: Run, case: Case, classifier: nn.Module, flops: int, found: Outcome) -> None:
    """`flops` are the floating-point operations of one video. Raises RuntimeError for an engine that cannot be built or
    run, UserError for one that is not the network: it is not timed."""
    frames = run.frames(case.batch)
    spec = EngineSpec(tuple(frames.shape[1:]), case.batch, case.precision, str(run.device))  # type: ignore[arg-type]
    calibration = [run.frames(1)] if case.precision in QUANTISED else None
    with checked_engine(case.engine, classifier, spec, [frames], calibration=calibration, reference=run.network()) as (
        built,
        comparison,
    ):
        samples = time_calls(partial(built, frames), run.device, run.sizes.timing_s)
        if run.device.type == "cuda":  # of all that holds any: TensorRT's memory is not torch's
            free, total = torch.cuda.mem_get_info(run.device)
            found.figures[f"{case.label}_card_in_use_bytes"] = total - free
        found.figures[f"{case.label}_build_s"] = built.build_s
        found.details[case.label] = {"engine": built.details(), "agreement_with_eager_fp32": asdict(comparison)}
    ms = statistics.median(samples) / case.batch
    found.samples[f"{case.label}_ms"] = samples
    found.figures |= {f"{case.label}_ms_per_video": ms, f"{case.label}_tflop_per_s": flops / ms / 1e9}
    found.rows.append(Row(case.title, f"{ms:.3f} ms/video", flops / ms / 1e9))
