"""The suite's steps, in the order in which they run: what is checked first is what the others need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from engines import ENGINES
from tdn_bench.gpu_checks.ceilings import ceilings
from tdn_bench.gpu_checks.decoders import decoder, odd_clips
from tdn_bench.gpu_checks.engine import engine
from tdn_bench.gpu_checks.loader import loader
from tdn_bench.gpu_checks.path import path
from tdn_bench.gpu_checks.run import Outcome, Run
from tdn_bench.gpu_checks.train import train_data, train_step

STEPS: dict[str, Callable[[Run], Outcome]] = {
    "ceilings": ceilings,
    "decoder": decoder,
    "odd-clips": odd_clips,
    "loader": loader,
    "train-step": train_step,
    "train-data": train_data,
    **{f"engine-{name}": partial(engine, name=name) for name in ENGINES},
    "path": path,
}
