"""Workers that take turns, each in a fresh process of its own, so that what disturbs one disturbs all alike."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdn_bench.cli import last_error_line
from tdn_bench.cli.progress import progress
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.measurement.gpu_monitor import GpuMonitor
from tdn_bench.measurement.interference import Watch
from tdn_bench.regression.budget import Budget, OutOfTime

# That a verdict needs. Of R rounds the bootstrap draws one R times in R^(R-1): of three in 9, of six in 7,776, which is
# beyond what any interval here looks at.
MIN_ROUNDS = 6
POLL_S = 3600.0  # as long as a pipe is waited for at a time: select takes no infinity
HERE = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
Times = dict[str, list[list[float]]]  # figure → round → turn


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker measures: a workload as flags of `throughput`, the parts that are timed (`worker.PARTS`), and the
    checkout whose code runs."""

    name: str
    flags: tuple[str, ...]
    parts: tuple[str, ...]
    tree: Path = HERE
    script: Path = WORKER
    environment: dict[str, str] = field(default_factory=dict, hash=False)


class WorkerProcess:
    """A worker at work. Raises UserError where it cannot get ready, or ends."""

    def __init__(self, spec: WorkerSpec, videos: int, device: torch.device | str, budget: Budget | None = None) -> None:
        self.spec, self._budget = spec, budget
        self._pipe, there = Pipe()
        # one checkout first on the path, and not the folder of the script
        environment = os.environ | {"PYTHONPATH": str(spec.tree)} | spec.environment
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(spec.script), str(there.fileno())],
            pass_fds=[there.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
        )
        there.close()
        setup = {"flags": list(spec.flags), "parts": list(spec.parts), "videos": videos, "device": str(device)}
        self._pipe.send(setup)

    def receive(self) -> dict[str, Any]:
        """What the process says next: first its facts, once it is ready. Raises OutOfTime where the budget is over
        before."""
        try:
            while self._budget is not None and not self._pipe.poll(min(self._budget.timeout(), POLL_S)):
                pass
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as e:
            self._process.wait()
            why = last_error_line(self._errors) or f"ended with status {self._process.returncode}"
            raise UserError(f"{self.spec.name}: {why}") from e
        if isinstance(answer, Exception):
            raise UserError(f"{self.spec.name}: {answer}")
        return answer  # type: ignore[no-any-return]

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: str, *argument: object) -> dict[str, Any]:
        """What a method of the process's `worker.Worker` returns."""
        self._pipe.send((request, argument))
        return self.receive()

    def turn(self) -> dict[str, float]:
        """What one turn took: ms a video by part and stage."""
        return self.ask("turn", list(self.spec.parts))

    def peak_memory(self) -> dict[str, float]:
        """Bytes, since the last such question."""
        return self.ask("peak_memory")

    def scores(self) -> Scores:
        """What its engine says of every video of the split."""
        said = self.ask("scores")
        logits, labels = torch.from_numpy(said["logits"]), torch.from_numpy(said["labels"])
        return Scores(tuple(said["ids"]), logits[:, None], labels)

    def kill(self) -> None:
        """End it in the midst of its work."""
        self._process.kill()

    def close(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


@contextmanager
def started(
    specs: Sequence[WorkerSpec], videos: int, device: torch.device | str = "cpu", budget: Budget | None = None
) -> Iterator[tuple[list[WorkerProcess], list[dict[str, Any]], float]]:
    """The workers, ready and warm, what each says of itself, and how long a first turn of all took in seconds. `videos`
    are loaded in a turn, `device` is that of the reference. Where the budget is over, they are ended at once."""
    clock = time.monotonic if budget is None else budget.clock
    with ExitStack() as stack:
        processes: list[WorkerProcess] = []
        try:
            for spec in specs:
                processes.append(WorkerProcess(spec, videos, device, budget))
                stack.callback(processes[-1].close)
            facts = [process.receive() for process in processes]
            begun = clock()
            for process in processes:  # one that is not counted: threads, allocators and caches get warm
                process.turn()
                process.peak_memory()
            yield processes, facts, clock() - begun
        except OutOfTime:
            for process in processes:
                process.kill()
            raise


@dataclass
class Interleaved:
    """What the workers took, turn by turn, and what they said of themselves in the first round."""

    times: dict[str, Times] = field(default_factory=dict)
    memory: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # peaks in bytes, one a round
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    gpu: dict[str, list[float]] = field(default_factory=dict)  # what a GpuMonitor saw during all turns
    status: list[str] = field(default_factory=list)  # of each round
    reasons: list[str] = field(default_factory=list)

    def log_ratio(self, a: tuple[str, str], b: tuple[str, str]) -> list[list[float]]:
        """Natural logarithms of (worker, figure) a ÷ b in each turn, by round."""
        pairs = zip(self.times[a[0]][a[1]], self.times[b[0]][b[1]], strict=True)
        return [np.log(np.divide(x, y)).tolist() for x, y in pairs]

    def samples(self) -> dict[str, list[float]]:
        """All times, as records hold them: `<worker>_<figure>`, one round after the other; and `gpu_<what>`."""
        return {f"gpu_{what}": values for what, values in self.gpu.items()} | {
            f"{name}_{figure}": [value for turns_ in rounds for value in turns_]
            for name, times in self.times.items()
            for figure, rounds in times.items()
        }

    def turns(self) -> list[int]:
        """Turns in each round."""
        return [len(turns_) for turns_ in next(iter(next(iter(self.times.values())).values()))]

    @property
    def worst(self) -> str:
        """`void` or `unstable` where most rounds were no better, else `stable`."""
        bad = sum(status != "stable" for status in self.status)
        void = sum(status == "void" for status in self.status)
        return "void" if 2 * void > len(self.status) else "unstable" if 2 * bad > len(self.status) else "stable"


def interleave(
    specs: Sequence[WorkerSpec],
    *,
    videos: int,
    rounds: int,
    round_s: float,
    min_turns: int = 4,
    with_scores: bool = False,
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
) -> Iterator[Interleaved]:
    """Let the workers take turns in `rounds` rounds of fresh processes, each for at least `round_s` seconds and
    `min_turns` turns; after every round yield what there is by then. The order is reversed at each turn (A B B A …), so
    that a steady drift favours none. `with_scores`: first ask those with an engine what it says of every video.
    `device` is watched beside the processor. A `budget` ends it, and shortens the turns of rounds that would else not
    fit; a round that is not over by then is not counted. Raises UserError where too few fit for a verdict."""
    budget = Budget(math.inf, 0) if budget is None else budget
    limit_s = budget.passed_s() + budget.left_s()
    with progress("Taking turns", limit_s if math.isfinite(limit_s) else None, "s", still=True) as advance:
        shown_s = 0.0

        def tick() -> None:
            nonlocal shown_s
            now_s = budget.passed_s()
            advance(now_s - shown_s)
            shown_s = now_s

        yield from _rounds(specs, videos, rounds, round_s, min_turns, with_scores, device, budget, tick)


def _rounds(
    specs: Sequence[WorkerSpec],
    videos: int,
    rounds: int,
    round_s: float,
    min_turns: int,
    with_scores: bool,
    device: torch.device | str,
    budget: Budget,
    tick: Callable[[], None],
) -> Iterator[Interleaved]:
    found = Interleaved()
    for _ in range(rounds):
        if (turns_s := budget.next_round_s(round_s, min_turns)) is None:
            return
        opened = budget.clock()
        try:
            with started(specs, videos, device, budget) as (processes, facts, warm_s):
                start_s = budget.clock() - opened
                budget.is_ready(start_s, warm_s, min_turns)
                for note in {fact["class_match"] for fact in facts if "class_match" in fact and not found.facts}:
                    print(note, file=sys.stderr)  # once: the workers' own output is kept for errors
                if with_scores and not found.scores:
                    engines = [p for p in processes if "engine" in p.spec.parts]
                    found.scores = {p.spec.name: p.scores() for p in engines}
                taken: list[list[dict[str, float]]] = [[] for _ in processes]
                begun = budget.clock()
                with GpuMonitor(torch.device(device)) as monitor, Watch([p.pid for p in processes]) as watch:
                    while len(taken[0]) < min_turns or budget.clock() - begun < turns_s or len(taken[0]) % 2:
                        for i in sorted(range(len(processes)), reverse=len(taken[0]) % 2 == 1):
                            taken[i].append(processes[i].turn())
                        tick()
                turned = budget.clock()
                peaks = [process.peak_memory() for process in processes]
        except OutOfTime:
            if budget.enough:
                return
            raise
        budget.took(start_s + budget.clock() - turned, (turned - begun) / len(taken[0]))
        # this process may have a context on the card, too
        status, reasons = watch.verdict(gpu=monitor.samples, processes=len(processes) + torch.cuda.is_initialized())
        for what, values in monitor.samples.items():
            found.gpu.setdefault(what, []).extend(values)
        found.status.append(status)
        found.reasons += [f"round {len(found.status)}: {reason}" for reason in reasons]
        for spec, fact, turn_times, peak in zip(specs, facts, taken, peaks, strict=True):
            found.facts.setdefault(spec.name, fact)
            times = found.times.setdefault(spec.name, {})
            for figure in turn_times[0]:
                times.setdefault(figure, []).append([t[figure] for t in turn_times])
            memory = found.memory.setdefault(spec.name, {})
            for kind, value in peak.items():
                memory.setdefault(kind, []).append(value)
        yield found


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A checkout of `commit` of this project in a temporary folder. Raises UserError for a commit unknown to git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"commit {commit}: {' '.join(done.stderr.split())}; name one that this clone holds")
        return done.stdout.strip()

    if not (HERE / ".git").exists():
        raise UserError(f"commit {commit}: {HERE} is no git checkout; measure commits in a clone")
    sha = git("rev-parse", "--verify", f"{commit}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / sha[:12]
        git("worktree", "add", "--detach", "--quiet", str(tree), sha)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))
