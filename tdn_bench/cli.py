"""What all commands share: flags from dataclasses, errors in one line, exit statuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engines import EngineError
from pipelines.annotations import Annotations, read_lists, read_something_something
from pipelines.errors import DataError
from pipelines.manifest import Manifest, build_manifest, default_cache
from tdn_bench.errors import UserError

EXIT_USER_ERROR = 2


def run_command(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main`; the user's errors become one line on stderr and exit status 2."""
    try:
        command(argv)
    except (UserError, DataError, EngineError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UserError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UserError(f"--device {name}: not a device; use cpu, cuda or cuda:N") from e
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs; use --device cpu")
    return device


def open_manifest(
    data: Path | None,
    train_list: Path | None = None,
    val_list: Path | None = None,
    class_names: Path | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Read the annotations that the flags name and scan their videos (remembered across runs)."""
    annotations: Annotations
    if train_list is not None and val_list is not None:
        annotations = read_lists(train_list, val_list, root=data, classes=class_names)
        root = data or train_list.parent
    elif train_list is not None or val_list is not None:
        raise UserError("--train-list and --val-list go together")
    elif data is not None:
        annotations, root = read_something_something(data), data
    else:
        raise UserError("no data set named; use --data DIR, or --train-list and --val-list")
    return build_manifest(annotations, cache=default_cache(root), workers=workers, progress=progress)
