"""Weights in and out: the project's safetensors, the authors' released files, ImageNet starts.

Nothing here unpickles arbitrary objects: safetensors holds tensors only, and `.pth`/`.pth.tar` files are read
with `weights_only=True`, which refuses any pickle that would run code.
"""

from pipelines.files import clear_debris
from tdn_bench.checkpoint.classes import ClassMatch, are_numbers, match_classes
from tdn_bench.checkpoint.loading import (
    LoadReport,
    count_classes,
    known_classes,
    load_backbone,
    load_checkpoint,
    load_imagenet,
    read_metadata,
    read_training_state,
    save_checkpoint,
    write_training_state,
)
from tdn_bench.checkpoint.tensor_files import CheckpointError, read_notes, read_tensors, write_tensors

__all__ = [
    "CheckpointError",
    "ClassMatch",
    "LoadReport",
    "are_numbers",
    "clear_debris",
    "count_classes",
    "known_classes",
    "load_backbone",
    "load_checkpoint",
    "load_imagenet",
    "match_classes",
    "read_metadata",
    "read_notes",
    "read_tensors",
    "read_training_state",
    "save_checkpoint",
    "write_tensors",
    "write_training_state",
]
