"""Experiment trackers, where they are installed: Weights & Biases, MLflow, trackio (`train --track`).

A tracker may be away or fail at any moment; that is said once, and the training goes on without it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import printable
from tdn_bench.errors import UserError

PROJECT = "tdn_bench"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}  # what to install


class Tracker(Protocol):
    """A run in a tracker, begun when it is made."""

    def log(self, scalars: Mapping[str, float], epoch: int) -> None: ...
    def finish(self, figures: Mapping[str, float], record: Mapping[str, Any]) -> None: ...
    def fail(self) -> None: ...


class Wandb:
    """https://docs.wandb.ai; WANDB_MODE=offline keeps all on this machine."""

    def __init__(self, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        import wandb

        self.run = wandb.init(project=PROJECT, name=name, dir=str(folder), config=dict(settings))

    def log(self, scalars: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(scalars), step=epoch)

    def finish(self, figures: Mapping[str, float], record: Mapping[str, Any]) -> None:
        self.run.summary.update({**figures, "record": dict(record)})
        self.run.finish()

    def fail(self) -> None:
        self.run.finish(exit_code=1)


class MLflow:
    """https://mlflow.org; MLFLOW_TRACKING_URI says where to, by default below the current folder."""

    def __init__(self, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=name)
        mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def log(self, scalars: Mapping[str, float], epoch: int) -> None:
        self.mlflow.log_metrics(dict(scalars), step=epoch)

    def finish(self, figures: Mapping[str, float], record: Mapping[str, Any]) -> None:
        self.mlflow.log_metrics(dict(figures))
        self.mlflow.log_dict(dict(record), "record.json")
        self.mlflow.end_run()

    def fail(self) -> None:
        self.mlflow.end_run("FAILED")


class Trackio:
    """https://github.com/gradio-app/trackio, on this machine."""

    def __init__(self, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(project=PROJECT, name=name, config=dict(settings))

    def log(self, scalars: Mapping[str, float], epoch: int) -> None:
        self.trackio.log({**scalars, "epoch": epoch})

    def finish(self, figures: Mapping[str, float], record: Mapping[str, Any]) -> None:
        self.trackio.log(dict(figures))
        self.trackio.finish()

    def fail(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, Callable[[str, Mapping[str, Any], Path], Tracker]] = {
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def check_tracker(name: str | None) -> None:
    """Raise UserError where a tracker is not installed: before any work."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name}: not installed: pip install {PACKAGES[name]}")


class Tracking:
    """A training in the tracker `name` (None: in none), whatever that does."""

    def __init__(self, name: str | None, run: str, settings: Mapping[str, Any], folder: Path) -> None:
        self._name, self._tracker = name, None
        if name is not None:
            plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items()}
            self._tracker = self._try(lambda: TRACKERS[name](run, plain, folder))

    def log(self, scalars: Mapping[str, float], epoch: int) -> None:
        """The scalars of an epoch, counted from 1."""
        if (tracker := self._tracker) is not None:
            self._try(lambda: tracker.log(scalars, epoch))

    def finish(self, figures: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """The end of a training: its record, and the numbers among its figures."""
        if (tracker := self._tracker) is not None:
            numbers = {f"final/{k}": float(v) for k, v in figures.items() if type(v) in (int, float)}
            self._try(lambda: tracker.finish(numbers, record))
        self._tracker = None

    def close(self) -> None:
        """The end of whatever is not finished: it failed."""
        if (tracker := self._tracker) is not None:
            self._try(tracker.fail)
        self._tracker = None

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as e:  # noqa: BLE001  # what they raise where the network is away is theirs to choose
            why = printable((str(e).strip() or type(e).__name__).splitlines()[0])[:200]
            print(f"--track {self._name}: given up, training goes on ({why})", file=sys.stderr, flush=True)
            self._tracker = None
            return None
