"""Training by a recipe: one step, whole runs (on several GPUs, too), and their records."""

from tdn_bench.training.loop import train
from tdn_bench.training.result import Epoch, TrainResult, train_record
from tdn_bench.training.step import TrainStep, autocast, learning_rate, parameter_groups, resolve_precision

__all__ = [
    "Epoch",
    "TrainResult",
    "TrainStep",
    "autocast",
    "learning_rate",
    "parameter_groups",
    "resolve_precision",
    "train",
    "train_record",
]
